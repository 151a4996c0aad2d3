"""Speech commands: 35 words by 2,618 people, said and written. One latent a word, many voices and rooms.

    python -m recipes.speech_commands                     # version 0.02, CC BY 4.0, 2.4 GB
    python -m recipes.speech_commands --data-dir DIR      # a folder with the words' folders and both lists

Test and validation are those of testing_list.txt and validation_list.txt; all other recordings train.

No figures: the corpus could not be had where this was written. It was tested on made recordings in the same layout
(tests/speech.py: tones of two words by two voices), which show that it runs and not how well it speaks.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmseqvae.config import CACHE_DIR, LogMelConfig, ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.data.download import download, extract
from mmseqvae.distributed import by_first

if TYPE_CHECKING:
    from mmseqvae.data import Corpus
    from mmseqvae.pipeline.trained_model import Trained

# The address and the checksum are those of torchaudio.datasets.SPEECHCOMMANDS (torchaudio 2.11).
URL = "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
NOHASH = "_nohash_"  # <speaker>_nohash_<take>.wav; other sounds, such as those of _background_noise_, are no words

# -------------------------------------------------------------------------------------------------------- data


def prepare_commands(folder: Path, data_dir: Path | None = None) -> Path:
    """List the recordings in `data_dir`, or download them; return the manifest's path.

    Raises FileNotFoundError where the folder or a list is missing, ValueError where a list names a file that is not
    there or nothing is left to train on.
    """
    from mmseqvae.recipe import write_table

    folder = folder / "speech_commands"
    if data_dir is None:
        data_dir = folder / "v0.02"
        if not data_dir.exists():
            archive = download(URL, folder / "speech_commands_v0.02.tar.gz", SHA256)
            extract(archive, data_dir)
            archive.unlink()
    if not data_dir.is_dir():
        raise FileNotFoundError(f"--data-dir {data_dir}: no such folder")
    recordings = {
        path.relative_to(data_dir).as_posix(): path.resolve()
        for path in sorted(data_dir.glob("*/*.wav"))
        if NOHASH in path.name
    }
    part = dict.fromkeys(recordings, "train")
    for split, name in LISTS.items():
        listed = (data_dir / name).read_text(encoding="utf-8").split()
        if strangers := [file for file in listed if file not in recordings]:
            raise ValueError(f"{data_dir / name} lists {len(strangers)} files that are not there: {strangers[:3]}")
        part |= dict.fromkeys(listed, split)
    if "train" not in part.values():
        raise ValueError(f"{data_dir} has no recordings <word>/<speaker>{NOHASH}<take>.wav besides those of the lists")
    return write_table(
        folder / "manifest.csv",
        ({"id": name.removesuffix(".wav"), "audio": path, "text": path.parent.name, "split": part[name],
          "label": path.parent.name, "speaker": path.name.partition(NOHASH)[0]} for name, path in recordings.items()),
    )  # fmt: skip


# ------------------------------------------------------------------------------------ model, training, evaluation

AUDIO = LogMelConfig(sample_rate=16000, n_fft=512, hop_length=200, n_mels=64)
MODEL = ModelConfig(latent=48, frame_encoder=128, frame_decoder=256, reduction=3)
OBJECTIVE = ObjectiveConfig()
TRAINING = TrainingConfig(epochs=15)
JUDGED_FROM = 300  # training recordings of a word that its judge learns from


def main(
    data_dir: Path | None = None,
    out: Path = Path("runs/speech_commands"),
    cache_dir: Path = Path(CACHE_DIR),
    seed: int | None = None,
    draws: int = 20,
    model: ModelConfig = MODEL,
    objective: ObjectiveConfig = OBJECTIVE,
    training: TrainingConfig = TRAINING,
) -> None:
    """Train a model of spoken commands and measure it on the testing list. What is there already is kept.

    Args:
        data_dir: folder with the words' folders and both lists; without it they are downloaded.
        out: the run directory.
        cache_dir: where the archive, features and the judge are kept.
        seed: of everything random, the same as --training.seed.
        draws: recordings of each word that are generated and judged.
        model: the networks.
        objective: what is maximised.
        training: how long and how fast.
    """
    manifest = by_first(prepare_commands, cache_dir, data_dir)
    training = training if seed is None else replace(training, seed=seed)

    from mmseqvae.data import prepare
    from mmseqvae.recipe import train_and_measure

    corpus = prepare(manifest, audio=AUDIO, cache_dir=cache_dir)
    train_and_measure(
        "speech_commands", corpus, manifest, out, (model, objective, training), "test",
        lambda trained: measure(trained, corpus, cache_dir, draws, training.seed), summary,
    )  # fmt: skip


def measure(trained: Trained, corpus: Corpus, cache_dir: Path, draws: int, seed: int) -> dict[str, Any]:
    """Words written, from `evaluate`, and words said, heard by a judge that learnt from training recordings."""
    from mmseqvae.evaluation.judges.speech_judges import words_heard
    from mmseqvae.evaluation.summary import evaluate

    said = words_heard(trained, corpus, "test", cache_dir, draws, JUDGED_FROM, seed)
    return {"said": said, "evaluation": evaluate(trained, corpus.datasets["test"], draws=20, seed=seed)}


def summary(metrics: dict[str, Any]) -> list[str]:
    """What the run reached, in a few lines."""

    def share(found: dict[str, Any]) -> str:
        return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"

    rows = {
        "writes down a heard word": share(metrics["evaluation"]["tokens"]["text"]["from audio"]["exact"]),
        "says a typed word": share(metrics["said"]["text_to_audio"]),
        "judge of words, on recordings of test": share(metrics["said"]["judge"]),
    }
    return [f"measured on {metrics['evaluation']['items']} recordings of test, shares with 95 % intervals:"] + [
        f"  {name:<40}{found}" for name, found in rows.items()
    ]


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m recipes.speech_commands")
