import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmseqvae.config import LogMelConfig
from mmseqvae.data import Corpus, ManifestError, decode_items, encode_items, front_end_from_dict, make_loader, prepare
from mmseqvae.data.manifest import hashed_split
from mmseqvae.features.arrays import FrameArrays
from mmseqvae.features.log_mel import LogMel, write_audio
from mmseqvae.tokenizers.characters import Tokenizer

CONFIG = LogMelConfig(sample_rate=8000, n_fft=256, hop_length=100, n_mels=40)
WORDS = ["zero", "one", "two", "three", "four", "五"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six recordings of growing length, arrays [T, 3]; item 1 has no audio, item 2 no text, item 5 is a test."""
    rng = np.random.default_rng(0)
    rows = []
    for i, word in enumerate(WORDS):
        write_audio(tmp_path / f"{i}.wav", 0.1 * rng.standard_normal(500 * (i + 1)), 8000)
        np.save(tmp_path / f"{i}.npy", rng.normal(i, 2, (i + 1, 3)))
        split = ["train", "train", "train", "train", "valid", "test"][i]
        audio, text = "" if i == 1 else f"{i}.wav", "" if i == 2 else word
        rows.append(
            {
                "id": f"n{i}",
                "audio": audio,
                "text": text,
                "video": f"{i}.npy",
                "label": i % 2,
                "mood": "",
                "split": split,
            }
        )
    table(tmp_path, rows)
    return tmp_path


def table(folder: Path, rows: list[dict[str, object]], name: str = "m.csv") -> Path:
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def edit(folder: Path, name: str = "edited.csv", drop: tuple[str, ...] = (), **cells: str) -> Path:
    """A copy of the manifest with columns dropped and cells `columnN="new"` changed."""
    with (folder / "m.csv").open(encoding="utf-8") as file:
        rows: list[dict[str, object]] = [dict(row) for row in csv.DictReader(file)]
    for place, value in cells.items():
        rows[int(place[-1])][place[:-1]] = value
    return table(folder, [{k: v for k, v in row.items() if k not in drop} for row in rows], name)


def get(folder: Path, manifest: str | Path = "m.csv", **options: object) -> Corpus:
    settings = {"audio": CONFIG, "cache_dir": folder / "cache", "frames": ["video"], "workers": 0} | options
    return prepare(folder / manifest, **settings)


def test_front_ends_are_fitted_on_training_rows_only(folder: Path) -> None:
    corpus = get(folder)
    assert list(corpus.front_ends) == ["text", "audio", "video"]
    text, audio, video = corpus.front_ends.values()
    assert isinstance(text, Tokenizer)
    assert isinstance(audio, LogMel)
    assert isinstance(video, FrameArrays)
    assert set(text.symbols[2:]) == set("zeroonethree")
    frames = np.concatenate([LogMel(CONFIG).read(folder / f"{i}.wav").numpy() for i in (0, 2, 3)])
    np.testing.assert_allclose(audio.fitted.mean, frames.mean(0), rtol=1e-5)
    np.testing.assert_allclose(audio.fitted.std, frames.std(0), rtol=1e-4)
    arrays = np.concatenate([np.load(folder / f"{i}.npy") for i in range(4)])
    np.testing.assert_allclose(video.fitted.mean, arrays.mean(0), rtol=1e-5)


def test_datasets_hold_what_the_front_ends_encode(folder: Path) -> None:
    corpus = get(folder)
    train = corpus.datasets["train"]
    assert train.ids == ["n0", "n1", "n2", "n3"]
    assert train.labels == ["0", "1", "0", "1"]
    assert train.lengths("text").tolist() == [5, 4, 0, 6]
    assert train.lengths("audio").tolist() == [6, 0, 16, 21]
    (batch,) = make_loader(train, 4, shuffle=False)
    again = encode_items(
        corpus.front_ends,
        [
            {"text": "" if i == 2 else WORDS[i], "audio": folder / f"{i}.wav", "video": np.load(folder / f"{i}.npy")}
            | ({"audio": None} if i == 1 else {})
            | ({"text": None} if i == 2 else {})
            for i in range(4)
        ],
    )
    for name, sequence in batch.items():
        assert sequence.lengths.tolist() == again[name].lengths.tolist()
        for item, other in zip(sequence.items(), again[name].items(), strict=True):
            torch.testing.assert_close(item, other)


def test_summary_counts_missing_unused_and_unknown(folder: Path) -> None:
    corpus = get(folder, frames=[])
    assert corpus.summary() == [
        "train: 4 items; text 3 (1 missing), audio 3 (1 missing)",
        "valid: 1 items; text 1, audio 1",
        "test: 1 items; text 1, audio 1",
        "unused columns: video, mood",
        "text: 3 unknown symbols, 3 different ('f' 1, 'u' 1, '五' 1)",
    ]
    ids = corpus.datasets["test"][0]["text"].values[0]
    text = corpus.front_ends["text"]
    assert isinstance(text, Tokenizer)
    assert ids.tolist() == [text.unknown_id, text.end_id]


def test_splits_that_no_id_fell_into_are_told(tmp_path: Path) -> None:
    """Of so few items 5 % are often none; where a column chose so, nothing is said."""
    ids = [f"item{i}" for i in range(3)]
    assert {hashed_split(id) for id in ids} == {"train"}
    hint = "no id fell into valid and test: a column split (train, valid, test) chooses instead"
    for split, told in (("", True), ("train", True), ("valid", False)):
        rows = "".join(f"{id},some words,{split if id == 'item0' else ''}\n" for id in ids)
        (tmp_path / "m.csv").write_text("id,text,split\n" + rows)
        corpus = prepare(tmp_path / "m.csv", cache_dir=tmp_path / "cache")
        assert (hint in corpus.summary()) == told


def test_a_table_of_which_only_sound_is_read_says_how_to_read_texts(folder: Path) -> None:
    corpus = get(folder, edit(folder, drop=("text",)), frames=[], skip_bad=True)
    hint = "unused columns: video, mood (nothing but sound is modelled: --tokens NAME reads a column as text)"
    assert hint in corpus.summary()


def test_a_trained_runs_front_ends_are_used_as_they_are(folder: Path) -> None:
    trained = get(folder).front_ends
    front_ends = {name: front_end_from_dict(front_end.to_dict()) for name, front_end in trained.items()}
    later = edit(folder, drop=("text", "split"), audio0="")
    corpus = prepare(later, front_ends=front_ends, cache_dir=folder / "cache")
    assert {name: front_end.to_dict() for name, front_end in corpus.front_ends.items()} == {
        name: front_end.to_dict() for name, front_end in trained.items()
    }
    for dataset in corpus.datasets.values():
        assert not dataset.lengths("text").any()
        if len(dataset):
            batch = dataset.__getitems__(range(len(dataset)))
            assert list(batch) == ["text", "audio", "video"]
            assert batch["text"].values.dtype == torch.long
            assert not batch["text"].present.any()
    without_audio = prepare(edit(folder, drop=("audio",)), front_ends=front_ends, cache_dir=folder / "cache")
    assert without_audio.datasets["train"].__getitems__([0, 1])["audio"].values.shape == (2, 0, 40)
    only_test = prepare(
        edit(folder, **{f"split{i}": "test" for i in range(6)}), front_ends=front_ends, cache_dir=folder / "cache"
    )
    assert [len(dataset) for dataset in only_test.datasets.values()] == [0, 0, 6]
    with pytest.raises(ValueError, match="pass one or the other"):
        prepare(later, front_ends=front_ends, audio=CONFIG)


def test_labels_can_be_a_modality(folder: Path) -> None:
    corpus = get(folder, tokens=["label"])
    assert corpus.datasets["train"].lengths("label").tolist() == [2, 2, 2, 2]
    assert corpus.datasets["train"].labels == ["0", "1", "0", "1"]


def test_bad_files_stop_before_training_or_are_skipped(folder: Path) -> None:
    whole = (folder / "3.wav").read_bytes()
    (folder / "3.wav").write_bytes(whole[: len(whole) // 2])
    soundfile.write(folder / "4.wav", np.array([0, np.inf], np.float32), 8000, subtype="FLOAT")
    np.save(folder / "5.npy", np.zeros((2, 4)))
    soundfile.write(folder / "2.wav", np.full(900, 1e20, np.float32), 8000, subtype="FLOAT")
    expected = {
        4: ("n2", f"audio {folder / '2.wav'}: samples of up to 1e+20 are too large"),
        5: ("n3", f"audio {folder / '3.wav'}: is truncated"),
        6: ("n4", f"audio {folder / '4.wav'}: holds a NaN or infinity"),
        7: ("n5", f"video {folder / '5.npy'}: has 4 channels, the others have 3"),
    }
    with pytest.raises(ManifestError) as error:
        get(folder)
    for row, (name, problem) in expected.items():
        assert f"line {row} (id {name}): {problem}" in str(error.value)
    corpus = get(folder, skip_bad=True)
    assert [problem.row for problem in corpus.skipped] == list(expected)
    for problem in corpus.skipped:
        assert problem.id == expected[problem.row][0]
        assert problem.problem.startswith(expected[problem.row][1])
    assert [dataset.ids for dataset in corpus.datasets.values()] == [["n0", "n1"], [], []]
    assert "skipped: 4 bad rows" in corpus.summary()


def test_bad_rows_of_the_manifest_stop_before_any_file_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = edit(folder, audio3="gone.wav", id4="n0")
    with monkeypatch.context() as patch:
        patch.setattr("mmseqvae.data.corpus_from_manifest.digests", None)  # would raise TypeError
        with pytest.raises(
            ManifestError, match=r"(?s)2 row\(s\).*line 5 \(id n3\).*gone\.wav.*line 6 \(id n0\).*line 2"
        ):
            get(folder, manifest)
    corpus = get(folder, manifest, skip_bad=True)
    assert [(problem.row, problem.id) for problem in corpus.skipped] == [(5, "n3"), (6, "n0")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": ["video", "smell"]}, "no column 'smell'"),
        ({"tokens": ["video"]}, "column 'video' cannot be both tokens and frames"),
        ({"tokens": ["id"]}, "column 'id' cannot be a modality or covariate"),
        ({"tokens": "mood"}, "lists of column names"),
        ({"tokens": ["mood"]}, "column 'mood' is empty in every row of the split train"),
        ({"frames": ["text"]}, "file is missing"),
        ({"frames": ["audio"]}, "no cell in column 'audio' is an array"),
        ({"audio": LogMelConfig(n_fft=256, hop_length=100, n_mels=128)}, "lower n_mels"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get(folder, **options)


def test_no_training_rows_and_no_usable_rows_are_told(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmseqvae.data.corpus_from_manifest.digests", None)  # would raise TypeError: no file is read
        with pytest.raises(ManifestError, match="no row is in the split train"):
            get(folder, edit(folder, **{f"split{i}": "test" for i in range(6)}))
    with pytest.raises(ManifestError, match=r"edited\.csv: 6 row\(s\) cannot be used"):
        get(folder, edit(folder, **{f"split{i}": "later" for i in range(6)}), skip_bad=True)
    for i in range(6):
        (folder / f"{i}.wav").write_text("no sound")
    with pytest.raises(ManifestError, match=r"edited\.csv: 6 row\(s\) cannot be used"):
        get(folder, edit(folder, drop=("text",), audio1="1.wav"), frames=[], skip_bad=True)


def test_items_are_encoded_from_memory_and_decoded_to_user_units(folder: Path) -> None:
    front_ends = get(folder).front_ends
    wave = soundfile.read(folder / "3.wav", dtype="float32")[0]
    batch = encode_items(front_ends, [{"text": "one"}, {"audio": wave, "video": np.ones((2, 3))}])
    assert {name: sequence.lengths.tolist() for name, sequence in batch.items()} == {
        "text": [4, 0],
        "audio": [0, 21],
        "video": [0, 2],
    }
    from_file = encode_items(front_ends, [{"audio": folder / "3.wav"}])
    assert torch.equal(from_file["audio"].items()[0], batch["audio"].items()[1])
    decoded = decode_items(front_ends, batch)
    assert decoded["text"] == ["one", None]
    assert decoded["audio"][0] is None
    assert len(decoded["audio"][1]) == pytest.approx(len(wave), abs=100)
    np.testing.assert_allclose(decoded["video"][1], np.ones((2, 3)), rtol=1e-5)
    with pytest.raises(ValueError, match=r"\['odour'\] are no modalities"):
        encode_items(front_ends, [{"odour": "rose"}])
    with pytest.raises(TypeError, match="must be a string, got int"):
        encode_items(front_ends, [{"text": 7}])
