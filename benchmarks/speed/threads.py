"""What does a second thread bring to a training step, and what does it cost on a machine that has other work?

    python -m benchmarks.speed.threads

One step: the default objective of text (4 to 6 tokens) and frames (25 to 60 of 80 channels), backward, clip, Adam; of
the default model at batches of 64 and 256 items, and of one with 512 units in every recurrent layer. It runs on one
thread and on all, in turns, alone and beside processes that only count, one and as many as there are cores. Times are
those on the clock, since threads wait for one another. Writes benchmarks/results/threads.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from benchmarks.page_heading import heading
from mmseqvae.config import ModelConfig
from mmseqvae.files import write_text
from mmseqvae.fusion import FUSIONS
from mmseqvae.model import MultimodalVAE
from mmseqvae.objectives import coordinated
from mmseqvae.pipeline.build import frame_modality, token_modality
from mmseqvae.priors.registry import PRIORS
from mmseqvae.sequence import Sequence
from mmseqvae.training.malloc import keep_freed_memory

RESULTS = Path(__file__).parents[1] / "results"
SYMBOLS, MELS, FRAMES, ROUNDS = 20, 80, 60, 2
DEFAULT = ModelConfig()
WIDE = replace(DEFAULT, token_encoder=512, token_decoder=512, frame_encoder=512, frame_inputs=512, frame_decoder=512)
WORKLOADS = {
    "default, 64 items": (DEFAULT, 64),
    "default, 256 items": (DEFAULT, 256),
    "512 units, 256 items": (WIDE, 256),
}


def main(
    threads: int | None = None,
    busy: list[int] | None = None,
    seconds: float = 4.0,
    only: list[str] | None = None,
    results: Path = RESULTS,
    seed: int = 0,
) -> None:
    """Time steps and write the table.

    Args:
        threads: that are compared with one; all cores by default.
        busy: numbers of other processes, 0, 1 and one a core by default.
        seconds: that the steps of a line take on one thread, and on several, at least.
        only: names of the workloads to measure, all of them by default.
        results: folder for the table.
        seed: of lengths and values.
    """
    most = torch.get_num_threads() if threads is None else threads
    if most < 2:
        raise ValueError(f"--threads must be at least 2 to be compared with one, got {most}")
    if strange := sorted(set(only or ()) - set(WORKLOADS)):
        raise ValueError(f"--only names {strange}; there are {list(WORKLOADS)}")
    others = sorted({0, 1, most}) if busy is None else busy
    keep_freed_memory()  # as `fit` does
    torch.set_num_threads(most)
    table: list[str] = []

    def add(*lines: str) -> None:
        table.extend(lines)
        print("\n".join(lines), flush=True)
        write_text(results / "threads.md", "\n".join(table) + "\n")

    command = f"python -m benchmarks.speed.threads --threads {most} --busy {' '.join(map(str, others))}"
    command += f" --seconds {seconds:g}"
    add(
        *heading("Threads", command, seed),
        "Milliseconds of a step, the median and (the longest), on 1 thread and on all of them in turns. The machine's "
        f"load before, which others' work makes: {os.getloadavg()[0]:.1f}.",
        "",
        f"| model | other processes | 1 thread | {most} threads | ratio |",
        "|---|---|---|---|---|",
    )
    for name in only or WORKLOADS:
        config, items = WORKLOADS[name]
        step = training_step(config, items, seed)
        for count in others:
            with busy_processes(count):
                one, several = in_turns(step, (1, most), seconds)
            add(
                f"| {name} | {count} | {1e3 * median(one):.0f} ({1e3 * max(one):.0f}) "
                f"| {1e3 * median(several):.0f} ({1e3 * max(several):.0f}) | {median(several) / median(one):.2f} |"
            )


def training_step(config: ModelConfig, items: int, seed: int) -> Callable[[], None]:
    """A step of text and frames on one batch."""
    torch.manual_seed(seed)
    modalities = {"text": token_modality(SYMBOLS, 0, 7, config), "audio": frame_modality(MELS, FRAMES + 1, config)}
    prior = PRIORS[config.prior](config.prior_components, config.latent)
    model = MultimodalVAE(modalities, FUSIONS[config.fusion](len(modalities), config.latent), prior)
    random = np.random.default_rng(seed)
    batch = {
        "text": Sequence(torch.randint(1, SYMBOLS, (items, 6)), torch.from_numpy(random.integers(4, 7, items))),
        "audio": Sequence(torch.randn(items, FRAMES, MELS), torch.from_numpy(random.integers(25, FRAMES + 1, items))),
    }
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        (-coordinated(model, batch).objective.mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1000.0)
        optimizer.step()

    return step


def in_turns(step: Callable[[], None], ways: tuple[int, ...], seconds: float) -> list[list[float]]:
    """Seconds of the steps on each number of threads, of which the first of every turn does not count."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(ROUNDS):
        for threads, found in zip(ways, times, strict=True):
            torch.set_num_threads(threads)
            step()
            ends = time.perf_counter() + seconds / ROUNDS
            while True:
                started = time.perf_counter()
                step()
                found.append(time.perf_counter() - started)
                if time.perf_counter() > ends:
                    break
    return times


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that count for as long as the block runs."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.speed.threads")
