"""Sentences: a text VAE of any text file, one sentence a line, by the protocol of published tables.

    python -m recipes.text_sentences --text train.txt --valid valid.txt --test test.txt
    python -m recipes.text_sentences --text poems.txt --units characters    # 80 % trains, 10 % each are valid and test

The protocol (Kim et al. 2018; He et al. 2019; Li et al. 2019): an encoder and a decoder of one LSTM layer of 256 on
embeddings of 256, 32 latent dimensions under N(0, I), importance-weighted nats a sentence of 500 draws, perplexity a
token with the end of a sentence and without its start, KL, mutual information with the number of sentences it is
estimated on, active units; and the same decoder without a latent. The training is that of Li et al. 2019, "A
surprisingly effective fix for deep latent variable modeling of text": an autoencoder first, then its decoder anew with
a warm-up of 10 epochs, and nats that are free up to a target; both models keep the epoch that is best on validation.

Penn Treebank is made ready for such tables with words, marks and <unk> between spaces and 10,000 different ones: read
it with the default `--units spaces`, and every one of them is a token. It cannot be distributed freely, so it is not
downloaded.

Measured on 1,600 lines of Tang poems, from the package fortunes-zh of Debian (docs/text.md;
benchmarks/quality/text_sentences.py, seed 0, 2026-11-25): 91.13 nats a test sentence and perplexity 339.7 a character,
the language model without a latent 92.20 and 363.6; on train 71.81 and 105.0 beside 75.75 and 135.5; KL 6.08 and mutual
information 3.80 nats, of 160 test sentences; 32 of 32 units active. Penn Treebank could not be had where this was
written.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmseqvae.config import CACHE_DIR, ModelConfig, ObjectiveConfig, TextConfig, TrainingConfig
from mmseqvae.distributed import by_first
from mmseqvae.files import write_csv, write_text

if TYPE_CHECKING:
    from mmseqvae.data import Corpus
    from mmseqvae.pipeline.trained_model import Trained

# ---------------------------------------------------------------------------------------------------------- data

COLOUR = "\x1b["  # begins what sets a terminal's colour: titles and authors in files of the program fortune
SHARES = {"valid": 0.1, "test": 0.1}  # of a single file


def read(path: Path) -> list[str]:
    """The sentences of a text file in UTF-8: its lines, without empty ones.

    Files of the program fortune are understood: a line "%" stands between entries and coloured ones are no text.
    Raises FileNotFoundError where there is no such file, ValueError where it holds no sentence or is not UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    sentences = [line.strip() for line in lines if COLOUR not in line]
    sentences = [sentence for sentence in sentences if sentence and sentence != "%"]
    if not sentences:
        raise ValueError(f"{path} holds no sentence")
    return sentences


def prepare_manifest(folder: Path, text: Path, valid: Path | None = None, test: Path | None = None) -> Path:
    """A manifest of id, text and split. Without `valid` or `test`, a tenth each of `text`, drawn at random.

    Raises ValueError where too few sentences are left to train on.
    """
    parts = {"train": read(text)}
    random.Random(0).shuffle(parts["train"])
    for split, path in (("valid", valid), ("test", test)):
        if path is None:
            size = max(1, round(SHARES[split] * len(read(text))))
            parts[split], parts["train"] = parts["train"][:size], parts["train"][size:]
        else:
            parts[split] = read(path)
    if len(parts["train"]) < 2:
        raise ValueError(f"{text}: too few sentences to train on once some are set apart to validate and to test")
    rows = [(f"{split}-{i}", s, split) for split, sentences in parts.items() for i, s in enumerate(sentences)]
    return write_csv(folder / "sentences" / f"{text.stem}.csv", [("id", "text", "split"), *rows])


# ------------------------------------------------------------------------------------ model, training, evaluation

MODEL = ModelConfig(
    latent=32, prior="standard", cell="lstm", bidirectional=False, token_embedding=256, token_encoder=256,
    token_decoder=256, dropout=0.5, input_dropout=0.0,
)  # fmt: skip
OBJECTIVE = ObjectiveConfig(name="elbo", token_weight=1.0, free_bits_item=8.0)
TRAINING = TrainingConfig(
    pretraining=10, epochs=40, batch_size=32, learning_rate=1e-3, patience=5, unimodal_posteriors="none", threads=1
)
WARM_UP = 10  # epochs
SHOWN = 100  # sampled sentences that are written to a file


def main(
    *,
    text: Path,
    valid: Path | None = None,
    test: Path | None = None,
    units: Literal["spaces", "words", "characters", "bpe", "bytes"] = "spaces",
    vocabulary: int | None = None,
    least: int = 1,
    out: Path | None = None,
    cache_dir: Path = Path(CACHE_DIR),
    seed: int | None = None,
    draws: int = 500,
    model: ModelConfig = MODEL,
    objective: ObjectiveConfig = OBJECTIVE,
    training: TrainingConfig = TRAINING,
) -> None:
    """Train a text VAE and a language model without latent, measure both on train and test. What is there is kept.

    Args:
        text: the file to train on, one sentence a line.
        valid: the file by which both are stopped; without it, a tenth of `text`.
        test: the file to test on; without it, a tenth of `text`.
        units: of text. "spaces": what stands between spaces, for text that is tokenised already.
        vocabulary: most tokens, </s> and <unk> included.
        least: occurrences that a token needs, else it is unknown.
        out: the run directory, by default runs/sentences-NAME.
        cache_dir: where the manifest is kept.
        seed: of everything random but the data, the same as --training.seed.
        draws: of the importance-weighted likelihood.
        model: the networks.
        objective: what is maximised; its warm-up is 10 epochs, whatever it says here.
        training: how long and how fast.
    """
    manifest = by_first(prepare_manifest, cache_dir, text, valid, test)
    out = out or Path("runs") / f"sentences-{text.stem}"
    training = training if seed is None else replace(training, seed=seed)

    from mmseqvae.data import prepare
    from mmseqvae.recipe import train_and_measure

    reading = TextConfig(units=units, vocabulary=vocabulary, least=least)
    corpus = prepare(manifest, text=reading, cache_dir=cache_dir)
    steps = -(-len(corpus.datasets["train"]) // training.batch_size)
    objective = replace(objective, beta_warm_up=WARM_UP * steps)
    train_and_measure(
        "sentences", corpus, manifest, out, (model, objective, training), "test",
        lambda trained: measure(trained, corpus, out, draws, training), summary, text=text.name, units=units,
    )  # fmt: skip


def measure(trained: Trained, corpus: Corpus, out: Path, draws: int, training: TrainingConfig) -> dict[str, Any]:
    """Figures of train and test; sentences drawn from the prior go to `out`/samples."""
    from mmseqvae.decoding import TokenSampling
    from mmseqvae.evaluation.text_metrics import beside_language_model
    from mmseqvae.recipe import language_model_or_load

    drawn = trained.sample(SHOWN, "text", {"text": TokenSampling(temperature=1.0)}, training.seed)["text"]
    write_text(out / "samples" / "prior.txt", "\n".join([*drawn, ""]))
    alone = language_model_or_load(corpus, "text", out, trained.config or ModelConfig(), training)
    return {"likelihood": beside_language_model(trained, alone, corpus, ["train", "test"], draws, seed=training.seed)}


def summary(metrics: dict[str, Any]) -> list[str]:
    """The rows of a published table, for train and test."""
    lines = [
        f"{'':<24}{'nats':>8}{'ppl':>9}{'KL':>7}{'MI':>7}{'of':>6}{'AU':>5}",
    ]
    for split, found in metrics["likelihood"].items():
        vae, alone = found["vae"], found["language_model"]
        lines += [
            f"{split + ', VAE':<24}{vae['nll']:>8.2f}{vae['perplexity']:>9.2f}{vae['kl']:>7.2f}"
            f"{vae['mutual_information']:>7.2f}{vae['mutual_information_items']:>6}{vae['active_units']:>5}",
            f"{split + ', no latent':<24}{alone['nll']:>8.2f}{alone['perplexity']:>9.2f}",
        ]
    return lines


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m recipes.text_sentences")
