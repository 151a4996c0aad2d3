"""What tests of several processes run in each of them: python -m tests.two_processes FOLDER WHAT..."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmseqvae.config import ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.data import Corpus, prepare
from mmseqvae.data.dataset import Column
from mmseqvae.sequence import Sequence
from mmseqvae.training import trainer as module
from mmseqvae.training.lightning_module import TrainingModule
from mmseqvae.training.trainer import fit

ROOT = Path(__file__).parents[1]
TRAIN, VALID = 33, 7  # 4 steps of 8 items and one of a single item, of which one of two processes has none
MODEL = ModelConfig(
    latent=4, token_embedding=8, token_encoder=8, token_decoder=8, frame_encoder=8, frame_inputs=8, frame_decoder=8,
    input_dropout=0.0, input_noise=0.0, prior_components=3,
)  # fmt: skip
TRAINING = TrainingConfig(epochs=2, batch_size=4, warm_up=2, fitted_components=2, unimodal_posteriors="none", threads=1)


def make(folder: Path, train: int = TRAIN, valid: int = VALID) -> None:
    """Arrays whose level says which of two words stands beside them; every sixth word is missing."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    lines = ["id,text,move,split,label"]
    for item in range(train + valid):
        np.save(folder / f"{item}.npy", random.normal(4 * (item % 2), 1, (5 + item % 4, 3)).astype(np.float32))
        text = "" if item % 6 == 5 else ("low", "high")[item % 2]
        lines.append(f"{item},{text},{item}.npy,{'train' if item < train else 'valid'},{item % 3}")
    (folder / "manifest.csv").write_text("\n".join(lines))


def read(folder: Path) -> Corpus:
    return prepare(folder / "manifest.csv", frames=["move"], cache_dir=folder / "cache", workers=1)


def exact(folder: Path, out: str, batch_size: int) -> None:
    """A training in float64 whose noise is 0: what is then left depends on the batches alone."""
    randn, batch, model_from = torch.randn, Column.batch, module.model_from

    def double(self: Column, items: np.ndarray) -> Sequence:
        found = batch(self, items)
        return Sequence(found.values.double(), found.lengths) if found.values.is_floating_point() else found

    try:
        torch.randn = lambda *size, **how: torch.zeros(*size, dtype=how.get("dtype"))  # type: ignore[assignment]
        Column.batch = double  # type: ignore[method-assign]
        module.model_from = lambda *how: model_from(*how).double()  # type: ignore[assignment]
        settings = replace(TRAINING, batch_size=batch_size, l2=0.01, gradient_clip=10.0)
        fit(read(folder), folder / out, model=MODEL, training=settings, progress=False)
    finally:
        torch.randn, Column.batch, module.model_from = randn, batch, model_from  # type: ignore[method-assign]


def noisy(folder: Path, out: str, **settings: Any) -> None:
    fit(
        read(folder), folder / out, model=replace(MODEL, input_dropout=0.2, input_noise=0.2),
        objective=ObjectiveConfig(name="elbo", target_kl=1.0), training=replace(TRAINING, **settings), progress=False,
    )  # fmt: skip


def killed(folder: Path, out: str, step: int) -> None:
    """Every process ends, as by a power cut, before it takes this step."""
    taken, wanted = [0], TrainingModule.training_step

    def counting(self: TrainingModule, batch: Any, index: int) -> torch.Tensor:
        if taken[0] == step:
            os._exit(7)
        taken[0] += 1
        return wanted(self, batch, index)

    TrainingModule.training_step = counting  # type: ignore[method-assign]
    noisy(folder, out, checkpoint_steps=3)


def watched(folder: Path) -> None:
    """The ids that came, epoch by epoch, of this rank, and a draw after every step."""
    import json

    seen: list[tuple[int, list[int], float]] = []
    wanted = TrainingModule.training_step

    def noting(self: TrainingModule, batch: Any, index: int) -> torch.Tensor:
        loss = wanted(self, batch, index)
        moves = [round(float(x.sum()), 4) for x in batch["move"].items()]  # no two items are alike
        seen.append((self.current_epoch, moves, float(torch.rand(()))))
        return loss

    TrainingModule.training_step = noting  # type: ignore[method-assign]
    noisy(folder, "watched", sampling="plain")
    TrainingModule.training_step = wanted  # type: ignore[method-assign]
    (folder / f"seen-{os.environ['RANK']}.json").write_text(json.dumps(seen))


def recipe(folder: Path) -> None:
    """The recipe of requests, from a download that is noted whenever it is made."""
    from recipes import typed_requests as requests

    fetch = requests.download

    def noting(url: str, path: Path) -> Path:
        with (folder / "fetched").open("a") as file:
            file.write(f"{url}\n")
        time.sleep(2)  # a slow server, so that the other process would find no file yet
        return fetch(url, path)

    requests.download, requests.URL = noting, (folder / "requests.tar.gz").as_uri()  # type: ignore[assignment]
    requests.main(
        out=folder / "run", cache_dir=folder / "cache", draws=2, samples=2, model=replace(requests.MODEL, latent=4),
        training=replace(TRAINING, epochs=1),
    )  # fmt: skip


def launch(folder: Path, *what: str, timeout: float = 900) -> list[int]:
    """Run this file in two processes; their exit codes. Raises TimeoutExpired after so many seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    logs = [(folder / f"log-{what[0]}-{rank}").open("w") for rank in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.two_processes", str(folder), *what], cwd=ROOT, stdout=log, stderr=log,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, log in enumerate(logs)
    ]  # fmt: skip
    try:
        return [process.wait(timeout=timeout) for process in running]
    finally:
        for process, log in zip(running, logs, strict=True):
            process.kill()
            process.wait()
            log.close()


def said(folder: Path, what: str) -> str:
    return "\n".join((folder / f"log-{what}-{rank}").read_text() for rank in range(2))


if __name__ == "__main__":
    folder, what = Path(sys.argv[1]), sys.argv[2]
    if what == "train":
        exact(folder, "exact-2", 4)
        watched(folder)
        noisy(folder, "whole", checkpoint_steps=3)
        killed(folder, "cut", 8)
    elif what == "resume":
        noisy(folder, "cut", checkpoint_steps=3)
    elif what == "few":
        noisy(folder, "few")
    elif what == "recipe":
        recipe(folder)
