"""Cuts of lhotse and data sets of `datasets`, made here, give the frames that the same files give alone."""

import gzip
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import datasets
import lhotse
import numpy as np
import pytest
import soundfile
import torch

from mmseqvae.cli.commands import main
from mmseqvae.data import ManifestError, read_source
from tests.data.test_sources import TINY, WORDS, clips, get

SPLITS = ["train"] * 4 + ["valid", "test"]


@pytest.fixture
def waves(tmp_path: Path) -> list[np.ndarray]:
    """Six waveforms, also end to end in the left channel of `long.wav`, and alone in `0.wav` ... `5.wav`; at 8 kHz."""
    random = np.random.default_rng(0)
    waves = [np.round(3000 * random.standard_normal(800 * (i + 1))).astype(np.float32) / 2**15 for i in range(6)]
    whole = np.concatenate(waves)
    soundfile.write(tmp_path / "long.wav", np.stack([whole, whole[::-1]], 1), 8000)
    for i, wave in enumerate(waves):
        soundfile.write(tmp_path / f"{i}.wav", wave, 8000)
    return waves


def run_commands(source: Path, columns: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, cache = str(tmp_path / "run"), ["--cache-dir", str(tmp_path / "cache")]
    main(["train", str(source), "--out", run, *columns, *cache, *TINY])
    capsys.readouterr()
    main(["evaluate", run, str(source), "--draws=2", *cache])
    assert json.loads(capsys.readouterr().out)["items"] == 1
    main(["embed", run, str(source), "--out", str(tmp_path / "z.npz"), *cache])
    assert len(np.load(tmp_path / "z.npz")["ids"]) == 6


# Cuts of lhotse


def cuts_of(folder: Path, waves: list[np.ndarray]) -> list[lhotse.MonoCut]:
    """The left channel of `long.wav` in six cuts, said by two speakers, with a mood and a split."""
    recording = lhotse.Recording.from_file(folder / "long.wav")
    cuts, start = [], 0
    for i, wave in enumerate(waves):
        begin, duration = start / 8000, len(wave) / 8000
        said = lhotse.SupervisionSegment(
            f"s{i}", recording.id, 0.0, duration, 0, WORDS[i], "English", ("ann", "bob")[i % 2], custom={"mood": i % 3}
        )
        cut = lhotse.MonoCut(f"c{i}", begin, duration, 0, [said], None, recording, custom={"split": SPLITS[i]})
        cuts.append(cut)
        start += len(wave)
    return cuts


def written(cuts: list[Any], path: Path) -> Path:
    lhotse.CutSet.from_cuts(cuts).to_file(path)
    return path


@pytest.mark.parametrize("name", ["cuts.jsonl.gz", "cuts.jsonl"])
def test_cuts_are_stretches_with_what_is_said(name: str, waves: list[np.ndarray], tmp_path: Path) -> None:
    path = written(cuts_of(tmp_path, waves), tmp_path / name)
    corpus = get(path, tmp_path / "cache", covariates=["speaker"], labels=["mood"])
    assert [(row.id, row.split) for row in corpus.manifest.rows] == [(f"c{i}", SPLITS[i]) for i in range(6)]
    assert sorted(corpus.manifest.unused) == ["gender", "language"]
    front_ends = corpus.front_ends
    for i in range(4):
        torch.testing.assert_close(clips(corpus)[i], front_ends["audio"].encode(waves[i]))
        assert front_ends["text"].decode(clips(corpus, "text")[i]) == WORDS[i]
        assert front_ends["speaker"].decode(clips(corpus, "speaker")[i]) == ("ann", "bob")[i % 2]
        assert front_ends["mood"].decode(clips(corpus, "mood")[i]) == str(i % 3)
    other = get(path, tmp_path / "other", covariates=["speaker"], workers=2)
    for a, b in zip(clips(corpus), clips(other), strict=True):
        assert torch.equal(a, b)


def test_what_lhotse_does_to_cuts_is_heard(waves: list[np.ndarray], tmp_path: Path) -> None:
    """Other rates, all channels, mixtures, cuts without words or without sound."""
    one, two, three, *others = cuts_of(tmp_path, waves)
    both = lhotse.MultiCut("both", 0.1, 0.2, [0, 1], [], None, one.recording, custom={"split": "train"})
    cuts = [one, two.resample(16000), three.append(one.drop_supervisions()), both, *others]
    corpus = get(written(cuts, tmp_path / "m.jsonl.gz"), tmp_path / "cache")
    audio, train = corpus.front_ends["audio"], clips(corpus)
    whole = soundfile.read(tmp_path / "long.wav", dtype="float32")[0]
    ids = corpus.datasets["train"].ids
    torch.testing.assert_close(train[ids.index("both")], audio.encode(whole[800:2400].mean(1)))
    assert corpus.datasets["train"].lengths("text")[ids.index("both")] == 0
    mixed = next(row for row in corpus.manifest.rows if row.cells.get("text") == WORDS[2])
    expected = audio.encode(np.concatenate([waves[2], waves[0]]))
    place = corpus.datasets[mixed.split].ids.index(mixed.id)
    found = clips(corpus, split=mixed.split)[place]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert train[ids.index("c1")].shape == audio.encode(waves[1]).shape
    silent = lhotse.MonoCut("words", 0, 1.0, 0, one.supervisions, custom={"split": "train"})
    manifest = read_source(written([silent, one], tmp_path / "silent.jsonl"))
    assert manifest.rows[0].cells == {"text": "one"}


def test_a_corrected_text_recomputes_no_frames(waves: list[np.ndarray], tmp_path: Path) -> None:
    before = cuts_of(tmp_path, waves)[0]
    path = written([before], tmp_path / "a.jsonl")
    one = read_source(path).rows[0].cells["audio"]
    digest = one.digest()
    path.write_text(path.read_text().replace('"one"', '"won"').replace('"c0"', '"d0"'))
    other = read_source(path).rows[0]
    assert (other.id, other.cells["text"]) == ("d0", "won")
    assert other.cells["audio"].digest() == digest
    assert pickle.loads(pickle.dumps(one)).digest() == digest
    assert read_source(written([before.truncate(duration=0.05)], path)).rows[0].cells["audio"].digest() != digest
    soundfile.write(tmp_path / "long.wav", np.zeros((len(np.concatenate(waves)), 2)), 8000)
    assert read_source(written([before], path)).rows[0].cells["audio"].digest() != digest


def test_bad_cuts_are_told(waves: list[np.ndarray], tmp_path: Path) -> None:
    cuts = cuts_of(tmp_path, waves)
    merged = lhotse.MonoCut("two", 0.0, 0.3, 0, [*cuts[0].supervisions, *cuts[1].supervisions], None, cuts[0].recording)
    path = written([*cuts, cuts[0], merged], tmp_path / "m.jsonl.gz")
    with pytest.raises(ManifestError) as error:
        get(path, tmp_path / "cache")
    assert f"{path}: 2 row(s)" in str(error.value)
    assert "cut 7 (id c0): the id is taken by cut 1" in str(error.value)
    assert "cut 8 (id two): text is that of 2 supervisions" in str(error.value)

    path = written(cuts, tmp_path / "m.jsonl.gz")
    whole = (tmp_path / "long.wav").read_bytes()
    (tmp_path / "long.wav").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ManifestError, match=r"long\.wav of cut c5: cannot be read as sound"):
        get(path, tmp_path / "cache")
    (tmp_path / "long.wav").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"cut 1 \(id c0\): audio .*long\.wav of cut c0: file is empty"):
        get(path, tmp_path / "cache")
    (tmp_path / "long.wav").unlink()
    with pytest.raises(ManifestError, match=r"long\.wav of cut c0: file is missing"):
        get(path, tmp_path / "cache")


def test_what_is_no_manifest_of_cuts_is_refused(waves: list[np.ndarray], tmp_path: Path) -> None:
    recordings = tmp_path / "recordings.jsonl.gz"
    lhotse.RecordingSet.from_recordings([lhotse.Recording.from_file(tmp_path / "long.wav")]).to_file(recordings)
    with pytest.raises(ManifestError, match=r"recordings\.jsonl\.gz"):
        read_source(recordings)
    path = written(cuts_of(tmp_path, waves), tmp_path / "m.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ManifestError, match="is no whole lhotse manifest"):
        read_source(path)
    path.write_bytes(b"no gzip")
    with pytest.raises(ManifestError, match="is no whole lhotse manifest"):
        read_source(path)
    path.write_bytes(gzip.compress('{"text": "ä"}'.encode("latin-1")))
    with pytest.raises(ManifestError, match="is no whole lhotse manifest"):
        read_source(path)


def test_commands_take_cuts(waves: list[np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(cuts_of(tmp_path, waves), tmp_path / "cuts.jsonl.gz")
    run_commands(path, ["--labels", "speaker"], tmp_path, capsys)


# Data sets of Hugging Face

ARRAY = datasets.List(datasets.List(datasets.Value("float32")))
SOUND = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}


def with_sounds(columns: dict[str, list[Any]], **features: Any) -> datasets.Dataset:
    """With a column `audio` of {"bytes", "path"}, made Audio without torchcodec, which encoding alone would need."""
    made = datasets.Dataset.from_dict(columns, datasets.Features(audio=SOUND, **features))
    return made.cast_column("audio", datasets.Audio())


def columns_of(folder: Path, chosen: list[int]) -> datasets.Dataset:
    random = np.random.default_rng(0)
    motion = [random.normal(i, 1, (i + 1, 2)).astype(np.float32).tolist() for i in range(6)]
    columns = {
        "id": [f"n{i}" for i in chosen],
        "audio": [None if i == 1 else {"path": str(folder / f"{i}.wav"), "bytes": None} for i in chosen],
        "text": [None if i == 2 else WORDS[i] for i in chosen],
        "motion": [motion[i] for i in chosen],
        "label": [i % 2 for i in chosen],
        "speaker": chosen,
    }
    return with_sounds(
        columns, id=datasets.Value("string"), text=datasets.Value("string"), motion=ARRAY,
        label=datasets.ClassLabel(names=["low", "high"]), speaker=datasets.Value("int64"),
    )  # fmt: skip


@pytest.fixture
def saved(waves: list[np.ndarray], tmp_path: Path) -> Path:
    """A DatasetDict whose sounds are embedded: their files are gone."""
    parts = {"train": [0, 1, 2, 3], "validation": [4], "test": [5]}
    made = datasets.DatasetDict({split: columns_of(tmp_path, chosen) for split, chosen in parts.items()})
    made.save_to_disk(tmp_path / "saved")
    for i in range(6):
        (tmp_path / f"{i}.wav").unlink()
    return tmp_path / "saved"


def test_a_saved_data_set_is_read(saved: Path, waves: list[np.ndarray], tmp_path: Path) -> None:
    corpus = get(saved, tmp_path / "cache", frames=["motion"], covariates=["speaker"], labels=["label"])
    assert {split: dataset.ids for split, dataset in corpus.datasets.items()} == {
        "train": ["n0", "n1", "n2", "n3"], "valid": ["n4"], "test": ["n5"],
    }  # fmt: skip
    assert corpus.datasets["train"].lengths("audio").tolist() == [9, 0, 25, 33]
    assert corpus.datasets["train"].lengths("text").tolist() == [4, 4, 0, 6]
    assert corpus.datasets["train"].labels == ["low", "high", "low", "high"]
    for i in (0, 2, 3):
        torch.testing.assert_close(clips(corpus)[i], corpus.front_ends["audio"].encode(waves[i]))
    rows = datasets.load_from_disk(str(saved))["train"]["motion"]
    for i in range(4):
        torch.testing.assert_close(clips(corpus, "motion")[i], corpus.front_ends["motion"].encode(np.array(rows[i])))
    other = get(saved, tmp_path / "other", frames=["motion"], workers=2)
    assert torch.equal(clips(other)[3], clips(corpus)[3])


def test_a_data_set_without_splits_is_split_by_its_column(waves: list[np.ndarray], tmp_path: Path) -> None:
    made = columns_of(tmp_path, [*range(6)]).add_column("split", SPLITS)
    made.save_to_disk(tmp_path / "saved")
    assert [row.split for row in read_source(tmp_path / "saved").rows] == SPLITS
    # a file beside the table, as `datasets` keeps it where it does not embed sounds
    columns = {"audio": [{"bytes": None, "path": str(tmp_path / "0.wav")}]}
    beside = datasets.Dataset.from_dict(columns, datasets.Features(audio=SOUND))
    beside.save_to_disk(tmp_path / "beside")
    assert read_source(tmp_path / "beside").rows[0].cells == {"audio": str(tmp_path / "0.wav")}


def test_bad_rows_of_a_data_set_are_told(waves: list[np.ndarray], tmp_path: Path) -> None:
    whole = (tmp_path / "0.wav").read_bytes()
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan], np.float32), 8000, subtype="FLOAT")
    sounds = [whole, whole[:-100], b"no sound", b"", (tmp_path / "nan.wav").read_bytes(), whole]
    motion = [[[1.0, 2.0]], [[1.0, 2.0]], [[1.0], [2.0, 3.0]], [[1.0, float("nan")]], [], [[1.0, 2.0, 3.0]]]
    columns = {"audio": [{"bytes": sound, "path": "a.wav"} for sound in sounds], "motion": motion, "names": 6 * [["x"]]}
    made = with_sounds(columns, motion=ARRAY, names=datasets.List(datasets.Value("string")))
    datasets.DatasetDict(train=made).save_to_disk(tmp_path / "saved")
    corpus = get(tmp_path / "saved", tmp_path / "cache", frames=["motion"], skip_bad=True)
    found = {problem.row: problem.problem for problem in corpus.skipped}
    for row, problem in {
        2: "audio row 2 of column 'audio': is truncated", 3: "audio row 3 of column 'audio': cannot be read as sound",
        4: "audio row 4 of column 'audio': file is empty", 5: "audio row 5 of column 'audio': holds a NaN",
        6: "motion row 6 of column 'motion': has 3 channels, the others have 2",
    }.items():  # fmt: skip
        assert problem in found[row]
    assert "motion row 3 of column 'motion': is no array [T, C], its rows differ in length" in found[3]
    assert "motion row 4 of column 'motion': frame 0 holds a NaN" in found[4]
    assert corpus.datasets["train"].ids == ["1"]
    with pytest.raises(ManifestError, match="names must be a string, is Stored"):
        get(tmp_path / "saved", tmp_path / "cache", tokens=["names"])
    with pytest.raises(ManifestError, match="no cell in column 'names' is an array"):
        get(tmp_path / "saved", tmp_path / "cache", frames=["names"])


def test_what_is_no_whole_data_set_is_refused(saved: Path, tmp_path: Path) -> None:
    made = datasets.load_from_disk(str(saved))
    datasets.DatasetDict(later=made["test"]).save_to_disk(tmp_path / "later")
    with pytest.raises(ManifestError, match="has the splits later; known are train, valid"):
        read_source(tmp_path / "later")
    for file in saved.glob("train/*.arrow"):
        file.unlink()
    with pytest.raises(ManifestError, match="is no whole data set of `datasets`"):
        read_source(saved)


@pytest.mark.parametrize("library", ["lhotse", "datasets"])
def test_the_extra_is_named_where_it_is_missing(
    library: str, saved: Path, waves: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = written(cuts_of(tmp_path, waves), tmp_path / "cuts.jsonl.gz")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mmseqvae\[data\]'"):
        read_source({"lhotse": cuts, "datasets": saved}[library])


def test_commands_take_a_saved_data_set(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_commands(saved, ["--frames", "motion", "--labels", "speaker"], tmp_path, capsys)
