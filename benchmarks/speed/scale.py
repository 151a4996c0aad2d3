"""What does a data set of a million items cost to prepare, to open and to go through?

    python -m benchmarks.speed.scale [--counts 10000 1000000] [--scratch DIR]

Items are made: a text of 2 to 6 words and 3 to 10 frames of 4 channels, numbers in a JSONL table, read through
`prepare` by a process of its own, which also writes the cache. Another process then opens the prepared corpus and goes
through an epoch of its training split in batches of 64 without workers, and begins one in batches by frames. Memory is
Private_Dirty of /proc/self/smaps_rollup (what no other process shares and no file holds) beyond what it is after
imports; Private_Clean beside it are pages of the mapped store that the kernel takes back when others need memory.
Seconds are those on the clock where nothing else is said. Needs some 2 GB of disk a million items. Writes
benchmarks/results/scale.md.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.page_heading import heading
from mmseqvae.data import Corpus, make_loader, prepare
from mmseqvae.files import replacing, write_text

RESULTS = Path(__file__).parents[1] / "results"
BATCH = 64
STEPS = 3000  # of a batch by frames
WORDS = 1000
COLUMNS = {
    "items": "items",
    "disk": "MB of cache",
    "prepared": "prepared in s",
    "peak": "peak MB",
    "opened": "opened in s",
    "first": "first batch after s",
    "processor": "of these on the processor",
    "own": "private MB added: opened, a batch filled",
    "loader": "first batch of the loader",
    "epoch": "after an epoch",
    "framed": "first batch by frames",
    "clean": "clean pages, MB",
    "speed": "items a processor second",
}


def main(counts: list[int] | None = None, scratch: Path | None = None, results: Path = RESULTS, seed: int = 0) -> None:
    """Make, prepare, open and read items, and write the table.

    Args:
        counts: how many items, a line each; 10,000 and 1,000,000 by default.
        scratch: an existing folder to make data in, which are removed in the end; by default the system's.
        results: folder for the table.
        seed: of the items.
    """
    torch.set_num_threads(1)
    counts = counts or [10_000, 1_000_000]
    command = "python -m benchmarks.speed.scale --counts " + " ".join(map(str, counts))
    table = [*heading("Scale", command, seed), f"| {' | '.join(COLUMNS.values())} |", "|---" * len(COLUMNS) + "|"]
    for count in counts:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            manifest = made(Path(folder), count, seed)
            found = {"items": count, **alone(prepared, manifest), **alone(opened, manifest)}
        table.append(f"| {' | '.join(shown(found[column]) for column in COLUMNS)} |")
        print("\n".join(table), flush=True)
    write_text(results / "scale.md", "\n".join(table) + "\n")


def made(folder: Path, count: int, seed: int) -> Path:
    """A table of so many items, each of other frames."""
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(list("aeioubdfgklmnprst"), random.integers(2, 9))) for _ in range(WORDS)]
    phrases = [" ".join(random.choice(words, random.integers(2, 7))) for _ in range(WORDS)]
    motions = [str(random.normal(0, 1, (random.integers(2, 10), 4)).round(2).tolist())[1:] for _ in range(WORDS)]
    with replacing(folder / "items.jsonl") as part, part.open("w") as file:
        for item, (phrase, motion) in enumerate(random.integers(0, WORDS, (count, 2)).tolist()):
            split = "train" if item % 100 else "valid"
            first = [item % 100, item // 100 % 100, item // 10_000, 0]
            file.write(
                f'{{"id": "item-{item}", "split": "{split}", "label": "{phrase % 7}", "text": "{phrases[phrase]}", '
                f'"motion": [{first}, {motions[motion]}}}\n'
            )
    return folder / "items.jsonl"


def alone(function: Callable[[Path], dict[str, float]], manifest: Path) -> dict[str, float]:
    """The function in a fresh process, which has imported what this file does."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, manifest).result()


def corpus_of(manifest: Path) -> Corpus:
    return prepare(manifest, frames=["motion"], cache_dir=manifest.parent / "cache", workers=0)


def prepared(manifest: Path) -> dict[str, float]:
    started = time.perf_counter()
    corpus = corpus_of(manifest)
    seconds = time.perf_counter() - started
    framed = make_loader(corpus.datasets["train"], BATCH, frames_per_batch=STEPS)
    next(iter(framed))  # compiles what cuts and fills batches, for all processes to come
    size = sum(file.stat().st_size for file in manifest.parent.glob("cache/**/*") if file.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"disk": size / 1e6, "prepared": seconds, "peak": peak / 1e6}


def opened(manifest: Path) -> dict[str, float]:
    before, started, processor = private(), time.perf_counter(), time.process_time()
    train = corpus_of(manifest).datasets["train"]
    there = time.perf_counter() - started
    train.__getitems__(range(BATCH))
    own = private()
    batches = iter(make_loader(train, BATCH))
    batch: Any = next(batches)
    first, processor, loader = time.perf_counter() - started, time.process_time() - processor, private()
    started, items = time.process_time(), 0
    for batch in batches:
        items += len(batch["text"].lengths)
    speed, last = items / (time.process_time() - started), private()
    next(iter(make_loader(train, BATCH, frames_per_batch=STEPS)))
    framed = private()
    return {
        "opened": there, "first": first, "processor": processor, "speed": speed, "clean": last["Private_Clean"],
        **{name: found["Private_Dirty"] - before["Private_Dirty"]
           for name, found in (("own", own), ("loader", loader), ("epoch", last), ("framed", framed))},
    }  # fmt: skip


def private() -> dict[str, float]:
    """Megabytes of every kind of memory of this process."""
    with open("/proc/self/smaps_rollup") as file:
        lines = [line.split() for line in file][1:]
    return {name.rstrip(":"): int(kilobytes) * 1024 / 1e6 for name, kilobytes, _ in lines}


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.2f}"


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.speed.scale")
