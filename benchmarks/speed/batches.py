"""How much of a batch is padding, how long does it take to order a million items, and how even are ranks and labels?

    python -m benchmarks.speed.batches [--data-dir DIR]

Padding: steps of the padded batches of an epoch over steps that are there, text and frames together, as a device that
pads computes them (training on the CPU runs over no padding). By frames a batch has at most 64 mean items' steps, so
that epochs have about as many batches. Ranks: the same epoch dealt to 8 processes, of which all wait for the one with
the most padded steps. Lengths of sentences are made: 13,100 of them, as LJSpeech has, of 200 to 800 frames, or
log-normal with the same bounds; text is proportional to them, give or take 8 %. Processor time of one thread.
Writes benchmarks/results/batches.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from benchmarks.page_heading import heading
from benchmarks.speed.training_workloads import digits
from mmseqvae.data import BucketBatchSampler
from mmseqvae.files import write_text

RESULTS = Path(__file__).parents[1] / "results"
BATCH, RANKS, SENTENCES = 64, 8, 13_100


def main(data_dir: Path | None = None, items: int = 1_000_000, results: Path = RESULTS, seed: int = 0) -> None:
    """Measure and write the tables.

    Args:
        data_dir: folder with the recordings of spoken digits, for their lengths; without it, made ones.
        items: how many are ordered for the table of times.
        results: folder for the tables.
        seed: of lengths, weights and orders.
    """
    torch.set_num_threads(1)
    random = np.random.default_rng(seed)
    command = "python -m benchmarks.speed.batches" + (" --data-dir DIR" if data_dir else "")
    text, audio = digits(data_dir, random)
    even, skewed = random.integers(200, 801, SENTENCES), random.normal(np.log(480), 0.4, SENTENCES)
    data = {
        "spoken digits" + ("" if data_dir else ", made"): np.stack([text, audio], axis=1),
        "200-800 frames": sentences(even, random),
        "log-normal sentences": sentences(np.exp(skewed).astype(int).clip(200, 800), random),
    }
    table = [
        *heading("Batches", f"{command} --items {items}", seed),
        "| lengths | batches | a batch | items | computed / valid | of text alone | 8 ranks: slowest / mean |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, lengths in data.items():
        table += padding(name, lengths, seed)
    table += ["", *speed(items, random, seed), "", *evenness(random, seed)]
    print("\n".join(table))
    write_text(results / "batches.md", "\n".join(table) + "\n")


def sentences(frames: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """[N, 2]: characters, a sixth of the frames give or take 8 %, and frames."""
    return np.stack([1 + (frames / 6 * random.normal(1, 0.08, len(frames))).astype(int), frames], axis=1)


def padding(name: str, lengths: np.ndarray, seed: int) -> list[str]:
    """Lines of the table, a way each."""
    most = int(BATCH * lengths.sum(1).mean())
    steps = lengths.sum(1)
    ways: dict[str, Callable[[int, int], BucketBatchSampler]] = {
        "as they come": lambda rank, ranks: BucketBatchSampler(steps, BATCH, False, rank=rank, ranks=ranks),
        f"{BATCH} items": lambda rank, ranks: BucketBatchSampler(steps, BATCH, seed=seed, rank=rank, ranks=ranks),
        f"{most} frames": lambda rank, ranks: BucketBatchSampler(
            lengths, BATCH, seed=seed, frames_per_batch=most, rank=rank, ranks=ranks
        ),
    }
    lines = []
    for way, sampler in ways.items():
        batches = list(sampler(0, 1).batches())
        sizes = [len(batch) for batch in batches]
        ranks = np.array([computed(lengths, sampler(rank, RANKS).batches()) for rank in range(RANKS)])
        waiting = ranks.max(0).sum() / ranks.mean(0).sum()
        both, alone = (sum(computed(part, batches)) / part.sum() for part in (lengths, lengths[:, :1]))
        lines.append(
            f"| {name} | {len(batches)} | {way} | {min(sizes)}-{max(sizes)} | {both:.3f} | {alone:.3f} | {waiting:.3f} "
            "|"
        )
    return lines


def computed(lengths: np.ndarray, batches: Iterable[list[int]]) -> list[int]:
    """Steps of every batch with its padding."""
    return [len(batch) * int(lengths[batch].max(0).sum()) if batch else 0 for batch in batches]


def speed(items: int, random: np.random.Generator, seed: int) -> list[str]:
    """How long it takes to make a sampler, to its first batch, and through an epoch; medians of three."""
    lengths = sentences(random.integers(200, 801, items), random)
    weights = random.random(items)
    BucketBatchSampler(lengths[:100], BATCH, frames_per_batch=2000)  # compiles
    ways: dict[str, Callable[[], BucketBatchSampler]] = {
        f"{BATCH} items": lambda: BucketBatchSampler(lengths.sum(1), BATCH, seed=seed),
        f"{BATCH} items, weighted": lambda: BucketBatchSampler(lengths.sum(1), BATCH, seed=seed, weights=weights),
        "40,000 frames": lambda: BucketBatchSampler(lengths, BATCH, seed=seed, frames_per_batch=40_000),
        "40,000 frames, weighted": lambda: BucketBatchSampler(
            lengths, BATCH, seed=seed, frames_per_batch=40_000, weights=weights
        ),
    }
    lines = [f"| {items:,} items | batches | s to make | s to shuffle, first batch | s of the epoch's other batches |"]
    lines += ["|---|---|---|---|---|"]
    for way, made in ways.items():
        turns = []
        for _ in range(3):
            marks = [time.process_time()]
            sampler = made()
            marks.append(time.process_time())
            batches = iter(sampler)
            next(batches)
            marks.append(time.process_time())
            number = 1 + sum(1 for _ in batches)
            turns.append(np.diff([*marks, time.process_time()]))
        making, first, others = np.median(turns, axis=0)
        lines.append(f"| {way} | {number} | {making:.2f} | {first:.2f} | {others:.2f} |")
    return lines


def evenness(random: np.random.Generator, seed: int) -> list[str]:
    """How often labels come in balanced draws of 20 epochs, against draws that know nothing of each other."""
    items, labels, epochs = 10_000, 10, 20
    groups = random.choice(labels, items, p=2.0 ** -np.arange(labels) / (2.0 ** -np.arange(labels)).sum())
    counts = np.bincount(groups, minlength=labels)
    weights = (1 / counts)[groups]
    sampler = BucketBatchSampler(np.ones(items, int), BATCH, seed=seed, weights=weights, groups=groups)
    ours = [np.concatenate(list(sampler)) for _ in range(epochs)]
    apart = [random.choice(items, items, p=weights / weights.sum()) for _ in range(epochs)]
    low, high = zip(*((found.min(), found.max()) for found in (
        np.array([np.bincount(groups[drawn], minlength=labels) for drawn in way]) for way in (ours, apart)
    )), strict=True)  # fmt: skip
    return [
        f"Balanced draws from {items:,} items of {labels} labels, each half as frequent as the last ({counts.max()} to "
        f"{counts.min()} items): in {epochs} epochs every label comes {low[0]} to {high[0]} times each, where "
        f"{items // labels} are asked for; independent draws (`WeightedRandomSampler`) give {low[1]} to {high[1]}."
    ]


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.speed.batches")
