"""Windows of long items: the frames of the whole, once each, with its split and labels; nothing computed anew."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmseqvae.cli.commands import main
from mmseqvae.config import LogMelConfig, WindowConfig
from mmseqvae.data import Corpus, ManifestError, prepare
from mmseqvae.data.store import extraction
from mmseqvae.data.windows import Clock, _spans
from mmseqvae.evaluation.probe import column_of
from mmseqvae.pipeline.trained_model import load
from tests.data.test_sources import TINY

CONFIG = LogMelConfig(sample_rate=8000, n_fft=256, hop_length=100, n_mels=20)  # 80 frames a second
SECONDS = [0.5, 1.0, 1.26, 2.0, 1.7, 0.9]
SPLITS = ["train", "train", "train", "train", "valid", "test"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six recordings in a table: windows of half a second leave the first whole."""
    random = np.random.default_rng(0)
    rows = [("id", "audio", "split", "label", "speaker", "weight")]
    for i, seconds in enumerate(SECONDS):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * random.standard_normal(round(8000 * seconds)), 8000)
        rows.append((f"r{i}", f"{i}.wav", SPLITS[i], ["even", "odd"][i % 2], "ab"[i % 2], str(i)))
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path


def get(source: Any, cache: Path, length: float | None = None, **options: Any) -> Corpus:
    settings = {n: options.pop(n) for n in ("hop", "least", "rates", "texts") if n in options}
    windows = WindowConfig(length, **settings)
    return prepare(source, **{"windows": windows, "audio": CONFIG, "cache_dir": cache, "workers": 0} | options)


def raw(corpus: Corpus, name: str = "audio") -> dict[str, np.ndarray]:
    """{id: frames as they lie in the cache}, of what is there."""
    found = {}
    for dataset in corpus.datasets.values():
        column = dataset.columns[name]
        for id, start, steps in zip(dataset.ids, column.starts, column.lengths, strict=True):
            if steps:
                found[id] = np.array(column.flat[start : start + steps])
    return found


def parts(found: dict[str, np.ndarray], source: str) -> list[np.ndarray]:
    return [frames for id, frames in found.items() if id.startswith(f"{source}#")]


# ------------------------------------------------------------------------------------------------- what they hold


def test_windows_one_after_another_are_the_recording(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit; and no feature is computed that the whole recordings did not need."""
    whole = raw(get(folder / "m.csv", folder / "cache"))
    monkeypatch.setattr(extraction, "_clip", lambda *_: pytest.fail("features were computed again"))
    cut = raw(get(folder / "m.csv", folder / "cache", 0.5))
    np.testing.assert_array_equal(cut["r0"], whole["r0"])
    for i, seconds in list(enumerate(SECONDS))[1:]:
        pieces = parts(cut, f"r{i}")
        assert len(pieces) == math.ceil(seconds / 0.5)
        assert all(len(piece) == 40 for piece in pieces[:-1])
        np.testing.assert_array_equal(np.concatenate(pieces), whole[f"r{i}"])


def test_windows_overlap_where_the_hop_is_shorter(folder: Path) -> None:
    whole, cut = (raw(get(folder / "m.csv", folder / "cache", *how)) for how in ((), (0.5,)))
    over = raw(get(folder / "m.csv", folder / "cache", 0.5, hop=0.2))
    frames = whole["r2"]  # 1.26 seconds: from 0, 0.2, 0.4, 0.6 and 0.8, the last one to the end
    assert [len(part) for part in parts(over, "r2")] == [40, 40, 40, 40, len(frames) - 64]
    for k, part in enumerate(parts(over, "r2")):
        np.testing.assert_array_equal(part, frames[16 * k : 16 * k + len(part)])
    assert len(parts(over, "r2")) > len(parts(cut, "r2"))


def test_a_window_has_what_its_recording_has(folder: Path) -> None:
    corpus = get(folder / "m.csv", folder / "cache", 0.5, covariates=["speaker"])
    seen: dict[str, set[str]] = {}
    for split, dataset in corpus.datasets.items():
        for place, id in enumerate(dataset.ids):
            source = id.partition("#")[0]
            seen.setdefault(source, set()).add(split)
            number = int(source[1:])
            assert dataset.labels[place] == ("even", "odd")[number % 2]
            assert dataset.weights is not None
            assert dataset.weights[place] == number
            speaker = dataset[place]["speaker"].values[0]
            assert corpus.front_ends["speaker"].decode(speaker) == "ab"[number % 2]
    assert seen == {f"r{i}": {split} for i, split in enumerate(SPLITS)}
    ids = corpus.datasets["train"].ids
    assert list(ids) == ["r0", "r1#1", "r1#2", "r2#1", "r2#2", "r2#3", "r3#1", "r3#2", "r3#3", "r3#4"]
    assert [row.id for row in corpus.manifest.rows] == [f"r{i}" for i in range(6)]
    speakers = column_of(corpus, "speaker")
    assert [speakers[id] for id in ("r0", "r3#4", "r4#1")] == ["a", "b", "a"]
    assert column_of(corpus, "label")["r5#2"] == "odd"


def test_splits_that_are_hashed_are_those_of_the_recording(tmp_path: Path) -> None:
    rows = [{"id": str(i), "move": np.full((30, 1), float(i))} for i in range(60)]
    corpus = get(rows, tmp_path, 5, frames=["move"])
    homes: dict[str, set[str]] = {}
    for split, dataset in corpus.datasets.items():
        for id in dataset.ids:
            homes.setdefault(id.partition("#")[0], set()).add(split)
    assert all(len(home) == 1 for home in homes.values())
    assert {split for (split,) in homes.values()} == {"train", "valid", "test"}


def test_a_short_rest_is_left_out(folder: Path) -> None:
    cut = raw(get(folder / "m.csv", folder / "cache", 0.5, least=0.3))
    assert [len(parts(cut, f"r{i}")) for i in range(1, 6)] == [2, 2, 4, 3, 2]  # of 1.26 and 1.7 seconds 0.26 and 0.2
    assert max(map(len, cut.values())) == 41


def test_a_kept_corpus_opens_with_its_windows(folder: Path) -> None:
    first, again = (get(folder / "m.csv", folder / "cache", 0.5, hop=0.2) for _ in range(2))
    assert raw(first).keys() == raw(again).keys()
    assert again.windows == WindowConfig(0.5, 0.2)
    assert "windows: of 0.5 seconds, one every 0.2" in again.summary()
    assert raw(get(folder / "m.csv", folder / "cache")).keys() == {f"r{i}" for i in range(6)}


@given(
    steps=st.integers(2, 400), length=st.floats(0.3, 3), share=st.floats(0.2, 1),
    rate=st.sampled_from([30.0, 44.1, 80.0]), edge=st.booleans(),
)  # fmt: skip
def test_every_step_lies_in_a_window(steps: int, length: float, share: float, rate: float, edge: bool) -> None:
    """And in one only where the hop is the length; none is longer than it should be."""
    clock = Clock(rate, edge)
    for hop in (length, share * length):
        if clock.seconds(steps) <= length:
            continue
        spans = list(_spans(clock.seconds(steps), {"x": steps}, {"x": clock}, WindowConfig(length, hop)))
        times = np.zeros(steps, int)
        for span in spans:
            if span:
                times[span["x"][0] : sum(span["x"])] += 1
        assert times.min() >= 1
        assert times.max() == 1 or hop < length
        assert max(span["x"][1] for span in spans if span) <= length * rate + 1 + edge
        assert len(spans) == 1 + math.ceil((clock.seconds(steps) - length) / hop - 1e-9)


# ------------------------------------------------------------------------------------------------- several columns


def test_columns_are_cut_at_the_same_times(tmp_path: Path) -> None:
    """Sound at 80 frames a second, video at 25, which ends before, and one vector without time."""
    random = np.random.default_rng(0)
    video, still = random.normal(size=(27, 2)), random.normal(size=(1, 3))
    wave = 0.1 * random.standard_normal(12000)
    rows = [{"id": "a", "audio": (wave, 8000), "video": video, "still": still, "mood": "sad", "split": "train"}]
    rates = {"video": 25.0, "still": 0.0}
    corpus = get(rows, tmp_path, 0.4, rates=rates, frames=["video", "still"], labels=["mood"])
    dataset = corpus.datasets["train"]
    assert dataset.ids == ["a#1", "a#2", "a#3", "a#4"]
    assert dataset.lengths("audio").tolist() == [32, 32, 32, 121 - 96]
    assert dataset.lengths("video").tolist() == [10, 10, 7, 0]
    np.testing.assert_allclose(np.concatenate(parts(raw(corpus, "video"), "a")), video, rtol=1e-6)
    assert dataset.lengths("still").tolist() == [1, 1, 1, 1]
    assert dataset.lengths("mood").tolist() == 4 * [dataset.lengths("mood")[0]]
    again = get(rows, tmp_path, 0.4, rates=rates, front_ends=corpus.front_ends, audio=None)
    assert again.datasets["train"].ids == dataset.ids


def test_without_sound_a_step_is_a_second_and_blank_windows_are_left_out(tmp_path: Path) -> None:
    move = np.arange(22.0).reshape(11, 2)
    move[5:8] = np.nan
    rows = [{"id": "a", "move": move, "split": "train"}]
    dataset = get(rows, tmp_path, 3, frames=["move"]).datasets["train"]
    assert dataset.ids == ["a#1", "a#2", "a#3", "a#4"]
    assert dataset.lengths("move").tolist() == [3, 3, 3, 2]
    move[8] = np.nan
    assert get(rows, tmp_path, 3, frames=["move"]).datasets["train"].ids == ["a#1", "a#2", "a#4"]


# ------------------------------------------------------------------------------------------------- texts


def spoken(folder: Path) -> list[dict[str, Any]]:
    return [
        {"id": f"r{i}", "audio": str(folder / f"{i}.wav"), "text": "short" if i == 0 else "a long text", "split": split}
        for i, split in enumerate(SPLITS)
    ]


def test_a_text_is_refused_dropped_or_kept(folder: Path) -> None:
    with pytest.raises(ManifestError, match=r"item 2 \(id r1\): text covers all of its 1 seconds.*a window of 0\.5 is"):
        get(spoken(folder), folder / "cache", 0.5)
    dropped = get(spoken(folder), folder / "cache", 0.5, texts="drop").datasets["train"]
    assert [int(n) for n in dropped.lengths("text") > 0] == [1] + 9 * [0]
    assert dropped.lengths("audio").min() > 0
    kept = get(spoken(folder), folder / "cache", 0.5, texts="keep")
    texts = kept.datasets["valid"].__getitems__(range(4))["text"].items()
    assert [kept.front_ends["text"].decode(text) for text in texts] == 4 * ["a long text"]
    skipped = get(spoken(folder), folder / "cache", 0.5, skip_bad=True)
    assert [problem.id for problem in skipped.skipped] == [f"r{i}" for i in range(1, 6)]


# ------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0.0}, "windows.length must be above 0"),
        ({"length": math.nan}, "windows.length must be above 0"),
        ({"length": 1.0, "hop": 0.0}, "windows.hop must be above 0"),
        ({"length": 1.0, "hop": 1.5}, "at most windows.length, 1 seconds.*got 1.5"),
        ({"length": 1.0, "least": 2.0}, "windows.least must lie in 0..1"),
        ({"length": 1.0, "rates": {"video": -1.0}}, "windows.rates are steps a second"),
        ({"length": 1.0, "texts": "cut"}, "windows.texts must be refuse, drop or keep"),
        ({"hop": 1.0}, "windows.length, in seconds, must be given"),
    ],
)
def test_settings_that_do_not_fit_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowConfig(**settings)


def test_windows_that_do_not_fit_the_data_are_told(folder: Path) -> None:
    cache, move = folder / "cache", np.zeros((9, 1))
    with pytest.raises(ManifestError, match=r"m\.csv: no item is longer than windows\.length, 7 seconds"):
        get(folder / "m.csv", cache, 7)
    with pytest.raises(ManifestError, match=r"windows every 0\.001 seconds are less than a step"):
        get(folder / "m.csv", cache, 0.5, hop=0.001)
    with pytest.raises(ManifestError, match=r"windows\.rates name video, which are no columns of frames"):
        get(folder / "m.csv", cache, 0.5, rates={"video": 25.0})
    with pytest.raises(ManifestError, match="steps a second of move, since those of other columns are known"):
        get([{"audio": str(folder / "1.wav"), "move": move, "split": "train"}], cache, 0.5, frames=["move"])
    with pytest.raises(ManifestError, match="windows are for recordings and other frames, and there are none"):
        get([{"text": "a", "split": "train"}], cache, 0.5)
    rows = [{"id": name, "move": move, "split": "train"} for name in ("a", "a#2")]
    with pytest.raises(ManifestError, match=r"item 1 \(id a\): the id of its window a#2 is that of another row"):
        get(rows, cache, 5, frames=["move"])


# ------------------------------------------------------------------------------------------------- commands


def test_a_run_cuts_what_it_is_shown_as_it_was_trained(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, cache = str(tmp_path / "run"), ["--cache-dir", str(tmp_path / "cache")]
    source = str(folder / "m.csv")
    main(["train", source, "--out", run, *cache, *TINY, "--windows.length=0.5", "--windows.hop=0.25"])
    assert load(run).windows == WindowConfig(0.5, 0.25)
    assert json.loads(Path(run, "metrics.json").read_text())["test"]["items"] == 3  # of 0.9 seconds
    capsys.readouterr()
    main(["evaluate", run, source, "--draws=2", *cache])
    assert json.loads(capsys.readouterr().out)["items"] == 3
    main(["embed", run, source, "--out", str(tmp_path / "z.npz"), *cache])
    with np.load(tmp_path / "z.npz") as arrays:
        ids = arrays["ids"].tolist()
    assert len(ids) == len(set(ids)) == 1 + 3 + 4 + 7 + 6 + 3
    assert "r5#3" in ids
    short = [{"audio": (np.ones(800), 8000), "split": "test"}]  # nothing is cut, and nobody minds
    assert len(prepare(short, front_ends=load(run).front_ends, windows=load(run).windows).datasets["test"]) == 1
    with pytest.raises(SystemExit):
        main(["train", source, "--out", run, *cache, *TINY, "--windows.length=0.5"])
    assert "other settings or data" in capsys.readouterr().err


def test_reading_is_the_same_for_all_windows(folder: Path) -> None:
    """What is standardised by is taken from the windows of the split train, which here are all its frames once."""
    whole, cut = get(folder / "m.csv", folder / "cache"), get(folder / "m.csv", folder / "cache", 0.5)
    one, other = (corpus.front_ends["audio"].fitted for corpus in (whole, cut))
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.std, other.std)
