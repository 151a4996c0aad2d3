"""Every recipe, found by glob, runs from made-up recordings to its run directory in two steps, and again from there."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.made_texts import poems, requests_as_published
from tests.speech import SPEECH
from tests.two_steps import TINY, runs_and_runs_again

FOUND = [f"recipes.{path.stem}" for path in sorted(Path(__file__).parents[2].glob("recipes/[a-z]*.py"))]
RECIPES = [name for name in FOUND if name not in SPEECH]  # those run in test_speech_recipes.py


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, object]]:
    """Recipe -> the arguments with which it runs on data made here."""
    from recipes import chorales, series, spoken_digits

    monkeypatch.setattr(series, "SPIRALS", 40)
    monkeypatch.setattr(series, "TRAIN", 28)
    (tmp_path / "jsb").mkdir()
    (tmp_path / "jsb" / chorales.NAME).write_text(json.dumps(chorales.made(0, 40, 12)))

    folder = tmp_path / "recordings"
    folder.mkdir()
    random = np.random.default_rng(0)
    for digit in range(3):
        for speaker in ("ann", "bob"):
            for take in range(9):
                time = np.arange(int(random.integers(900, 1400))) / 8000
                wave = 0.3 * np.sin(2 * np.pi * (300 + 700 * digit) * time) + 0.01 * random.standard_normal(len(time))
                soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", wave, 8000)
    sums = tmp_path / "sums"
    files = sorted(folder.iterdir())
    sums.write_text("".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files))
    monkeypatch.setattr(spoken_digits, "FSDD_SUMS", sums)
    return {
        "recipes.typed_requests": {"data_dir": requests_as_published(tmp_path / "requests"), "draws": 3, "samples": 2},
        "recipes.text_sentences": {"text": poems(tmp_path / "poems"), "units": "characters", "draws": 3},
        "recipes.spoken_digits": {"source": "fsdd", "data_dir": folder, "draws": 2, "pairs": 3},
        "recipes.series": {"missing": 0.2, "samples": 4, "proposals": 2},
        "recipes.video": {"items": 100, "draws": 2},
        "recipes.chorales": {
            "data_dir": tmp_path / "jsb", "draws": 2, "model": replace(TINY, likelihood="bernoulli")
        },
    }  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_two_steps_of_every_recipe(
    name: str,
    made: dict[str, dict[str, object]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert name in made, f"{name} needs data made in this test"
    runs_and_runs_again(name, made[name], tmp_path, capsys)


def frame_features(folder: Path) -> Path:
    """40 .npy files with texts; the hash of their names leaves few to test on."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(40):
        np.save(folder / f"{i}.npy", random.standard_normal((5 + i % 4, 3)).astype(np.float32) + i % 2)
        (folder / f"{i}.txt").write_text("ab" if i % 2 else "ba")
    return folder


def test_two_steps_of_video_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs_and_runs_again("recipes.video", {"data_dir": frame_features(tmp_path / "clips"), "draws": 2}, tmp_path, capsys)


def test_a_text_of_another_encoding_is_named(tmp_path: Path) -> None:
    from recipes import video

    folder = frame_features(tmp_path / "clips")
    (folder / "7.txt").write_bytes("été".encode("latin-1"))
    with pytest.raises(ValueError, match=r"7.txt is not UTF-8 text"):
        video.main(folder, out=tmp_path / "run", cache_dir=tmp_path / "cache")


def test_judges_are_measured_on_what_they_did_not_learn_from(
    made: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    from mmseqvae.data import prepare
    from mmseqvae.evaluation.judges.speech_judges import speech_judges
    from recipes import spoken_digits

    manifest = spoken_digits.prepare_fsdd(tmp_path / "cache", made["recipes.spoken_digits"]["data_dir"])  # type: ignore[arg-type]
    corpus = prepare(manifest, audio=spoken_digits.AUDIO, cache_dir=tmp_path / "cache")
    train, test = corpus.datasets["train"], corpus.datasets["test"]
    voices = {id: id.split("_")[1] for id in [*train.ids, *test.ids]}
    known = speech_judges(corpus, voices, "test", tmp_path / "cache", progress=False)
    assert known.accuracy["word"]["wav"]["of"] == known.accuracy["speaker"]["log_mel"]["of"] == len(test)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "judges").rglob("*")}
    speech_judges(corpus, voices, "test", tmp_path / "cache", progress=False)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "judges").rglob("*")} == kept

    strangers = voices | {id: f"new {voices[id]}" for id in test.ids}
    found = speech_judges(corpus, strangers, "test", tmp_path / "cache", progress=False)
    assert found.accuracy["word"] == known.accuracy["word"]
    assert found.accuracy["speaker"]["log_mel"]["of"] == len(train) // 6
    assert "training voices" in found.accuracy["speaker"]["on"]
    assert found.speaker.classes == ["ann", "bob"]
