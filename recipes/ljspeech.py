"""Read sentences of one speaker: what a single latent vector a sentence can hold, and from which length on it cannot.

    python -m recipes.ljspeech                     # LJ Speech 1.1, public domain, 2.6 GB
    python -m recipes.ljspeech --data-dir DIR      # a folder with metadata.csv and wavs/
    python -m recipes.ljspeech --seconds 4         # short sentences only

Sentences are from 1 to 10 s long; those of at most `--seconds` are taken, the normalised transcript as text. Of every
25 in the order of the corpus the first tests and the second validates. All figures are by the number of words: text
through the latent and back, text from audio, and how far audio given back is off. What is to be expected, and was not
measured: a phrase of a few words goes through one vector; of a sentence the vector keeps the beginning, the length and
the manner, and the decoders, which know the language, make up the rest. A latent with a time axis, which this is not,
would be needed to read aloud.

No figures: the corpus could not be had where this was written. It was tested on made recordings in the same layout
(tests/speech.py), which show that it runs and not how well it speaks.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from mmseqvae.config import CACHE_DIR, ModelConfig, ObjectiveConfig, TrainingConfig, load_config
from mmseqvae.data.download import download, extract
from mmseqvae.distributed import by_first

if TYPE_CHECKING:
    from mmseqvae.data import Corpus, SequenceDataset
    from mmseqvae.pipeline.trained_model import Trained

# The address and the checksum are those of torchaudio.datasets.LJSPEECH (torchaudio 2.11).
URL = "https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2"
SHA256 = "be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5"
EVERY = 25  # sentences, of which one tests and one validates

# -------------------------------------------------------------------------------------------------------- data


def prepare_sentences(folder: Path, data_dir: Path | None, seconds: float) -> Path:
    """List the sentences of at most `seconds` in `data_dir`, or download them; return the manifest's path.

    Raises FileNotFoundError where metadata.csv or a recording is missing, ValueError for a line in another layout and
    where no sentence is short enough.
    """
    from mmseqvae.recipe import write_table

    folder = folder / "ljspeech"
    if data_dir is None:
        unpacked = folder / "1.1"
        if not unpacked.exists():
            archive = download(URL, folder / "LJSpeech-1.1.tar.bz2", SHA256)
            extract(archive, unpacked)
            archive.unlink()
        data_dir = unpacked / "LJSpeech-1.1"
    table = data_dir / "metadata.csv"
    if not table.is_file():
        raise FileNotFoundError(f"{data_dir} holds no metadata.csv: it must be the folder LJSpeech-1.1")
    rows = []
    with table.open(encoding="utf-8", newline="") as file:
        for number, line in enumerate(csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE), start=1):
            if len(line) != 3:
                raise ValueError(f"{table}, line {number}: id|transcript|normalised transcript expected, got {line}")
            audio = (data_dir / "wavs" / f"{line[0]}.wav").resolve()
            if not audio.is_file():
                raise FileNotFoundError(f"{table}, line {number}: {audio} is missing")
            if soundfile.info(audio).duration <= seconds:
                rows.append({"id": line[0], "audio": audio, "text": line[2], "split": "train"})
    if len(rows) < EVERY:
        raise ValueError(f"{table}: only {len(rows)} sentences of at most {seconds:g} s, need {EVERY}")
    for place, row in enumerate(rows):
        row["split"] = {0: "test", 1: "valid"}.get(place % EVERY, "train")
    return write_table(folder / f"manifest-{seconds:g}.csv", rows)


# ------------------------------------------------------------------------------------ model, training, evaluation

SETTINGS = load_config("sentences")
AUDIO, MODEL = SETTINGS.audio, SETTINGS.model
OBJECTIVE, TRAINING = SETTINGS.objective, SETTINGS.training
WORDS = (0, 5, 10, 15)  # figures are of sentences of 1 to 5 words, 6 to 10, 11 to 15, and more


def main(
    data_dir: Path | None = None,
    out: Path = Path("runs/ljspeech"),
    cache_dir: Path = Path(CACHE_DIR),
    seconds: float = 5.0,
    seed: int | None = None,
    model: ModelConfig = MODEL,
    objective: ObjectiveConfig = OBJECTIVE,
    training: TrainingConfig = TRAINING,
) -> None:
    """Train a model of read sentences and measure it by their length. What is there already is kept.

    Args:
        data_dir: folder with metadata.csv and wavs/; without it the corpus is downloaded.
        out: the run directory.
        cache_dir: where the archive and features are kept.
        seconds: the longest sentences taken.
        seed: of everything random, the same as --training.seed.
        model: the networks.
        objective: what is maximised.
        training: how long and how fast.
    """
    manifest = by_first(prepare_sentences, cache_dir, data_dir, seconds)
    training = training if seed is None else replace(training, seed=seed)

    from mmseqvae.data import prepare
    from mmseqvae.recipe import train_and_measure

    corpus = prepare(manifest, audio=AUDIO, cache_dir=cache_dir)
    train_and_measure(
        "ljspeech", corpus, manifest, out, (model, objective, training), "test",
        lambda trained: measure(trained, corpus, training.seed), summary, longest_seconds=seconds,
    )  # fmt: skip


def measure(trained: Trained, corpus: Corpus, seed: int) -> dict[str, Any]:
    """Figures of the test sentences by their number of words."""
    from mmseqvae.evaluation.summary import distortion, latent, likelihood, written

    test = corpus.datasets["test"]
    texts = {row.id: row.cells["text"] for row in corpus.manifest.rows}
    words = np.array([len(str(texts[id]).split()) for id in test.ids])
    lengths = {}
    for least, most in zip(WORDS, [*WORDS[1:], np.inf], strict=True):
        rows = np.flatnonzero((words > least) & (words <= most))
        if not len(rows):
            continue
        some = chosen(test, rows)
        lengths[f"{least + 1} to {most} words" if np.isfinite(most) else f"more than {least} words"] = {
            "sentences": len(rows),
            "text_from_text": written(trained, some, "text", "text", seed),
            "text_from_audio": written(trained, some, "text", "audio", seed),
            "audio_from_audio": distortion(trained, some, "audio", seed, False),
        }
    return {"lengths": lengths, "likelihood": likelihood(trained, test, 20, seed), "latent": latent(trained, test)}


def chosen(dataset: SequenceDataset, rows: np.ndarray) -> SequenceDataset:
    """Some items of a data set, over the same features."""
    from mmseqvae.data import SequenceDataset

    columns = {
        name: replace(column, starts=column.starts[rows], lengths=column.lengths[rows])
        for name, column in dataset.columns.items()
    }
    return SequenceDataset([dataset.ids[row] for row in rows], [dataset.labels[row] for row in rows], columns)


def summary(metrics: dict[str, Any]) -> list[str]:
    """What the run reached, a line a length."""

    def rate(found: dict[str, Any]) -> str:
        return f"{found['character_error_rate']:.3f}"

    lines = ["character error rates and distortion on test sentences, by their length:"]
    for length, found in metrics["lengths"].items():
        off = found["audio_from_audio"]
        again = f"{off['reconstruction']:.2f} dB off (Griffin-Lim alone {off['griffin_lim']:.2f})"
        lines.append(
            f"  {length:<20}{found['sentences']:>5} sentences: text through z {rate(found['text_from_text'])}, "
            f"text from audio {rate(found['text_from_audio'])}, audio given back {again}"
        )
    return lines


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m recipes.ljspeech")
