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
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.page_heading import has_bf16, heading
from benchmarks.speed.plain_model import Plain
from mmseqvae.data import BucketBatchSampler
from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.distributions.gaussian import Gaussian
from mmseqvae.distributions.likelihoods import Normal
from mmseqvae.encoders import FrameEncoder, TokenEncoder
from mmseqvae.files import write_text
from mmseqvae.fusion import poe
from mmseqvae.modality import Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.sequence import Sequence
from mmseqvae.training.malloc import keep_freed_memory

RESULTS = Path(__file__).parents[1] / "results"
BATCH, MELS, INPUTS, HIDDEN, LATENT, EMBEDDING = 64, 80, 128, 256, 32, 64
SUBSETS = torch.tensor([[True, False], [False, True], [True, True]])  # of text and audio
Batch = dict[str, Sequence]


@dataclass(frozen=True)
class Workload:
    """Lengths of text and audio, and the vocabulary."""

    name: str
    text: np.ndarray
    audio: np.ndarray
    vocabulary: int

    def batches(self, count: int, bucketed: bool, seed: int) -> list[Batch]:
        """`count` batches, spread evenly over the lengths where they are sorted."""
        random = np.random.default_rng(seed)
        if bucketed:
            order = BucketBatchSampler(self.text + self.audio, BATCH, seed=seed).batches()
            whole = sorted((b for b in order if len(b) == BATCH), key=lambda b: int(self.audio[b].sum()))
            rows = [whole[i] for i in np.linspace(0, len(whole) - 1, 2 * count + 1).astype(int)[1::2]]
        else:
            rows = [random.permutation(len(self.audio))[:BATCH].tolist() for _ in range(count)]
        return [self.batch(self.text[r], self.audio[r], seed + i) for i, r in enumerate(rows)]

    def batch(self, text: np.ndarray, audio: np.ndarray, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(self.vocabulary, (len(text), int(text.max())), generator=generator)
        frames = torch.randn(len(audio), int(audio.max()), MELS, generator=generator)
        return {
            "text": Sequence(tokens, torch.from_numpy(text.astype(np.int64))),
            "audio": Sequence(frames, torch.from_numpy(audio.astype(np.int64))),
        }


def workloads(data_dir: Path | None, seed: int) -> dict[str, Workload]:
    random = np.random.default_rng(seed)
    items = 50 * BATCH
    short = random.integers(4, 25, items), random.integers(30, 201, items)
    sentence = random.integers(200, 801, items)
    fsdd_text, fsdd_audio = digits(data_dir, random)
    return {
        "30-200 frames, V 64": Workload("30-200 frames, V 64", *short, 64),
        "30-200 frames, V 8,000": Workload("30-200 frames, V 8,000", *short, 8000),
        "spoken digits": Workload("spoken digits", fsdd_text, fsdd_audio, 20),
        "200-800 frames, V 64": Workload("200-800 frames, V 64", sentence // 6, sentence, 64),
    }


def digits(data_dir: Path | None, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the recordings in `data_dir` at 80 frames a second; without it, log-normal ones of the same shape."""
    if data_dir is None:
        frames = np.exp(random.normal(np.log(33), 0.35, 3000)).round().clip(12, 180).astype(int)
        return random.integers(4, 7, 3000), frames
    import soundfile

    files = sorted(data_dir.rglob("*.wav"))
    if not files:
        raise FileNotFoundError(f"{data_dir} holds no .wav files")
    infos = [soundfile.info(file) for file in files]
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    text = np.array([len(words[int(file.stem.split("_")[0])]) + 1 for file in files])
    return text, np.array([1 + int(80 * info.frames / info.samplerate) for info in infos])


# -------------------------------------------------------------------------------------------------------- the ways


def make(vocabulary: int, longest_text: int, longest_audio: int, seed: int) -> MultimodalVAE:
    torch.manual_seed(seed)
    text = Modality(
        TokenEncoder(vocabulary, LATENT, embedding=EMBEDDING, hidden=HIDDEN),
        TokenDecoder(vocabulary, LATENT, end=0, max_steps=longest_text + 1, embedding=EMBEDDING, hidden=HIDDEN),
    )
    audio = Modality(
        FrameEncoder(MELS, LATENT, hidden=HIDDEN),
        FrameDecoder(Normal(MELS), LATENT, max_steps=longest_audio + 1, hidden=HIDDEN, inputs=INPUTS),
    )
    return MultimodalVAE({"text": text, "audio": audio})


def ours(model: MultimodalVAE, batch: Batch) -> Tensor:
    """Minus the mean over batch and subsets of the bound on log p(text, audio)."""
    encoded = model.encode(batch)
    experts = [encoded.expert(name) for name in ("text", "audio")]
    return bound(experts, lambda z: sum(model.log_likelihood(z, batch).values(), torch.zeros(())))


def plain(model: Plain, batch: Batch) -> Tensor:
    """The same number."""
    return bound(model.encode(batch), lambda z: model.score(z, batch))


def bound(experts: list[Gaussian], score: Callable[[Tensor], Tensor]) -> Tensor:
    stacked = Gaussian(torch.stack([e.mean for e in experts]), torch.stack([e.logvar for e in experts]))
    rows = stacked.mean.shape[1]
    subsets = [poe(stacked, chosen[:, None].expand(-1, rows)) for chosen in subsets_on(stacked.mean.device)]
    z = torch.stack([q.rsample() for q in subsets])
    kl = torch.stack([q.kl().sum(-1) for q in subsets])
    return (kl - score(z)).mean()


@cache
def subsets_on(device: torch.device) -> Tensor:
    """`SUBSETS`, copied to a GPU once."""
    return SUBSETS.to(device)


class Way:
    """A model with its optimiser, timed step by step."""

    def __init__(
        self, model: nn.Module, loss: Callable[..., Tensor], batches: list[Batch], low: bool, device: str = "cpu"
    ) -> None:
        self.model, self.loss, self.low, self.device = model.to(device), loss, low, device
        self.batches = [{name: x.to(device) for name, x in batch.items()} for batch in batches]
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=device == "cuda")
        self.times: list[float] = []

    def step(self, index: int) -> float:
        """Processor seconds, on a GPU those until it is done."""
        started = now(self.device)
        self.optimizer.zero_grad()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.low):
            loss = self.loss(self.model, self.batches[index % len(self.batches)])
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1000.0)
        self.optimizer.step()
        return now(self.device) - started

    def microseconds_a_frame(self) -> float:
        """Over all batches: medians of each batch's times, summed, over all valid frames."""
        n = len(self.batches)
        each = [median(self.times[i::n]) for i in range(n)]
        return 1e6 * sum(each) / sum(int(b["audio"].lengths.sum()) for b in self.batches)


def now(device: str) -> float:
    """Seconds of this process; of the clock, once all is done, for a GPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def flops(workload: Workload, batch: Batch) -> float:
    """Multiplications and additions that a step needs: matrix products on valid steps, backward twice the forward.

    What the draws of all subsets share, the decoders' projection of their inputs, is needed once; frames that were
    recorded need no gradient.
    """
    text, audio = (int(batch[name].lengths.sum()) for name in ("text", "audio"))
    s, gates = len(SUBSETS), 3 * HIDDEN
    encoders = 2 * gates * (text * (EMBEDDING + HIDDEN) + audio * (MELS + HIDDEN))
    words = text * gates * EMBEDDING + s * text * (gates * HIDDEN + HIDDEN * workload.vocabulary)
    frames = audio * (MELS * INPUTS + gates * INPUTS) + s * audio * (gates * HIDDEN + HIDDEN * MELS)
    recorded = audio * (2 * gates * MELS + MELS * INPUTS)
    return 3.0 * 2 * (encoders + words + frames) - 2 * recorded


def floor_seconds(workload: Workload, batch: Batch, low: bool) -> float:
    """The bare matrix products of a step at the sizes in which they come, forward and backward."""
    counts = {name: step_counts(batch[name].lengths) for name in ("text", "audio")}
    s, gates = len(SUBSETS), 3 * HIDDEN
    kind = torch.bfloat16 if low else torch.float32
    seconds = 0.0
    for name, inputs in (("text", EMBEDDING), ("audio", MELS)):
        seconds += 2 * recurrence(counts[name], 1, inputs, gates, kind)
        seconds += recurrence(counts[name], s, EMBEDDING if name == "text" else INPUTS, gates, kind)
    text, audio = (int(batch[name].lengths.sum()) for name in ("text", "audio"))
    seconds += product(s * text, HIDDEN, workload.vocabulary, kind)
    return seconds + product(s * audio, HIDDEN, MELS, kind) + product(audio, MELS, INPUTS, kind)


def step_counts(lengths: Tensor) -> list[int]:
    return [int((lengths > t).sum()) for t in range(int(lengths.max()))]


def recurrence(counts: list[int], draws: int, inputs: int, gates: int, kind: torch.dtype) -> float:
    """A product of the state and one of its gradient a step, the others at once, those of the inputs for all draws."""
    hidden, rows, most = gates // 3, sum(counts), draws * max(counts)
    weight = torch.randn(gates, hidden, dtype=kind)
    state, change = torch.randn(most, hidden, dtype=kind), torch.randn(most, gates, dtype=kind)
    started = time.process_time()
    for count in counts:
        state[: draws * count] @ weight.t()
        change[: draws * count] @ weight
    took = time.process_time() - started
    return took + product(rows, inputs, gates, kind) + product(draws * rows, hidden, gates, kind, 1)


def product(rows: int, inputs: int, outputs: int, kind: torch.dtype, times: int = 3) -> float:
    """`times` matrix products of these sizes, in pieces of 1,024 rows."""
    a, b = torch.randn(1024, inputs, dtype=kind), torch.randn(inputs, outputs, dtype=kind)
    a @ b
    started = time.process_time()
    for _ in range(times * max(1, rows // 1024)):
        a @ b
    return (time.process_time() - started) * rows / (1024 * max(1, rows // 1024))


def peak(low: bool, device: str = "cpu", size: int = 2048) -> float:
    """FLOP/s of a large square product."""
    a = torch.randn(size, size, dtype=torch.bfloat16 if low else torch.float32, device=device)
    times = []
    for _ in range(6):
        started = now(device)
        a @ a
        times.append(now(device) - started)
    return 2 * size**3 / median(times[1:])


# ------------------------------------------------------------------------------------------------------- the tables


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


def ways(workload: Workload, batches: int, seed: int, device: str = "cpu") -> dict[str, Way]:
    model = make(workload.vocabulary, int(workload.text.max()), int(workload.audio.max()), seed)
    naive, padded = Plain(model, naive=True), Plain(model, naive=False)
    random = workload.batches(batches, bucketed=False, seed=seed)
    sorted_ = workload.batches(batches, bucketed=True, seed=seed)
    return {
        "naive, float32": Way(naive, plain, random, False, device),
        "naive, bf16": Way(naive, plain, random, True, device),
        "padded, float32": Way(padded, plain, sorted_, False, device),
        "padded, bf16": Way(padded, plain, sorted_, True, device),
        "ours, float32": Way(model, ours, sorted_, False, device),
        "ours, bf16": Way(model, ours, sorted_, True, device),
    }


def take_times(every: dict[str, Way], batches: int, repeats: int) -> None:
    """Step every way on every batch, in turns; the first round does not count."""
    for turn in range(repeats + 1):
        for index in range(batches):
            for way in every.values():
                seconds = way.step(index)
                way.times += [seconds] if turn else []


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
