"""How fast is a training step? Against naive code, what a competent user writes, and the kernels' floor, in one run.

    python -m benchmarks.speed.training [--data-dir DIR]

One step: encode text and audio, fuse, decode both from the posteriors of all three subsets, backward, clip, Adam.
GRU 256 everywhere, latent 32, 80 mels, one frame a step, batch 64. The naive code draws random batches; the competent
code and ours sort by length. Times are processor time of one thread a valid frame, median over batches, interleaved.
bf16 is left out where the processor has none and torch would emulate it. Writes benchmarks/results/training.md.
"""

from __future__ import annotations

import math
import multiprocessing
import shlex
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from benchmarks.page_heading import has_bf16, heading
from benchmarks.speed.training_workloads import (
    BATCH,
    HIDDEN,
    LATENT,
    MELS,
    RESULTS,
    Batch,
    Way,
    Workload,
    floor_seconds,
    flops,
    make,
    ours,
    peak,
    take_times,
    ways,
    workloads,
)
from mmseqvae.decoders import FrameDecoder
from mmseqvae.distributions.gaussian import Gaussian
from mmseqvae.distributions.likelihoods import Normal
from mmseqvae.encoders import FrameEncoder
from mmseqvae.files import write_text
from mmseqvae.modality import Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.sequence import Sequence
from mmseqvae.training.malloc import keep_freed_memory


def main(
    data_dir: Path | None = None,
    only: list[str] | None = None,
    batches: int = 4,
    repeats: int = 3,
    growth: list[int] = [200, 400, 800, 1600],  # noqa: B006
    results: Path = RESULTS,
    seed: int = 0,
) -> None:
    """Time training steps and write the tables.

    Args:
        data_dir: folder with the recordings of spoken digits, for their lengths; without it, made ones.
        only: names of the workloads to measure, all of them by default.
        batches: different batches of each workload.
        repeats: times that each batch is run, the first of them not counted.
        growth: longest sequences for the growth with the number of steps.
        results: folder for the table.
        seed: of lengths and values.
    """
    torch.set_num_threads(1)
    keep_freed_memory()  # as `fit` does
    found = workloads(data_dir, seed)
    if strange := sorted(set(only or ()) - set(found)):
        raise ValueError(f"--only names {strange}; there are {list(found)}")
    command = "python -m benchmarks.speed.training" + (" --data-dir DIR" if data_dir else "")
    command += f" --only {shlex.join(only)}" if only else ""
    command += f" --batches {batches} --repeats {repeats} --growth {' '.join(map(str, growth))}"
    peaks = {low: peak(low) for low in ((False, True) if has_bf16() else (False,))}
    table: list[str] = []

    def add(*lines: str) -> None:
        table.extend(lines)
        print("\n".join(lines), flush=True)
        write_text(results / "training.md", "\n".join(table) + "\n")

    add(
        *heading("Training steps", command, seed),
        f"Matrix products reach {peaks[False] / 1e9:.0f} GFLOP/s in float32"
        + (f" and {peaks[True] / 1e9:.0f} in bf16." if True in peaks else "; this processor has no bf16."),
        "",
        "| workload | way | µs a frame | / naive float32 | / padded float32 | useful FLOP/s over peak | peak MiB |",
        "|---|---|---|---|---|---|---|",
    )
    for name in only or found:
        add(*compare(found[name], batches, repeats, peaks, seed))
    add(*with_steps(growth, repeats, [*peaks], seed))
    add(*with_modalities(repeats, seed))


def compare(workload: Workload, batches: int, repeats: int, peaks: dict[bool, float], seed: int) -> list[str]:
    every = {name: way for name, way in ways(workload, batches, seed).items() if way.low in peaks}
    take_times(every, batches, repeats)
    per_frame = {name: way.microseconds_a_frame() for name, way in every.items()}
    sorted_ = every["ours, float32"].batches
    useful = sum(flops(workload, b) for b in sorted_) / sum(int(b["audio"].lengths.sum()) for b in sorted_)
    lines = []
    for name, found in per_frame.items():
        low = every[name].low
        lines.append(
            f"| {workload.name} | {name} | {found:.1f} | {found / per_frame['naive, float32']:.2f} "
            f"| {found / per_frame['padded, float32']:.2f} | {useful / (found * 1e-6) / peaks[low]:.2f} "
            f"| {peak_memory(workload, name, batches, seed):.0f} |"
        )
    for low in peaks:
        seconds = sum(floor_seconds(workload, b, low) for b in sorted_)
        found = 1e6 * seconds / sum(int(b["audio"].lengths.sum()) for b in sorted_)
        lines.append(
            f"| {workload.name} | floor: bare products, {'bf16' if low else 'float32'} | {found:.1f} "
            f"| {found / per_frame['naive, float32']:.2f} | {found / per_frame['padded, float32']:.2f} "
            f"| {useful / (found * 1e-6) / peaks[low]:.2f} | |"
        )
    return lines


def peak_memory(workload: Workload, name: str, batches: int, seed: int) -> float:
    """MiB that one step on the longest batch adds to a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of, (workload, name, batches, seed))


def _peak_of(workload: Workload, name: str, batches: int, seed: int) -> float:
    torch.set_num_threads(1)
    keep_freed_memory()
    way = ways(workload, batches, seed)[name]
    way.batches = [max(way.batches, key=lambda b: int(b["audio"].lengths.sum()))]
    before = memory("VmRSS")
    way.step(0)
    return memory("VmHWM") - before


def memory(name: str) -> float:
    """MiB of this process, now (VmRSS) or at most so far (VmHWM), as Linux tells it; NaN on other systems."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), math.nan)


def with_steps(growth: list[int], repeats: int, kinds: list[bool], seed: int) -> list[str]:
    """How a step grows with the number of frames: lengths from 95 % of the longest on, a sixth as many tokens."""
    heads = " | ".join(f"seconds a step, {'bf16' if low else 'float32'} | over the row above" for low in kinds)
    lines = ["", f"| longest | {heads} |", "|---" * (1 + 2 * len(kinds)) + "|"]
    before: dict[bool, float] = {}
    random = np.random.default_rng(seed)
    for longest in growth:
        audio = random.integers(longest * 95 // 100, longest + 1, BATCH)
        workload = Workload("", audio // 6, audio, 64)
        model = make(64, int(workload.text.max()), longest, seed)
        batch = [workload.batch(workload.text, workload.audio, seed)]
        cells = []
        for low in kinds:
            way = Way(model, ours, batch, low)
            took = median([way.step(0) for _ in range(repeats + 1)][1:])
            cells += [f"{took:.2f}", f"{took / before[low]:.2f}" if low in before else ""]
            before[low] = took
        lines.append(f"| {longest} | {' | '.join(cells)} |")
    return lines


def with_modalities(repeats: int, seed: int) -> list[str]:
    """How a step of the joint bound grows with the number of audio modalities of 100 frames."""
    lines = ["", "| audio modalities | seconds a step of the joint bound, float32 | a modality |", "|---|---|---|"]
    generator = torch.Generator().manual_seed(seed)
    for count in (1, 2, 4):
        torch.manual_seed(seed)
        model = MultimodalVAE(
            {
                f"audio{i}": Modality(
                    FrameEncoder(MELS, LATENT, hidden=HIDDEN),
                    FrameDecoder(Normal(MELS), LATENT, max_steps=100, hidden=HIDDEN),
                )
                for i in range(count)
            }
        )
        lengths = torch.full((BATCH,), 100)
        batch = {name: Sequence(torch.randn(BATCH, 100, MELS, generator=generator), lengths) for name in model.readable}
        way = Way(model, joint, [batch], False)
        took = median([way.step(0) for _ in range(repeats + 1)][1:])
        lines.append(f"| {count} | {took:.2f} | {took / count:.2f} |")
    return lines


def joint(model: MultimodalVAE, batch: Batch) -> Tensor:
    q = model.encode(batch).posterior()
    assert isinstance(q, Gaussian)
    scores = model.log_likelihood(q.rsample(), batch)
    return (q.kl().sum(-1) - sum(scores.values(), torch.zeros(()))).mean()


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.speed.training")
