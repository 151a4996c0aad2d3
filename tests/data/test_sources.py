"""Folders, archives and lists in memory give the rows and the frames that a table of the same files gives."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mmseqvae.cli.commands import main
from mmseqvae.config import LogMelConfig
from mmseqvae.data import Corpus, DataWarning, ManifestError, encode_items, prepare, read_source
from mmseqvae.data.clips import Array, Entry, Sound, at_rate
from mmseqvae.data.manifest import hashed_split
from mmseqvae.features.log_mel import LogMel

CONFIG = LogMelConfig(sample_rate=8000, n_fft=256, hop_length=100, n_mels=20)
WORDS = ["one", "two", "三", "أربعة", "five", "six"]
TINY = ["--audio.sample-rate=8000", "--audio.n-fft=256", "--audio.hop-length=100", "--audio.n-mels=20",
        "--model.latent=2", "--model.token-encoder=4", "--model.token-decoder=4", "--model.token-embedding=3",
        "--model.frame-encoder=4", "--model.frame-decoder=4", "--model.frame-inputs=4", "--training.epochs=1",
        "--training.batch-size=3", "--training.fitted_components=1", "--training.threads=1"]  # fmt: skip


def waves() -> list[np.ndarray]:
    """Six waveforms of growing length that 16-bit files hold exactly."""
    random = np.random.default_rng(0)
    return [np.round(3000 * random.standard_normal(500 * (i + 2))).astype(np.float32) / 2**15 for i in range(6)]


def get(source: Any, cache: Path, **options: Any) -> Corpus:
    return prepare(source, **{"audio": CONFIG, "cache_dir": cache, "workers": 0} | options)


def clips(corpus: Corpus, name: str = "audio", split: str = "train") -> list[torch.Tensor]:
    dataset = corpus.datasets[split]
    return dataset.__getitems__(range(len(dataset)))[name].items()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/ann and train/bob hold four pairs, valid one sound alone, test one text alone."""
    data = tmp_path / "data"
    for i, (word, wave) in enumerate(zip(WORDS, waves(), strict=True)):
        inside = data / ("valid" if i == 4 else "test" if i == 5 else f"train/{('ann', 'bob')[i % 2]}")
        inside.mkdir(parents=True, exist_ok=True)
        if i != 5:
            soundfile.write(inside / f"{i}.{'FLAC' if i == 2 else 'wav'}", wave, 8000)
        if i != 4:
            (inside / f"{i}.txt").write_text(f"{word}\r\n", encoding="utf-8-sig" if i == 3 else "utf-8")
    (data / ".hidden.wav").write_text("no sound")
    (data / "train" / "notes.md").write_text("not read")
    return data


# Folders


def test_a_folder_gives_items_by_name_with_what_is_missing(folder: Path, tmp_path: Path) -> None:
    for _ in range(2):  # made, then opened
        with pytest.warns(DataWarning, match=re.escape(f"{folder}: files that are not read: .md")):
            corpus = get(folder, tmp_path / "cache", covariates=["folder"])
    rows = {row.id: row for row in corpus.manifest.rows}
    assert list(rows) == ["test/5", "train/ann/0", "train/ann/2", "train/bob/1", "train/bob/3", "valid/4"]
    assert rows["train/ann/2"].cells == {"text": "三", "audio": str(folder / "train/ann/2.FLAC"), "folder": "ann"}
    assert rows["train/bob/3"].cells["text"] == "أربعة"
    assert rows["test/5"].cells == {"text": "six", "folder": "test"}
    assert rows["valid/4"].cells.keys() == {"audio", "folder"}
    assert [row.split for row in rows.values()] == ["test", "train", "train", "train", "train", "valid"]
    for clip, i in zip(clips(corpus), (0, 2, 1, 3), strict=True):
        front_end = corpus.front_ends["audio"]
        assert isinstance(front_end, LogMel)
        torch.testing.assert_close(clip, front_end.encode(waves()[i]))


def test_folders_without_names_of_splits_are_split_by_hash(folder: Path, tmp_path: Path) -> None:
    manifest = read_source(folder / "train")
    assert [(row.id, row.split) for row in manifest.rows] == [
        (name, hashed_split(name)) for name in ("ann/0", "ann/2", "bob/1", "bob/3")
    ]
    assert manifest.unused == ["folder"]
    soundfile.write(folder / "0.wav", waves()[0], 8000)
    (folder / "valid").rename(folder / "dev")
    with pytest.raises(ManifestError, match=r"(?s)2 row\(s\).*item 1 \(id 0\): split is 'the folder itself'.*'dev'"):
        get(folder, tmp_path)


@pytest.mark.parametrize(("suffix", "subtype"), [("wav", "PCM_24"), ("flac", None), ("ogg", None), ("mp3", None)])
def test_sounds_of_any_format_rate_and_channels(suffix: str, subtype: str | None, tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    file = tmp_path / "data" / "train" / f"a.{suffix}"
    time = np.arange(22050) / 22050
    soundfile.write(file, np.stack([np.sin(2000 * time), 0 * time], 1) / 2, 22050, subtype=subtype)
    (clip,) = clips(get(tmp_path / "data", tmp_path / "cache"))
    assert clip.shape == (81, 20)


def test_bad_files_of_a_folder_are_told_with_their_names(folder: Path, tmp_path: Path) -> None:
    inside = folder / "train" / "ann"
    (inside / "0.txt").write_bytes("trois étés".encode("latin-1"))
    (inside / "2.txt").write_text("\n")
    soundfile.write(inside / "2.wav", waves()[0], 8000)
    (folder / "valid" / "4.wav").write_bytes(b"")
    (folder / "test" / "6.npz").write_bytes(b"PK\3\4 no archive")
    with pytest.raises(ManifestError, match=r"4 row\(s\)") as error:
        get(folder, tmp_path)
    for problem in (
        f"item 2 (id unknown): {folder / 'test/6.npz'}: is not a whole .npz archive",
        f"item 3 (id train/ann/0): text {inside / '0.txt'}: is not UTF-8 text",
        f"item 4 (id train/ann/2): text {inside / '2.txt'}: file is empty; delete it where the text is missing; "
        "audio is given twice, by 2.FLAC and 2.wav",
        f"item 7 (id valid/4): audio {folder / 'valid/4.wav'}: file is empty",
    ):
        assert problem in str(error.value)
    whole = (folder / "train/bob/1.wav").read_bytes()
    (folder / "train/bob/1.wav").write_bytes(whole[:-100])
    corpus = get(folder, tmp_path, skip_bad=True)
    assert corpus.datasets["train"].ids == ["train/bob/3"]
    skipped = {problem.row: problem.problem for problem in corpus.skipped}
    assert list(skipped) == [2, 3, 4, 5, 7]
    assert skipped[5].startswith(f"audio {folder / 'train/bob/1.wav'}: is truncated")


def test_a_folder_with_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"holds no sound files .*\.npz files$"):
        read_source(tmp_path)
    (tmp_path / "a.pdf").touch()
    with pytest.raises(ManifestError, match=r"files, but \.pdf"):
        read_source(tmp_path)
    with pytest.raises(ManifestError, match="nowhere: there is no such manifest"):
        read_source(tmp_path / "nowhere")


# Archives


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Archives of a series each, with its name, a label, its split, and a sound."""
    (tmp_path / "series").mkdir()
    random = np.random.default_rng(0)
    for i, wave in enumerate(waves()):
        np.savez(
            tmp_path / "series" / f"{i}.npz",
            motion=random.normal(i, 1, (i + 2, 3)),
            pulse=random.integers(0, 2, (i + 1, 1)),
            audio=np.round(wave * 2**15).astype(np.int16),
            sample_rate=8000,
            text=np.array(WORDS[i]),
            label=i % 2,
            split=("train", "valid", "test")[max(0, i - 3)],
        )
    return tmp_path / "series"


def test_archives_are_items_and_their_arrays_columns(series: Path, tmp_path: Path) -> None:
    corpus = get(series, tmp_path / "cache", frames=["motion", "pulse"])
    assert {split: dataset.ids for split, dataset in corpus.datasets.items()} == {
        "train": ["0", "1", "2", "3"], "valid": ["4"], "test": ["5"],
    }  # fmt: skip
    assert corpus.datasets["train"].labels == ["0", "1", "0", "1"]
    assert corpus.manifest.unused == ["sample_rate"]
    front_ends = corpus.front_ends
    for i in range(4):
        with np.load(series / f"{i}.npz") as entries:
            torch.testing.assert_close(clips(corpus, "motion")[i], front_ends["motion"].encode(entries["motion"]))
            torch.testing.assert_close(clips(corpus, "pulse")[i], front_ends["pulse"].encode(entries["pulse"]))
        torch.testing.assert_close(clips(corpus)[i], front_ends["audio"].encode(waves()[i]))
        assert clips(corpus, "text")[i].tolist() == front_ends["text"].encode(WORDS[i]).tolist()


def test_cells_of_a_table_name_an_archive_and_its_key(series: Path, tmp_path: Path) -> None:
    lines = [f'{{"a": "series/{i}.npz:motion", "pulse": "series/{i}.npz", "split": "train"}}' for i in range(3)]
    (tmp_path / "m.jsonl").write_text("\n".join([*lines, '{"a": [[1, 2, 3], [4, 5, 6]], "split": "train"}']))
    corpus = get(tmp_path / "m.jsonl", tmp_path / "cache", frames=["a", "pulse"])
    assert corpus.manifest.rows[1].cells["a"] == Entry(str(series / "1.npz"), "motion")
    whole = get(series, tmp_path / "cache", frames=["motion", "pulse"])
    for i in range(3):
        a, motion = corpus.front_ends["a"], whole.front_ends["motion"]
        torch.testing.assert_close(
            a.destandardise(clips(corpus, "a")[i]), motion.destandardise(clips(whole, "motion")[i])
        )
    assert corpus.datasets["train"].lengths("a").tolist() == [2, 3, 4, 2]
    assert corpus.datasets["train"].lengths("pulse").tolist() == [1, 2, 3, 0]
    item = {"a": f"{series / '1.npz'}:motion", "pulse": series / "1.npz"}
    for name, sequence in encode_items(corpus.front_ends, [item]).items():
        torch.testing.assert_close(sequence.items()[0], clips(corpus, name)[1])


def test_bad_archives_are_told(series: Path, tmp_path: Path) -> None:
    good = {"motion": np.zeros((2, 3)), "split": np.array("train")}
    np.savez(series / "a.npz", **good | {"motion": np.full((2, 3), np.nan)})
    np.savez(series / "b.npz", **good | {"motion": np.zeros((2, 4))})
    np.savez(series / "c.npz", **good | {"motion": np.zeros(3)})
    np.savez(series / "d.npz", **good | {"motion": np.array([{}, 1], object)})
    np.savez(series / "e.npz", **good | {"audio": np.zeros(100)})
    np.savez(series / "f.npz", **good | {"text": np.array(7)})
    np.savez(series / "g.npz", **good | {"motion": np.zeros((0, 3))})
    np.savez(series / "h.npz", **good | {"motion": np.array([["a"]])})
    cut = (series / "0.npz").read_bytes()
    (series / "i.npz").write_bytes(cut[: len(cut) // 2])
    (series / "j.npz").touch()
    with (series / "k.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    damaged = bytearray((series / "5.npz").read_bytes())
    damaged[200] ^= 255  # within the array "motion"
    (series / "5.npz").write_bytes(damaged)
    with pytest.raises(ManifestError) as error:
        get(series, tmp_path / "cache", frames=["motion"])
    said = str(error.value)  # the first look: what the archives' lists tell
    for name, problem in {
        "5": "5.npz: the array 'motion' cannot be read",
        "d": "d.npz: the array 'motion' cannot be read (Object arrays",
        "f": "text must be a string, is int",
    }.items():
        assert f"(id {name}): " in said
        assert problem in said
    for name, problem in {"i": "is not a whole .npz", "j": "file is empty", "k": "is one array, not an .npz"}.items():
        assert f"{series / name}.npz: {problem}" in said
    skipped = {p.id: p.problem for p in get(series, tmp_path / "cache", frames=["motion"], skip_bad=True).skipped}
    for name, problem in {  # the second: what is read
        "a": "holds nothing but NaN", "b": "has 4 channels", "c": "has shape (3,)", "g": "holds no frames",
        "e": "holds no array 'sample_rate'", "h": "holds <U1, real numbers are needed",
    }.items():  # fmt: skip
        assert f"{series / name}.npz:" in skipped[name]
        assert problem in skipped[name]


def test_series_without_channels_are_told_what_they_lack(series: Path, tmp_path: Path) -> None:
    """All of one column are [T], so that nothing says how many channels there are."""
    for path in series.glob("*.npz"):
        np.savez(path, motion=np.zeros(5))
    with pytest.raises(ManifestError, match=r"'motion' is an array .*; the first: .*0\.npz.* \(5,\), .* one channel"):
        get(series, tmp_path / "cache", frames=["motion"])


# Memory


def items() -> list[dict[str, Any]]:
    random = np.random.default_rng(1)
    return [
        {"id": word, "text": word, "audio": (wave, 8000), "motion": random.normal(0, 1, (4, 2)), "mood": i % 2,
         "split": "train"}
        for i, (word, wave) in enumerate(zip(WORDS, waves(), strict=True))
    ]  # fmt: skip


def test_a_list_in_memory_is_a_data_set(folder: Path, tmp_path: Path) -> None:
    rows = items()
    rows[0]["audio"] = {"array": rows[0]["audio"][0], "sampling_rate": np.int64(8000)}
    rows[1]["audio"] = (torch.from_numpy(rows[1]["audio"][0]), 8000)
    rows[2]["audio"] = folder / "train/ann/2.FLAC"
    rows[3]["audio"] = (np.round(rows[3]["audio"][0] * 2**15).astype(np.int16), 8000)
    rows[4]["audio"] = (np.stack([rows[4]["audio"][0]] * 2, 1), 8000.0)
    rows[5] |= {"audio": None, "motion": [[1, 2], [3, 4.5]], "mood": np.int64(1)}
    rows[3]["motion"] = torch.ones(3, 2)
    before = pickle.dumps(rows)
    corpus = get(rows, tmp_path / "cache", frames=["motion"], labels=["mood"])
    assert corpus.datasets["train"].ids == WORDS
    for i, wave in enumerate(waves()[:5]):
        torch.testing.assert_close(clips(corpus)[i], corpus.front_ends["audio"].encode(wave))
    assert corpus.datasets["train"].lengths("audio")[5] == 0
    assert corpus.datasets["train"].lengths("motion").tolist() == [4, 4, 4, 3, 4, 2]
    assert [corpus.front_ends["mood"].decode(clip) for clip in clips(corpus, "mood")] == list("010101")
    assert pickle.dumps(rows) == before
    other = get((row for row in rows), tmp_path / "other", frames=["motion"], workers=2)
    for a, b in zip(clips(corpus, "motion"), clips(other, "motion"), strict=True):
        assert torch.equal(a, b)
    again = prepare(rows, front_ends=corpus.front_ends, cache_dir=tmp_path / "cache")
    assert torch.equal(clips(again)[2], clips(corpus)[2])


def test_a_waveform_of_another_rate_is_resampled_as_its_file_is(tmp_path: Path) -> None:
    wave = np.sin(np.arange(6000) / 20).astype(np.float32) / 2
    soundfile.write(tmp_path / "a.wav", np.stack([wave, -wave / 3], 1), 44100, subtype="FLOAT")
    rows: list[dict[str, Any]] = [{"audio": (np.stack([wave, -wave / 3], 1), 44100)}, {"audio": tmp_path / "a.wav"}]
    corpus = get([{**row, "split": "train"} for row in rows], tmp_path / "cache")
    one, other = clips(corpus)
    torch.testing.assert_close(one, other)
    batch = encode_items(corpus.front_ends, [{"audio": rows[0]["audio"]}])
    torch.testing.assert_close(batch["audio"].items()[0], one)


def test_content_and_not_the_object_names_what_is_cached(tmp_path: Path) -> None:
    one = np.arange(6.0).reshape(3, 2)
    assert Array(one).digest() == Array(one.copy()).digest()
    others = [one.T.copy(), one.reshape(2, 3), one.astype(np.float32), one + 1]
    assert len({Array(array).digest() for array in [one, *others]}) == 5
    assert Array(np.asfortranarray(one)).digest() == Array(one).digest()
    assert Sound(one[:, 0], 8000).digest() != Sound(one[:, 0], 16000).digest()
    np.savez(tmp_path / "a.npz", x=one, y=one)
    before = Entry(str(tmp_path / "a.npz"), "x").digest()
    assert before != Entry(str(tmp_path / "a.npz"), "y").digest()
    np.savez(tmp_path / "a.npz", x=one + 1, z=one)
    assert before != Entry(str(tmp_path / "a.npz"), "x").digest()


def test_bad_items_in_memory_are_told_by_number(tmp_path: Path) -> None:
    wave = waves()[0]
    bad = [
        ({"audio": wave}, "audio is an array without its rate: (samples, rate) is needed"),
        ({"audio": (wave * np.nan, 8000)}, "holds a NaN or infinity"),
        ({"audio": (wave, 0)}, "its rate must be a positive number of Hz, is 0"),
        ({"audio": (wave, "8000")}, "its rate must be a positive number of Hz, is '8000'"),
        ({"audio": (wave[:0], 8000)}, "has shape (0,)"),
        ({"audio": (wave.reshape(2, -1), 8000)}, "[N] or [N, channels] is needed"),
        ({"audio": (["a"], 8000)}, "audio holds no numbers"),
        ({"audio": (wave.astype(np.uint8), 8000)}, "holds uint8"),
        ({"audio": 7}, "audio must be a string, is int"),
        ({"audio": "gone.wav"}, "audio gone.wav: file is missing"),
        ({"audio": "gone.npz:audio"}, "audio gone.npz:audio: file is missing"),
        ({"text": 7}, "text must be a string, is int"),
        ({"text": wave}, "text must be a string, is ndarray"),
        ({"text": "\ud800"}, "lone surrogate"),
        ({"motion": [[1], [2, 3]]}, "motion is no array [T, C], its rows differ in length"),
        ({"motion": [["a", "b"]]}, "motion is no array [T, C] of numbers"),
        ({"motion": np.zeros((2, 5))}, "has 5 channels, the others have 2"),
        ({"motion": np.zeros(2)}, "has shape (2,)"),
        ({"motion": 7}, "motion must be a string, is int"),
        ({"id": "one", "text": "a"}, "the id is taken by item 1"),
        ({}, "has no modality at all"),
        ("text", "must be a mapping of columns to values, is str"),
    ]
    for item, problem in bad:
        rows = [*items(), item if isinstance(item, str) else {"id": "bad", "split": "train", **item}]
        with pytest.raises(ManifestError, match="<items>: 1 row") as error:
            get(rows, tmp_path / "cache", frames=["motion"])
        assert f"item 7 (id {'unknown' if isinstance(item, str) else item.get('id', 'bad')}): " in str(error.value)
        assert problem in str(error.value)
    assert len(get([*items(), {"text": 7}], tmp_path, skip_bad=True).skipped) == 1
    with pytest.raises(ManifestError, match="<items>: holds no rows"):
        get([], tmp_path)
    with pytest.raises(ManifestError, match=r"none of the modalities .* \['motion'\]: name some of them as frames"):
        get([{"motion": np.zeros((2, 2))}], tmp_path)


def test_integers_are_of_their_own_full_scale() -> None:
    steps = np.array([0, 2**14, -(2**15)], np.int16)
    np.testing.assert_array_equal(at_rate(steps, 8000, 8000, "x"), np.array([0, 0.5, -1], np.float32))
    np.testing.assert_array_equal(at_rate(steps.astype(np.int32) << 16, 8000, 8000, "x"), [0, 0.5, -1])


# The command line


@pytest.mark.parametrize("kind", ["folder", "archives"])
def test_commands_take_any_source(
    kind: str, folder: Path, series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source = {"folder": folder, "archives": series}[kind]
    columns = ["--covariates", "folder"] if kind == "folder" else ["--frames", "motion", "pulse"]
    monkeypatch.chdir(tmp_path)
    main(["train", str(source), *columns, *TINY])
    run = str(Path("runs") / source.name)
    assert json.loads(Path(run, "metrics.json").read_text())["valid"]["items"] == 1
    capsys.readouterr()
    main(["evaluate", run, str(source), "--draws=2"])
    assert json.loads(capsys.readouterr().out)["items"] == 1
    main(["embed", run, str(source), "--out", "z.npz"])
    assert len(np.load("z.npz")["ids"]) == 6
    main(["generate", run, "--text", "one", "--samples=1", "--out", "made"])
