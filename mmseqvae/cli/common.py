"""What the commands share: a run directory and its manifest read, generated items written."""

from __future__ import annotations

import csv
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mmseqvae
from mmseqvae.config import TrainingConfig
from mmseqvae.data import Corpus, prepare
from mmseqvae.data.store.extraction import FileFrontEnd
from mmseqvae.features.log_mel import LogMel, write_audio
from mmseqvae.files import replacing
from mmseqvae.pipeline.trained_model import Trained, load
from mmseqvae.training.threads import use_threads


def write_items(trained: Trained, items: Mapping[str, list[Any]], out: Path, files: list[str]) -> None:
    """Write every item of `files` that is no text as NAME-001.wav or .npy, and index.csv, itself a manifest of all."""
    number = max(len(column) for column in items.values())
    ids = [str(i).zfill(max(3, len(str(number)))) for i in range(1, number + 1)]
    table: dict[str, list[str]] = {"id": ids}
    for name, column in items.items():
        front_end = trained.front_ends[name]
        table[name] = ["" if item is None else str(item) for item in column]
        if name not in files or not isinstance(front_end, FileFrontEnd):
            continue
        suffix = ".wav" if isinstance(front_end, LogMel) else ".npy"
        table[name] = [f"{name}-{i}{suffix}" if item is not None else "" for i, item in zip(ids, column, strict=True)]
        for file, item in zip(table[name], column, strict=True):
            if item is None:
                continue
            if isinstance(front_end, LogMel):
                write_audio(out / file, item, front_end.config.sample_rate)
            else:
                with replacing(out / file) as part:
                    np.save(part, item)
    with replacing(out / "index.csv") as part, part.open("w", encoding="utf-8", newline="") as index:
        csv.writer(index).writerows([list(table), *zip(*table.values(), strict=True)])
    for i in range(number):
        shown = [
            str(out / table[name][i]) if isinstance(trained.front_ends[name], FileFrontEnd) else repr(table[name][i])
            for name in files
        ]
        print("  ".join([ids[i], *shown]))
    print(out / "index.csv")


def read_run(
    folder: Path, manifest: Path, cache_dir: Path, skip_bad: bool, given: list[str] | None = None
) -> tuple[Trained, Corpus]:
    """The trained model in `folder`, and `manifest` through its front ends, cut as its items were."""
    trained = load_run(folder)
    check_names(given or [], trained.model.readable, "is given")

    corpus = prepare(
        manifest, windows=trained.windows, front_ends=trained.front_ends, cache_dir=cache_dir, skip_bad=skip_bad
    )
    return trained, corpus


def load_run(folder: Path) -> Trained:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such run directory")

    use_threads()
    return load(folder)


def check_names(names: Iterable[str], there: list[str], what: str, role: str = "modality") -> None:
    wrong = [name for name in names if name not in there]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)} {what}, but is no {role} of this run for that; it has {', '.join(there) or 'none'}"
        )


def command(name: str) -> str:
    """How to call a command of this installation: by its name where the shell finds it, else by its path from here."""
    return name if shutil.which(name) else os.path.relpath(Path(sys.executable).with_name(name))


def next_commands(out: Path, manifest: Path, corpus: Corpus) -> list[str]:
    """What to try on a fresh run, with one of its own texts."""
    lines = [f"run: {out}", "next:"]
    if "text" in corpus.front_ends and len(corpus.front_ends) > 1:
        train = corpus.datasets["train"]
        first = train[int((train.lengths("text") > 0).argmax())]["text"]
        text = shlex.quote(str(corpus.front_ends["text"].decode(first.values[0])))
        lines.append(f"  {command('mmseqvae')} generate {out} --text {text} --out {out / 'samples' / 'text'}")
    lines += [
        f"  {command('mmseqvae')} generate {out} --sample 5 --out {out / 'samples' / 'prior'}",
        f"  {command('mmseqvae')} embed {out} {manifest} --out {out / 'embeddings.npz'}",
        f"  {command('tensorboard')} --logdir {out / 'tensorboard'}",
    ]
    return lines


def described(command: str, training: TrainingConfig, seconds: float | None, **more: Any) -> dict[str, Any]:
    """What figures were obtained with, as plain data; `more` stands behind the name of the command or recipe."""
    return {
        "recipe": command, **more, "seed": training.seed,
        "training_seconds": seconds, "threads": torch.get_num_threads(), "cores": os.cpu_count(),
        "machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__,
        "mmseqvae": mmseqvae.__version__, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def is_measured(metrics: Path, seconds: float | None) -> bool:
    """Whether the figures in this file are those of the model beside it, and not of one that went on since.

    seconds: of the training of that model; None where a release before wrote the run, which could not go on.
    """
    if not metrics.exists():
        return False
    figures = json.loads(metrics.read_text(encoding="utf-8"))
    return seconds is None or figures.get("run", {}).get("training_seconds") == seconds
