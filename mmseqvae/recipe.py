"""What recipes share: a model that is trained once and found again, and what its figures were obtained with."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

import mmseqvae
from mmseqvae.config import ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.data import Corpus
from mmseqvae.pretrained import CONFIG, WEIGHTS, Trained, load
from mmseqvae.training import fit, settings


def train_or_load(
    corpus: Corpus, out: Path, model: ModelConfig, objective: ObjectiveConfig, training: TrainingConfig
) -> tuple[Trained, float | None]:
    """The trained model in `out` and the seconds it took, None where it was there. Raises ValueError for another's."""
    if training.threads:
        torch.set_num_threads(training.threads)
    if not ((out / CONFIG).exists() and (out / WEIGHTS).exists()):
        started = time.monotonic()
        trained = fit(corpus, out, model=model, objective=objective, training=training)
        return trained, time.monotonic() - started
    trained = load(out)
    noted = json.loads((out / "training.json").read_text(encoding="utf-8"))
    data = {name: end.to_dict() for name, end in corpus.front_ends.items()}
    wanted = {**settings(model, objective, training), "front_ends": data}
    if {name: noted.get(name) for name in wanted} != wanted:
        raise ValueError(f"{out} holds a model of other settings or data: choose another --out, or delete the folder")
    return trained, None


def described(recipe: str, training: TrainingConfig, seconds: float | None, **more: Any) -> dict[str, Any]:
    """What figures were obtained with, as plain data; `more` stands behind the recipe's name."""
    return {
        "recipe": recipe, **more, "seed": training.seed,
        "training_seconds": seconds, "threads": torch.get_num_threads(), "cores": os.cpu_count(),
        "machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__,
        "mmseqvae": mmseqvae.__version__, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
