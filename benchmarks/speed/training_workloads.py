"""What training steps are timed on and how they are written: workloads, ours and plain code, their floors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.speed.plain_model import Plain
from mmseqvae.data import BucketBatchSampler
from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.distributions.gaussian import Gaussian
from mmseqvae.distributions.likelihoods import Normal
from mmseqvae.encoders import FrameEncoder, TokenEncoder
from mmseqvae.fusion import poe
from mmseqvae.modality import Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.sequence import Sequence

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
