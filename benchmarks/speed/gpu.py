"""How fast is it on a GPU? Training steps and free-running generation, against plain code, in turns, in one run.

    python -m benchmarks.speed.gpu [--data-dir DIR]

The models, workloads and ways of `benchmarks.speed.training` and `benchmarks.speed.sampling`. Times run from one moment
at which the GPU has nothing to do to the next, medians; float32 is torch's own on such a card, with TF32 inside of
cuDNN only. Kernels' times come from the profiler: where they are far less than a step, the GPU waits for the processor
or for one small kernel after another. Writes benchmarks/results/gpu.md.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.sampling import LATENT, ObviousFrames, ObviousTokens, frame_decoder, speech_ways, token_decoder
from benchmarks.speed.training_workloads import (
    BATCH,
    RESULTS,
    Way,
    Workload,
    flops,
    make,
    now,
    ours,
    peak,
    take_times,
    ways,
    workloads,
)
from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.decoding import FrameSampling, TokenSampling
from mmseqvae.files import write_text
from mmseqvae.rnn.kernels import cuda_graphs

CUDA = "cuda"
RECURRENT = ("rnn", "gru", "lstm")  # what cuDNN calls the kernels of a recurrent layer, its products aside
KINDS = {False: "float32", True: "bf16"}


def main(
    data_dir: Path | None = None,
    batches: int = 3,
    repeats: int = 3,
    growth: list[int] = [200, 400, 800, 1600],  # noqa: B006
    sizes: list[int] = [16, 64, 256, 1024, 4096],  # noqa: B006
    models: int = 3,
    results: Path = RESULTS,
    seed: int = 0,
) -> None:
    """Time training steps and generation on the first GPU and write the tables.

    Args:
        data_dir: folder with the recordings of spoken digits, for their lengths; without it, made ones.
        batches: different batches of each workload.
        repeats: times that each is run, after a first one that does not count.
        growth: longest sequences for the growth with the number of steps.
        sizes: numbers of items in a batch.
        models: trained beside one another, each on a stream of its own.
        results: folder for the table.
        seed: of lengths and values.
    """
    if not torch.cuda.is_available():
        raise ValueError(
            "torch finds no GPU: benchmarks.speed.training and benchmarks.speed.sampling measure a processor"
        )
    table: list[str] = []

    def add(lines: Iterable[str]) -> None:
        for line in lines:
            table.append(line)
            print(line, flush=True)
            write_text(results / "gpu.md", "\n".join(table) + "\n")

    command = "python -m benchmarks.speed.gpu" + (" --data-dir DIR" if data_dir else "")
    command += f" --batches {batches} --repeats {repeats} --seed {seed}"
    peaks = {low: peak(low, CUDA, 8192) for low in KINDS}
    add(
        [
            "# On a GPU",
            "",
            f"`{command}`",
            "",
            f"{time.strftime('%Y-%m-%d')}, {torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA "
            f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, Python {platform.python_version()}, "
            f"seed {seed}. Matrix products reach {peaks[False] / 1e12:.0f} TFLOP/s in float32 and "
            f"{peaks[True] / 1e12:.0f} in bf16.",
            "",
        ]
    )
    add(training(workloads(data_dir, seed), batches, repeats, peaks, seed))
    add(beside(repeats, models, seed))
    add(with_steps(growth, repeats, seed))
    add(with_items(sizes, repeats, seed))
    add(generation(repeats, seed))
    add(latency(repeats))


# -------------------------------------------------------------------------------------------------------- training


def training(
    found: dict[str, Workload], batches: int, repeats: int, peaks: dict[bool, float], seed: int
) -> Iterable[str]:
    yield from head(
        f"Training steps, batch {BATCH}. Of a step: the time of its kernels added up, and of cuDNN's recurrent ones.",
        "workload | way | ms a step | µs a frame | / naive float32 | / padded float32 | kernels | recurrent "
        "| useful FLOP/s over peak | peak MiB",
    )
    for workload in found.values():
        every = ways(workload, batches, seed, CUDA)
        take_times(every, batches, repeats)
        per_frame = {name: way.microseconds_a_frame() for name, way in every.items()}
        for name, way in every.items():
            mean = sum(way.times) / len(way.times)
            kernels, recurrent = kernel_seconds(way)
            useful = sum(flops(workload, b) for b in way.batches) / sum(frames_of(b) for b in way.batches)
            yield (
                f"| {workload.name} | {name} | {1e3 * mean:.2f} | {per_frame[name]:.3f} "
                f"| {per_frame[name] / per_frame['naive, float32']:.3f} "
                f"| {per_frame[name] / per_frame['padded, float32']:.2f} | {kernels / mean:.2f} "
                f"| {recurrent / mean:.2f} | {useful / (per_frame[name] * 1e-6) / peaks[way.low]:.3f} "
                f"| {peak_memory(way):.0f} |"
            )


def frames_of(batch: dict[str, Any]) -> int:
    return int(batch["audio"].lengths.sum())


def kernel_seconds(way: Way) -> tuple[float, float]:
    """Seconds of a step's kernels, one after another, and of those of recurrent layers, mean over the batches."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for index in range(len(way.batches)):
            way.step(index)
    kernels = [e for e in profiler.key_averages() if e.device_type == DeviceType.CUDA]
    every = sum(e.self_device_time_total for e in kernels)
    recurrent = sum(e.self_device_time_total for e in kernels if any(n in e.key.lower() for n in RECURRENT))
    return 1e-6 * every / len(way.batches), 1e-6 * recurrent / len(way.batches)


def peak_memory(way: Way) -> float:
    """MiB that one step on the longest batch adds to what lies on the GPU."""
    longest = max(range(len(way.batches)), key=lambda i: frames_of(way.batches[i]))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    way.step(longest)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def even(longest: int, items: int, low: bool, seed: int) -> Way:
    """A step on `items` sequences of 95 to 100 % of `longest` frames, and a sixth as many tokens."""
    audio = np.random.default_rng(seed).integers(longest * 95 // 100, longest + 1, items)
    workload = Workload("", audio // 6, audio, 64)
    model = make(64, int(workload.text.max()), longest, seed)
    return Way(model, ours, [workload.batch(workload.text, workload.audio, seed)], low, CUDA)


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Median of `repeats` calls after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        started = now(CUDA)
        run()
        times.append(1e3 * (now(CUDA) - started))
    return median(times[1:])


def beside(repeats: int, models: int, seed: int) -> Iterable[str]:
    yield from head(
        f"A step of {models} models, one after another, and side by side on a stream each.",
        "longest | type | one after another, ms | side by side, ms | ratio",
    )
    streams = [torch.cuda.Stream() for _ in range(models)]
    for longest in (100, 400):
        for low, kind in KINDS.items():
            several = [even(longest, BATCH, low, seed + i) for i in range(models)]

            def together(several: list[Way] = several) -> None:
                for stream, each in zip(streams, several, strict=True):
                    with torch.cuda.stream(stream):
                        issue(each)

            def in_turn(several: list[Way] = several) -> None:
                for each in several:
                    issue(each)

            turn, side = milliseconds(in_turn, repeats), milliseconds(together, repeats)
            yield f"| {longest} | {kind} | {turn:.2f} | {side:.2f} | {side / turn:.2f} |"


def issue(way: Way) -> None:
    """A step that nobody waits for."""
    with patch("benchmarks.speed.training.now", lambda device: 0.0):
        way.step(0)


def with_steps(growth: list[int], repeats: int, seed: int) -> Iterable[str]:
    yield from head(
        f"How a step grows with the number of frames, batch {BATCH}.",
        "longest | ms, float32 | over the row above | ms, bf16 | over the row above",
    )
    before: dict[bool, float] = {}
    for longest in growth:
        cells = []
        for low in KINDS:
            way = even(longest, BATCH, low, seed)
            took = milliseconds(lambda way=way: way.step(0), repeats)  # type: ignore[misc]
            cells += [f"{took:.2f}", f"{took / before[low]:.2f}" if low in before else ""]
            before[low] = took
        yield f"| {longest} | {' | '.join(cells)} |"


def with_items(sizes: list[int], repeats: int, seed: int) -> Iterable[str]:
    yield from head(
        "How a step grows with the batch, 95 to 100 frames.",
        "items | ms, float32 | million frames a second | ms, bf16 | million frames a second | peak MiB, bf16",
    )
    for items in sizes:
        cells = []
        for low in KINDS:
            way = even(100, items, low, seed)
            took = milliseconds(lambda way=way: way.step(0), repeats)  # type: ignore[misc]
            cells += [f"{took:.2f}", f"{frames_of(way.batches[0]) / took / 1e3:.2f}"]
        yield f"| {items} | {' | '.join(cells)} | {peak_memory(way):.0f} |"


# ------------------------------------------------------------------------------------------------------ generation


def generation(repeats: int, seed: int, steps: int = 64, frames: int = 208) -> Iterable[str]:
    yield from head(
        f"Free running, {steps} tokens or {frames} frames a row. The first call of a graph captures it.",
        "what | batch | obvious loop, ms | step by step, ms | captured, ms | captured / obvious "
        "| captured / step by step | first call, ms",
    )
    torch.manual_seed(seed)
    for batch in (1, 64, 1024):
        z = torch.randn(batch, LATENT, device=CUDA)
        for vocabulary in (64, 8000):
            yield drawing(f"text, V {vocabulary:,}", token_decoder(vocabulary, steps).to(CUDA), z, steps, repeats)
        for r in (1, 4):
            yield drawing(f"audio, r = {r}", frame_decoder(r, frames).to(CUDA), z, frames, repeats)


def drawing(what: str, decoder: TokenDecoder | FrameDecoder, z: Tensor, limit: int, repeats: int) -> str:
    tokens = isinstance(decoder, TokenDecoder)
    obvious: Any = (ObviousTokens if tokens else ObviousFrames)(decoder)
    how: Any = TokenSampling(temperature=1.0) if tokens else FrameSampling()
    plain = milliseconds(lambda: obvious(z, limit), repeats)
    with patch.object(cuda_graphs, "fits", lambda z: False):
        step_by_step = milliseconds(lambda: decoder.sample(z, how), repeats)
    started = now(CUDA)
    decoder.sample(z, how)
    first = 1e3 * (now(CUDA) - started)
    took = milliseconds(lambda: decoder.sample(z, how), repeats)
    return (
        f"| {what} | {len(z)} | {plain:.2f} | {step_by_step:.2f} | {took:.2f} | {took / plain:.2f} "
        f"| {took / step_by_step:.2f} | {first:.0f} |"
    )


def latency(repeats: int, frames: int = 200) -> Iterable[str]:
    yield from head(
        f"From a typed word to sound, batch 1, {frames} frames (2.5 s); samples by Griffin-Lim on the processor.",
        "frames a step | first block of frames, ms | all frames, ms | all samples, ms",
    )
    for r in (1, 4):
        found = [milliseconds(way, repeats) for way in speech_ways(r, frames, CUDA).values()]
        yield f"| {r} | {' | '.join(f'{took:.2f}' for took in found)} |"


def head(text: str, columns: str) -> list[str]:
    return ["", text, "", f"| {columns} |", "|---" * (columns.count("|") + 1) + "|"]


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.speed.gpu")
