"""What does augmentation cost? Batches with noise and masks against plain ones, and features at other speeds.

And why speeds are computed from sound: how much less frames vary that are made by stretching log-mels in time.

    python -m benchmarks.speed.augment [--data-dir DIR]

Batches of 64 of the items of `benchmarks.speed.loading`, without workers, by the data set alone: plain, and as a
training that augments gets them, every recording with noise. A training step is that of the spoken-digits recipe in
float32. Features are those of made recordings, computed into a new cache without speeds and with two. Processor time of
one thread, medians over epochs, in turns. Stretched are log-mels of white noise, between neighbours in a straight line.
Writes benchmarks/results/augment.md.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.page_heading import heading
from benchmarks.speed.loading import BATCH, training_step, workloads
from benchmarks.speed.timing import each, in_turns
from mmseqvae.config import AugmentConfig, LogMelConfig
from mmseqvae.data import Augmented, SequenceDataset, make_loader, prepare
from mmseqvae.features.log_mel import LogMel, resampled
from mmseqvae.files import write_text
from recipes import spoken_digits as recipe

RESULTS = Path(__file__).parents[1] / "results"
MASKS = {"frequency_masks": 2, "time_masks": 2}
WAYS = {
    "noise": AugmentConfig(noise=1.0),
    "masks": AugmentConfig(**MASKS),
    "noise and masks": AugmentConfig(noise=1.0, **MASKS),
}
SPEEDS = (0.9, 1.1)
RECORDINGS, SECONDS = 40, 4


def main(
    data_dir: Path | None = None, repeats: int = 9, steps: int = 9, results: Path = RESULTS, seed: int = 0
) -> None:
    """Time batches and features and write the tables.

    Args:
        data_dir: folder with the recordings of spoken digits, for their lengths; without it, made ones.
        repeats: epochs of each way, after one that does not count.
        steps: training steps, after one that does not count.
        results: folder for the tables.
        seed: of lengths, values and weights.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    command = "python -m benchmarks.speed.augment" + (" --data-dir DIR" if data_dir else "")
    table = [
        *heading("Augmentation", f"{command} --repeats {repeats} --steps {steps}", seed),
        "| items | way | µs a batch | share of a training step |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, audio, dataset in workloads(Path(folder), data_dir, random):
            step = training_step(dataset, steps, seed) if audio is recipe.AUDIO else None
            table += rows(name, dataset, audio, repeats, step)
    table += ["", "| features of | s an hour of audio | MB an hour of audio |", "|---|---|---|"]
    waves = [0.1 * random.standard_normal(16000 * SECONDS) for _ in range(RECORDINGS)]
    found: dict[tuple[float, ...], list[tuple[float, float]]] = {(): [], SPEEDS: []}
    for turn in range(repeats + 1):
        for speeds, costs in found.items():
            costs += [features(waves, speeds)] if turn else []
    for speeds, costs in found.items():
        seconds, size = (median(cost) for cost in zip(*costs, strict=True))
        speed = " and ".join(f"{speed:g}" for speed in speeds)
        table.append(f"| recordings{f', also at speeds {speed}' if speeds else ''} | {seconds:.0f} | {size:.0f} |")
    table += ["", "| white noise at speed | variance of stretched log-mels / of those of the sound |", "|---|---|"]
    noise = 0.1 * random.standard_normal(16000 * 60).astype(np.float32)
    table += [f"| {speed:g} | {stretched_over_played(noise, speed):.2f} |" for speed in SPEEDS]
    print("\n".join(table))
    write_text(results / "augment.md", "\n".join(table) + "\n")


def rows(name: str, dataset: SequenceDataset, audio: LogMelConfig, repeats: int, step: float | None) -> list[str]:
    """Lines of the table: an epoch of each way after an epoch of the other. `step`: seconds of a training step."""
    batches = list(make_loader(dataset, BATCH).batch_sampler.batches())
    front_ends = {"audio": LogMel(audio, dataset.columns["audio"].standard)}
    sources = {"plain": dataset} | {way: Augmented(dataset, front_ends, config, 0) for way, config in WAYS.items()}
    times = in_turns({way: partial(each, source.__getitems__, batches) for way, source in sources.items()}, repeats)
    now = {way: seconds / len(batches) for way, seconds in times.items()}
    return [
        f"| {name} | {way} | {1e6 * found:.0f} | {'' if step is None else f'{found / step:.2%}'} |"
        for way, found in now.items()
    ]


def features(waves: list[np.ndarray], speeds: tuple[float, ...]) -> tuple[float, float]:
    """Processor seconds and megabytes an hour of audio, in a cache of their own."""
    hours = RECORDINGS * SECONDS / 3600
    items = [{"audio": (wave, 16000), "split": "train"} for wave in waves]
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        prepare(items, speeds=speeds, cache_dir=folder, workers=0)
        seconds = time.process_time() - started
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return seconds / hours, size / 1e6 / hours


def stretched_over_played(wave: np.ndarray, speed: float) -> float:
    """Ratio of the variances over time, the mean over the channels, of a sound at 16 kHz."""
    end = LogMel(LogMelConfig())
    mels, played = end.features(wave).numpy(), end.features(resampled(wave, speed * 16000, 16000, "noise")).numpy()
    times = np.arange(0, len(mels) - 1, speed)
    stretched = np.stack([np.interp(times, np.arange(len(mels)), channel) for channel in mels.T], 1)
    return float((stretched.var(0) / played.var(0)).mean())


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.speed.augment")
