"""What recipes share: a model that is trained once and found again, and what its figures were obtained with."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from mmseqvae.cli.common import described, is_measured, next_commands
from mmseqvae.config import ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.data import Corpus
from mmseqvae.distributed import processes
from mmseqvae.evaluation.language_model_baseline import LanguageModel, build_language_model, fit_language_model
from mmseqvae.files import replacing, write_json, write_text
from mmseqvae.pipeline.trained_model import Trained
from mmseqvae.reporting.run_report import report
from mmseqvae.training.run_state import settings, training_seconds
from mmseqvae.training.threads import use_threads
from mmseqvae.training.trainer import fit


def language_model_or_load(
    corpus: Corpus, name: str, folder: Path, model: ModelConfig, training: TrainingConfig
) -> LanguageModel:
    """The language model of the tokens `name` in `folder`, fitted where it is not there or is one of other settings."""
    notes, weights = folder / "language_model.json", folder / "language_model.safetensors"
    data = {"name": name, "front_end": corpus.front_ends[name].to_dict()}
    wanted = {**settings(model, ObjectiveConfig(), training), **data}
    if notes.exists() and weights.exists():
        noted = json.loads(notes.read_text(encoding="utf-8"))
        if noted["settings"] == wanted:
            found = build_language_model(corpus, name, model)
            found.load_state_dict(load_file(weights))
            return found.eval()
    fitted, reached = fit_language_model(corpus, name, model, training)
    with replacing(weights) as part:
        save_file(fitted.state_dict(), part)
    write_json(notes, {"settings": wanted, "reached": reached})
    return fitted


def train_and_measure(
    recipe: str,
    corpus: Corpus,
    manifest: Path,
    out: Path,
    configs: tuple[ModelConfig, ObjectiveConfig, TrainingConfig],
    split: str,
    measure: Callable[[Trained], dict[str, Any]],
    summary: Callable[[dict[str, Any]], list[str]],
    **more: Any,
) -> None:
    """Train, measure, leave pictures, sounds and `metrics.json` in `out`, print; what is there already is kept.

    split: of `corpus`, that is measured. measure: all figures of the model, as plain data; summary: those in a few
    lines. more: what else the figures depend on, for the record.
    """
    model, objective, training = configs
    use_threads(training.threads)  # for what follows, too
    trained = fit(corpus, out, model=model, objective=objective, training=training)
    if not processes().first:
        raise SystemExit  # what follows is measured once
    metrics, seconds = out / "metrics.json", training_seconds(out)
    if not is_measured(metrics, seconds):
        figures = {"run": described(recipe, training, seconds, split=split, **more), **measure(trained)}
        report(trained, corpus.datasets[split], out, training.seed)
        write_json(metrics, figures)  # last: where it is, sounds and pictures are too
    figures = json.loads(metrics.read_text(encoding="utf-8"))
    print("\n".join([*summary(figures), *next_commands(out, manifest, corpus)]))


def write_table(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """A manifest in CSV with the columns of its first row; ValueError where there is no row."""
    rows = list(rows)
    if not rows:
        raise ValueError(f"{path}: there is no item to list")
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())
    return path
