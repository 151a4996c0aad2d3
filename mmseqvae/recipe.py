"""What recipes share: a model that is trained once and found again, and what its figures were obtained with."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import mmseqvae
from mmseqvae.cli.run_folder import next_commands
from mmseqvae.config import ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.data import Corpus
from mmseqvae.distributed import processes
from mmseqvae.evaluation.language_model import LanguageModel, build_language_model, fit_language_model
from mmseqvae.files import replacing, write_json, write_text
from mmseqvae.pipeline.run_folder import CONFIG, WEIGHTS
from mmseqvae.pipeline.trained import Trained, load
from mmseqvae.reporting.run_report import report
from mmseqvae.training.threads import use_threads
from mmseqvae.training.trainer import fit, settings


def train_or_load(
    corpus: Corpus, out: Path, model: ModelConfig, objective: ObjectiveConfig, training: TrainingConfig
) -> tuple[Trained, float | None]:
    """The trained model in `out` and the seconds it took, None where it was there. Raises ValueError for another's.

    Of several processes only the first goes on from here, the others end: what follows is measured once.
    """
    use_threads(training.threads)  # for what follows, too
    if not ((out / CONFIG).exists() and (out / WEIGHTS).exists()):
        started = time.monotonic()
        trained = fit(corpus, out, model=model, objective=objective, training=training)
        seconds = time.monotonic() - started
        if not processes().first:
            raise SystemExit
        return trained, seconds
    if not processes().first:
        raise SystemExit
    trained = load(out)
    noted = json.loads((out / "training.json").read_text(encoding="utf-8"))
    data = {name: end.to_dict() for name, end in corpus.front_ends.items()}
    wanted = {**settings(model, objective, training), "front_ends": data}
    if {name: noted.get(name) for name in wanted} != wanted:
        raise ValueError(f"{out} holds a model of other settings or data: choose another --out, or delete the folder")
    return trained, None


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


def described(recipe: str, training: TrainingConfig, seconds: float | None, **more: Any) -> dict[str, Any]:
    """What figures were obtained with, as plain data; `more` stands behind the recipe's name."""
    return {
        "recipe": recipe, **more, "seed": training.seed,
        "training_seconds": seconds, "threads": torch.get_num_threads(), "cores": os.cpu_count(),
        "machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__,
        "mmseqvae": mmseqvae.__version__, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


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
    trained, seconds = train_or_load(corpus, out, model, objective, training)
    metrics = out / "metrics.json"
    if seconds is not None or not metrics.exists():
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
