"""Small made recordings in the layouts of published corpora, for the recipes: tones whose pitch tells the word."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

RATE = 16000
WORDS = ("yes", "no", "stop")
SPEECH = ("recipes.clotho", "recipes.ljspeech", "recipes.speech_commands", "recipes.spoken_numbers")


def tone(path: Path, pitch: float, seconds: float, random: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * RATE)) / RATE
    wave = 0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * random.standard_normal(len(time))
    soundfile.write(path, wave, RATE)


def commands(folder: Path, words: tuple[str, ...] = WORDS[:2], speakers: int = 8, takes: int = 2) -> Path:
    """As Speech Commands: a folder a word, <speaker>_nohash_<take>.wav, two lists, noise that is no word."""
    random = np.random.default_rng(0)
    names = [f"{word}/{speaker:08x}_nohash_{take}.wav" for word in words for speaker in range(speakers)
             for take in range(takes)]  # fmt: skip
    for name in names:
        pitch = 400 + 600 * words.index(name.partition("/")[0])
        tone(folder / name, pitch, random.uniform(0.1, 0.2), random)
    tone(folder / "_background_noise_" / "pink_noise.wav", 50, 0.3, random)
    (folder / "validation_list.txt").write_text("".join(f"{name}\n" for name in names if "00000001_" in name))
    (folder / "testing_list.txt").write_text("".join(f"{name}\n" for name in names if "00000002_" in name))
    return folder


def sentences(folder: Path, number: int = 52) -> Path:
    """As LJ Speech: metadata.csv with id|transcript|normalised transcript, quotes that quote nothing, and wavs/."""
    random = np.random.default_rng(0)
    lines = []
    for i in range(number):
        words = [WORDS[int(k)] for k in random.integers(len(WORDS), size=1 + i % 7)]
        tone(folder / "wavs" / f"LJ001-{i:04}.wav", 300 + 50 * len(words), 0.1 + 0.05 * len(words), random)
        lines.append(f'LJ001-{i:04}|"{" ".join(words)} No. {i}|"{" ".join(words)} number\n')
    tone(folder / "wavs" / "LJ002-0001.wav", 300, 2.5, random)
    lines.append("LJ002-0001|too long|too long\n")
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    return folder


def captioned(folder: Path) -> Path:
    """As Clotho: clotho_captions_<part>.csv with a file name and five captions, beside a folder a part."""
    random = np.random.default_rng(0)
    for part, number in (("development", 6), ("validation", 2), ("evaluation", 3)):
        lines = ["file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"]
        for i in range(number):
            kind = "dog" if i % 2 else "bell"
            name = f"a {kind}, {i}.wav"
            tone(folder / part / name, 500 + 800 * (i % 2), 0.5 + 0.1 * i, random)
            lines.append(f'"{name}",' + ",".join(f'"A {kind} is heard, loudly."' for _ in range(5)) + "\n")
        (folder / f"clotho_captions_{part}.csv").write_text("".join(lines), encoding="utf-8")
    return folder


def labelled(folder: Path) -> Path:
    """Folders of sounds that are named by their label."""
    random = np.random.default_rng(0)
    for label in ("dog", "rain"):
        for i in range(12):
            tone(folder / label / f"{i:02}.wav", 500 if label == "dog" else 1500, 0.4, random)
    return folder


def few_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spoken numbers below 106, by one voice, of which two are held out, and one more where settings are chosen."""
    from recipes import spoken_numbers as recipe

    few = {name: recipe.Language(language.spell, language.voices[:1]) for name, language in recipe.LANGUAGES.items()}
    for name, value in {
        "LANGUAGES": few,
        "NUMBERS": 106,
        "TESTED": 2,
        "VALIDATED": 1,
        "TAKES": 1,
        "JUDGE_EPOCHS": 1,
    }.items():
        monkeypatch.setattr(recipe, name, value)


def recipes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], dict[str, Any]]]:
    """Recipe -> what makes its data and returns the arguments with which it runs on them."""

    def numbers() -> dict[str, Any]:
        few_numbers(monkeypatch)
        return {"language": "en"}

    return {
        "recipes.speech_commands": lambda: {"data_dir": commands(folder / "commands"), "draws": 2},
        "recipes.ljspeech": lambda: {"data_dir": sentences(folder / "sentences"), "seconds": 2.0},
        "recipes.clotho": lambda: {"data_dir": captioned(folder / "clotho")},
        "recipes.spoken_numbers": numbers,
    }
