"""Spoken digits: say a typed word, write down a heard one, invent matching pairs.

    python -m recipes.spoken_digits                       # synthetic voices, nothing to download
    python -m recipes.spoken_digits --source fsdd         # the Free Spoken Digit Dataset, CC BY-SA 4.0, 16 MB
    python -m recipes.spoken_digits --source fsdd --data-dir DIR

Both sources give 2,700 recordings to train on and 300 to test on, as mono WAVs of 8 kHz beside a manifest
(id, audio, text, split, label, speaker). `--holdout` keeps 300 of the 2,700 back as split `valid` while settings are
chosen; without it they train, as in the published figures.

Measured on fsdd, medians of seeds 0, 1, 2, 2026-11-26
(`python -m benchmarks.quality.spoken_digits --source fsdd --data-dir DIR`):
says a typed word .990 with diversity .89, writes a heard word .993, repeats a heard word .993; matching pairs .996
under the prior learnt with the model, .987 under the fitted one. 6 to 8 minutes of training on one thread.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmseqvae.config import CACHE_DIR, LogMelConfig, ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.data.download import download, extract, verify
from mmseqvae.distributed import by_first
from mmseqvae.features.espeak import FORMAT, Utterance, synthesise
from mmseqvae.files import write_csv, write_text

if TYPE_CHECKING:
    from mmseqvae.data import Corpus
    from mmseqvae.evaluation.judges.speech_judges import SpeechJudges
    from mmseqvae.pipeline.trained_model import Trained

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# ---------------------------------------------------------------------------------------------------- data: synth

# A voice is an accent and a variant (a vocal tract). Of espeak-ng's 104 variants these are the ones that a recogniser
# with a digit grammar (pocketsphinx, full-band audio, chance 0.1) hears right at least three times in four, over 140
# words in the seven accents; left out are whispers (also caleb), robots, near-copies of others (klatt4, steph2, ...)
# and West Midlands, the accent heard right least often (0.64; the others 0.73 to 0.84). Test variants train nothing.
ACCENTS = ("en-us", "en", "en-029", "en-GB-scotland", "en-GB-x-gbclan", "en-GB-x-rp", "en-US-nyc")
TRAIN_HIGH = ("f2", "f5", "anika", "belinda", "aunty", "linda", "grandma")
TRAIN_LOW = (
    "m1", "m2", "m3", "m6", "m7", "m8", "Alex", "Andy", "Diogo", "Hugo", "miguel", "croak", "grandpa", "john", "Mike",
    "max", "sandro", "edward", "Reed", "klatt3", "Nguyen", "Storm", "robert", "paul", "victor", "Mario", "iven4",
    "antonio", "rob", "Jacky", "quincy",
)  # fmt: skip
TEST_HIGH = ("f3", "steph")
TEST_LOW = ("m4", "m5", "Gene", "ed", "pablo", "Denis")


def voices(high: tuple[str, ...], low: tuple[str, ...]) -> list[str]:
    """Each high variant in two accents, since they are few, and each low one in one; accents are taken in turn."""
    rounds = ((high, 0), (high, 3), (low, 0))  # variants, and the accent that the first of them gets
    return [
        f"{ACCENTS[(first + place) % len(ACCENTS)]}+{variant}"
        for variants, first in rounds
        for place, variant in enumerate(variants)
    ]


TRAIN_VOICES = voices(TRAIN_HIGH, TRAIN_LOW)  # 45
TEST_VOICES = voices(TEST_HIGH, TEST_LOW)  # 10
TRAIN_TAKES, TEST_TAKES = 6, 3  # recordings of a digit by a voice: 45 x 6 x 10 = 2,700 and 10 x 3 x 10 = 300


def utterances(seed: int) -> dict[str, Utterance]:
    """What is to be spoken, by id "<digit>_<voice>_<take>"; speeds and pitches are drawn anew for every recording."""
    generator = np.random.default_rng(seed)
    spoken = [(voice, take) for voice in TRAIN_VOICES for take in range(TRAIN_TAKES)]
    spoken += [(voice, take) for voice in TEST_VOICES for take in range(TEST_TAKES)]
    return {
        f"{digit}_{voice}_{take}": Utterance(
            word, voice, speed=int(generator.integers(110, 181)), pitch=int(generator.integers(30, 71))
        )
        for voice, take in spoken
        for digit, word in enumerate(WORDS)
    }


def prepare_synth(folder: Path, seed: int = 0, holdout: bool = False) -> Path:
    """Speak the digits into a folder of their own in `folder`, unless they are there; return the manifest's path."""
    plan = utterances(seed)
    spoken = {id: asdict(utterance) for id, utterance in plan.items()}
    content = json.dumps({"format": FORMAT, "utterances": spoken}, indent=0)
    folder = folder / f"digits-synth-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    audio = [folder / "recordings" / f"{id}.wav" for id in plan]
    done = folder / "utterances.json"  # written last: where it is, every recording was made
    if not (done.exists() and all(path.exists() for path in audio)):
        synthesise(plan, folder / "recordings")
        write_text(done, content)

    def split(voice: str, take: int) -> str:
        # Validation is the first take of two training voices in three: 30 voices x 10 digits.
        if voice in TEST_VOICES:
            return "test"
        return "valid" if holdout and take == 0 and TRAIN_VOICES.index(voice) % 3 < 2 else "train"

    return write_manifest(folder, audio, split, holdout)


# ----------------------------------------------------------------------------------------------------- data: fsdd

# The archive is packed anew for each download, so its own digest may change; every recording in it is checked instead.
FSDD_URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"
FSDD_SUMS = Path(__file__).with_name("fsdd.sha256")


def prepare_fsdd(folder: Path, data_dir: Path | None = None, holdout: bool = False) -> Path:
    """Check the recordings in `data_dir` (or its "recordings") or download them; return the manifest's path.

    Test is index 0 to 4 of each digit and speaker, as its authors split it; `holdout` makes 5 to 9 the validation set.
    Raises ValueError where a recording is missing or is not the one published.
    """
    folder = folder / "fsdd"
    if data_dir is not None:
        if not data_dir.is_dir():
            raise FileNotFoundError(f"--data-dir {data_dir}: no such folder")
        recordings = data_dir / "recordings" if (data_dir / "recordings").is_dir() else data_dir
        recordings = recordings.resolve()
    else:
        unpacked = folder / "v1.0.10"
        if not unpacked.exists():
            archive = download(FSDD_URL, folder / "v1.0.10.tar.gz")
            extract(archive, unpacked)
            archive.unlink()
        recordings = unpacked / "free-spoken-digit-dataset-1.0.10" / "recordings"
    audio = [recordings / name for name in verify(recordings, FSDD_SUMS)]
    validation = range(5, 10) if holdout else ()
    return write_manifest(
        folder, audio, lambda _, take: "test" if take < 5 else "valid" if take in validation else "train", holdout
    )


# ------------------------------------------------------------------------------------------------------ manifest


def write_manifest(folder: Path, audio: list[Path], split: Callable[[str, int], str], holdout: bool) -> Path:
    """List recordings named <digit>_<speaker>_<take>.wav; `split` names the part of a speaker and a take."""
    table = [("id", "audio", "text", "split", "label", "speaker")]
    for path in audio:
        digit, speaker, take = path.stem.split("_")
        # Relative where the audio lies beside the manifest, so that the folder can be moved.
        where = path.relative_to(folder) if path.is_relative_to(folder) else path
        table.append((path.stem, where.as_posix(), WORDS[int(digit)], split(speaker, int(take)), digit, speaker))
    return write_csv(folder / ("manifest-holdout.csv" if holdout else "manifest.csv"), table)


# ------------------------------------------------------------------------------------ model, training, evaluation

AUDIO = LogMelConfig(sample_rate=8000, n_fft=256, hop_length=100, n_mels=40)
MODEL, OBJECTIVE, TRAINING = ModelConfig(), ObjectiveConfig(), TrainingConfig()


def main(
    source: Literal["synth", "fsdd"] = "synth",
    data_dir: Path | None = None,
    out: Path | None = None,
    cache_dir: Path = Path(CACHE_DIR),
    seed: int | None = None,
    data_seed: int = 0,
    holdout: bool = False,
    draws: int = 50,
    pairs: int = 1000,
    model: ModelConfig = MODEL,
    objective: ObjectiveConfig = OBJECTIVE,
    training: TrainingConfig = TRAINING,
) -> None:
    """Train a model of spoken digits, measure it, and leave sounds and pictures. What is there already is kept.

    Args:
        source: voices synthesised here, or the Free Spoken Digit Dataset.
        data_dir: folder with the recordings of fsdd; without it they are downloaded.
        out: the run directory, by default runs/spoken_digits-SOURCE.
        cache_dir: where recordings, features and judges are kept.
        seed: of everything random but the data, the same as --training.seed.
        data_seed: of the synthetic voices' speeds and pitches.
        holdout: keep 300 of the 2,700 training recordings back and measure on them instead of on the test recordings.
        draws: recordings of each word that are generated and judged.
        pairs: matching pairs that are generated and judged.
        model: the networks.
        objective: what is maximised.
        training: how long and how fast.
    """
    if source == "synth" and data_dir is not None:
        raise ValueError("--data-dir is for --source fsdd; synthetic recordings are made in --cache-dir")
    out = out or Path("runs") / f"spoken_digits-{source}{'-holdout' if holdout else ''}"
    training = training if seed is None else replace(training, seed=seed)
    if source == "synth":
        manifest = by_first(prepare_synth, cache_dir, data_seed, holdout)
    else:
        manifest = by_first(prepare_fsdd, cache_dir, data_dir, holdout)

    from mmseqvae.data import prepare
    from mmseqvae.recipe import train_and_measure

    corpus = prepare(manifest, audio=AUDIO, cache_dir=cache_dir)
    split = "valid" if holdout else "test"
    train_and_measure(
        "spoken_digits", corpus, manifest, out, (model, objective, training), split,
        lambda trained: measure(trained, corpus, split, cache_dir, draws, pairs, training.seed), summary,
        source=source,
    )  # fmt: skip


def measure(
    trained: Trained, corpus: Corpus, split: str, cache_dir: Path, draws: int, pairs: int, seed: int
) -> dict[str, Any]:
    """All figures of the run."""
    from mmseqvae.evaluation.cross_generation import cross_generation
    from mmseqvae.evaluation.summary import evaluate

    judges = judged(corpus, split, cache_dir)
    dataset = corpus.datasets[split]
    heard = cross_generation(
        trained, dataset, corpus.datasets["train"], judges.word.labels, judges.speaker.labels, judges.word.penultimate,
        draws=draws, joint=pairs, seed=seed,
    )  # fmt: skip
    return {"judges": judges.accuracy, "coherence": heard, "evaluation": evaluate(trained, dataset, seed=seed)}


def judged(corpus: Corpus, split: str, cache_dir: Path) -> SpeechJudges:
    """Judges of words and voices, trained on the training recordings, and their own accuracy on those of `split`."""
    from mmseqvae.evaluation.judges.speech_judges import speech_judges

    with open(corpus.manifest.path, encoding="utf-8", newline="") as file:
        speakers = {row["id"]: row["speaker"] for row in csv.DictReader(file)}
    return speech_judges(corpus, speakers, split, cache_dir)


def summary(metrics: dict[str, Any]) -> list[str]:
    """What the run reached, in a few lines."""

    def share(found: dict[str, Any]) -> str:
        return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" if found["of"] else "nothing to count"

    heard, judges = metrics["coherence"], metrics["judges"]
    priors = metrics["evaluation"]["likelihood"]["priors"]
    nll = priors.get("learnt", priors["standard"])["nll"]
    joint = {name: share(found["coherence"]["log_mel"]) for name, found in heard["joint"].items()}
    rows = {
        "says a typed word": share(heard["text_to_audio"]["noise 0.5"]["log_mel"]),
        "    from its WAV files": share(heard["text_to_audio"]["noise 0.5"]["wav"]),
        "    diversity over that of recordings": f"{heard['variety']['diversity']:.2f}",
        "writes down a heard word": share(heard["audio_to_text"]["exact"]),
        "repeats a heard word": share(heard["audio_to_audio"]["digit_kept"]["log_mel"]),
        "    in the same voice": share(heard["audio_to_audio"]["speaker_kept"]["log_mel"]),
        "invents matching pairs": joint.get("fitted", joint["standard"]),
        "    from the prior it was trained with": joint.get("learnt", joint["standard"]),
        "judge of words, on recordings": share(judges["word"]["log_mel"]),
        "joint negative log-likelihood": f"{nll:.1f} nats an item",
    }
    return [f"measured on the split {metrics['run']['split']}, shares with 95 % intervals:"] + [
        f"  {name:<40}{found}" for name, found in rows.items()
    ]


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m recipes.spoken_digits")
