"""How fast do batches come? Filling them and the whole loader, against copying their bytes and against a training step.

    python -m benchmarks.speed.loading [--data-dir DIR]

Items lie in a memory-mapped store and are standardised as they are read; batches of 64, sorted by length, no workers.
"Copying" is memcpy of the bytes of the same items, one after another, to new memory (`numpy.concatenate` of slices made
beforehand); "one memcpy" is of as many bytes in one piece, beginning where the batch's first item lies. The obvious
way gathers standardised slices with torch's `pad_sequence`. A training step is that of the spoken-digits recipe in
float32. Processor time of one thread, medians over epochs, in turns. Writes benchmarks/results/loading.md.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.page_heading import heading
from benchmarks.speed.timing import each, in_turns
from benchmarks.speed.training_workloads import digits
from mmseqvae.config import LogMelConfig
from mmseqvae.data import Batch, FrontEnd, SequenceDataset, make_loader
from mmseqvae.data.dataset import Column
from mmseqvae.data.store.feature_store import Shards, Store, write_shard
from mmseqvae.features.arrays import Standard
from mmseqvae.features.log_mel import LogMel
from mmseqvae.files import write_text
from mmseqvae.objectives import chosen
from mmseqvae.pipeline.build import build
from mmseqvae.tokenizers.characters import Tokenizer
from recipes import spoken_digits as recipe

RESULTS = Path(__file__).parents[1] / "results"
BATCH = 64


def main(
    data_dir: Path | None = None, repeats: int = 9, steps: int = 9, results: Path = RESULTS, seed: int = 0
) -> None:
    """Time batches and write the table.

    Args:
        data_dir: folder with the recordings of spoken digits, for their lengths; without it, made ones.
        repeats: epochs of each way, after one that does not count.
        steps: training steps, after one that does not count.
        results: folder for the table.
        seed: of lengths, values and weights.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    command = "python -m benchmarks.speed.loading" + (" --data-dir DIR" if data_dir else "")
    table = [
        *heading("Loading", f"{command} --repeats {repeats} --steps {steps}", seed),
        "| items | KiB a batch | way | µs a batch | / copying | / one memcpy | share of a training step |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, audio, dataset in workloads(Path(folder), data_dir, random):
            step = training_step(dataset, steps, seed) if audio is recipe.AUDIO else None
            table += rows(name, dataset, repeats, step)
    print("\n".join(table))
    write_text(results / "loading.md", "\n".join(table) + "\n")


def workloads(
    folder: Path, data_dir: Path | None, random: np.random.Generator
) -> Iterator[tuple[str, LogMelConfig, SequenceDataset]]:
    """A name, the settings of the log-mels and the items: of spoken digits, and of short sentences."""
    text, audio = digits(data_dir, random)
    channels = recipe.AUDIO.n_mels
    yield f"spoken digits, {channels} mels", recipe.AUDIO, made(folder, "digits", text, audio, channels, random)
    text, audio, usual = random.integers(4, 25, 3200), random.integers(30, 201, 3200), LogMelConfig()
    yield "30-200 frames, 80 mels", usual, made(folder, "sentences", text, audio, usual.n_mels, random)


def made(
    folder: Path, name: str, text: np.ndarray, audio: np.ndarray, channels: int, random: np.random.Generator
) -> SequenceDataset:
    """Random tokens and frames of these lengths, the frames in a store."""
    clips = ((str(item), random.standard_normal((n, channels), np.float32)) for item, n in enumerate(audio))
    write_shard(folder / name / "shard", channels, {}, clips)
    names = [str(item) for item in range(len(text))]
    store = Store(Shards(folder / name), names, channels)
    standard = Standard(torch.randn(channels), torch.rand(channels) + 0.5)
    tokens = Column.of([torch.from_numpy(random.integers(0, 15, n)) for n in text], torch.zeros(0).long())
    frames = Column(store.values, np.array([store.span(name)[0] for name in names]), audio.astype(np.int64), standard)
    return SequenceDataset(names, [None] * len(names), {"text": tokens, "audio": frames})


def rows(name: str, dataset: SequenceDataset, repeats: int, step: float | None) -> list[str]:
    """Lines of the table: an epoch of each way after an epoch of the other. `step`: seconds of a training step."""
    loader = make_loader(dataset, BATCH)
    batches = list(loader.batch_sampler.batches())
    frames = dataset.columns["audio"]
    store = frames.flat.view(np.ndarray).reshape(-1).view(np.uint8)
    bytes_of = [
        int(sum(column.lengths[batch].sum() * column.flat[:1].nbytes for column in dataset.columns.values()))
        for batch in batches
    ]
    first = [int(frames.starts[batch[0]]) * frames.flat[:1].nbytes for batch in batches]
    places = [(min(at, len(store) - count), count) for at, count in zip(first, bytes_of, strict=True)]
    pieces = [
        [
            [column.flat[column.starts[i] : column.starts[i] + column.lengths[i]].view(np.ndarray) for i in batch]
            for column in dataset.columns.values()
        ]
        for batch in batches
    ]
    ways: dict[str, Callable[[], object]] = {
        "one memcpy": lambda: each(copy, (store[at : at + count] for at, count in places)),
        "copying": lambda: each(lambda columns: each(np.concatenate, columns), pieces),
        "slices and `pad_sequence`": lambda: each(lambda batch: obvious(dataset, batch), batches),
        "filling batches": lambda: each(dataset.__getitems__, batches),
        "the whole loader": lambda: each(len, loader),
    }
    now = {way: seconds / len(batches) for way, seconds in in_turns(ways, repeats).items()}
    return [
        f"| {name} | {mean(bytes_of) / 1024:.0f} | {way} | {1e6 * found:.0f} | {found / now['copying']:.2f} "
        f"| {found / now['one memcpy']:.2f} | {'' if step is None else f'{found / step:.2%}'} |"
        for way, found in now.items()
    ]


def copy(source: np.ndarray) -> None:
    torch.empty(len(source), dtype=torch.uint8).numpy()[:] = source


def obvious(dataset: SequenceDataset, items: list[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """What `__getitems__` gives, as values and lengths, a tensor an item."""
    found = {}
    for name, column in dataset.columns.items():
        spans = [(column.starts[item], column.lengths[item]) for item in items]
        pieces = [torch.from_numpy(np.array(column.flat[start : start + length])) for start, length in spans]
        if column.standard is not None:
            pieces = [column.standard.apply(piece) for piece in pieces]
        found[name] = pad_sequence(pieces, batch_first=True), torch.tensor([len(piece) for piece in pieces])
    return found


def training_step(dataset: SequenceDataset, steps: int, seed: int) -> float:
    """Processor seconds of the recipe's step: objective, backward, clipping, Adam; the median over batches."""
    torch.manual_seed(seed)
    ends: dict[str, FrontEnd] = {"text": Tokenizer.train(recipe.WORDS), "audio": LogMel(recipe.AUDIO)}
    longest = {name: 2 * int(dataset.lengths(name).max()) for name in ends}
    model = build(ends, longest, recipe.MODEL)
    objective = chosen(recipe.OBJECTIVE.name, recipe.OBJECTIVE.options)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    batches: list[Batch] = list(make_loader(dataset, BATCH, seed=seed))[: steps + 1]
    times = []
    for batch in batches:
        started = time.process_time()
        optimizer.zero_grad()
        (-objective(model, batch).objective.mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.TRAINING.gradient_clip)
        optimizer.step()
        times.append(time.process_time() - started)
    return median(times[1:])


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.speed.loading")
