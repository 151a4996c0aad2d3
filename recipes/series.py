"""Time series of several sensors, with holes: forecast with intervals, filled, and one sensor written from another.

    python -m recipes.series                                          # noisy spirals, made here
    python -m recipes.series --csv FILE.csv --columns a b c --window 96

The spirals are those of the multimodal deep Markov model (Zhi-Xuan et al. 2020, "Factorized inference in deep Markov
models for incomplete multimodal time series"): 1,000 of T = 100 steps, 600 to train on, noise of 0.1, x and y being a
modality each; here both directions are in both splits alike. Its five tasks are measured: reconstruction, half of the
steps dropped, the last and the first quarter extrapolated, and the last three quarters of y from x; and y from x alone.
Of a CSV each column is a modality, an empty cell is a hole, and the last windows in time are the test.

A hole is a frame of NaN. Nothing reads or scores it, and training hides more (`TrainingConfig.span_masking`), so that
the posterior of a prefix or of a series with holes is one that was learnt.

Measured on the 400 test spirals (`python -m recipes.series`, seed 0, 2026-11-26, 7 minutes of training on a busy
core), squared error of the mean to the spiral without noise, on the steps that are hidden, beside the last value and a
straight line: half dropped .0087 (.136, .015), the last quarter .0137 (5.7, 12.8), the first .0114 (.87, 2.9), the
last three quarters of y from x .032 (2.3, 20); reconstruction .0099. Intervals are wide: those of 80 % hold .92 to .97
of the steps. y from x alone is worse than a guess, 1.69 where its variance is 1.28: x does not tell which way a spiral
turns, and one Gaussian given x takes a side.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmseqvae.config import CACHE_DIR, ModelConfig, ObjectiveConfig, TrainingConfig, load_config
from mmseqvae.distributed import by_first
from mmseqvae.files import replacing, write_csv
from mmseqvae.reporting.figure_to_png import save_png

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmseqvae.data import Corpus, SequenceDataset
    from mmseqvae.inference.forecasting import Draws
    from mmseqvae.pipeline.trained_model import Trained
    from mmseqvae.sequence import Sequence

    Hidden = dict[str, Tensor]  # {modality: steps that are to be guessed, [B, T]}

# ------------------------------------------------------------------------------------------------------------ data

SPIRALS, TRAIN, STEPS, NOISE = 1000, 600, 100, 0.1


def spirals(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Spirals without and with noise, [SPIRALS, STEPS, 2]; every second one turns the other way.

    Radii grow from U(.25, .75) to U(2.25, 2.75), angles from U(0, pi) to U(4 pi, 5 pi); x is 2 ** U(-1, 1) times as
    wide.
    """
    random = np.random.default_rng(seed)
    u = random.uniform(size=(5, SPIRALS, 1))
    turn = np.where(np.arange(SPIRALS)[:, None] % 2, 1, -1)
    share = np.linspace(0, 1, STEPS)
    radius = (1 - share) * (0.25 + 0.5 * u[0]) + share * (2.25 + 0.5 * u[1])
    angle = turn * np.pi * ((1 - share) * u[2] + share * (4 + u[3]))
    clean = np.stack([2 ** (2 * u[4] - 1) * radius * np.cos(angle), radius * np.sin(angle)], -1)
    return clean, clean + NOISE * random.standard_normal(clean.shape)


def prepare_spirals(folder: Path, seed: int = 0, missing: float = 0.0, holdout: bool = False) -> Path:
    """Write the spirals, `missing` of whose training steps are holes, and return the manifest's path."""
    _, noisy = spirals(seed)
    hole = np.random.default_rng(seed + 1).uniform(size=noisy.shape) < missing
    hole[TRAIN:] = False
    hole[:, 0] = False  # something is left of each
    series = {name: np.where(hole, np.nan, noisy)[..., [axis]] for axis, name in enumerate("xy")}
    splits = ["test" if i >= TRAIN else "valid" if holdout and i >= TRAIN * 5 // 6 else "train" for i in range(SPIRALS)]
    return write_series(folder / f"spirals-{seed}-{missing}", series, splits)


def prepare_csv(folder: Path, file: Path, columns: list[str] | None, window: int, holdout: bool = False) -> Path:
    """Cut the columns of a CSV into windows and return the manifest's path; an empty cell is a hole.

    The last fifth of the windows is the test, with `holdout` the fifth before it the validation set. Raises ValueError
    naming the file and the line where a cell is no number, and where there are fewer than 10 windows.
    """
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines))
    names = columns or list(rows[0] if rows else ())
    absent = [name for name in names if not rows or name not in rows[0]]
    if absent or not names:
        raise ValueError(f"{file}: has no column {absent}; its columns are {list(rows[0]) if rows else []}")
    table = np.array([[_number(file, line, name, row[name]) for name in names] for line, row in enumerate(rows, 2)])
    count = len(table) // window
    if count < 10:
        raise ValueError(
            f"{file}: {len(table)} rows are {count} windows of {window}, at least 10 are needed: lower --window"
        )
    cut = table[len(table) - count * window :].reshape(count, window, len(names))
    series = {name: cut[..., [c]] for c, name in enumerate(names)}
    test, valid = count - count // 5, count - 2 * (count // 5)
    splits = ["test" if i >= test else "valid" if holdout and i >= valid else "train" for i in range(count)]
    digest = hashlib.sha256(table.tobytes()).hexdigest()[:12]
    return write_series(folder / f"{file.stem}-{window}-{digest}", series, splits)


def _number(file: Path, line: int, name: str, cell: str | None) -> float:
    try:
        return float(cell) if cell and cell.strip() else np.nan
    except ValueError as error:
        raise ValueError(f"{file}: line {line}: {name} is {cell!r}, a number or nothing is needed") from error


def write_series(folder: Path, series: dict[str, np.ndarray], splits: list[str]) -> Path:
    """A folder of .npy files [T, 1] and the manifest of them; a series that is all holes is an empty cell."""
    table = [["id", "split", *series]]
    for i, split in enumerate(splits):
        cells = []
        for name, values in series.items():
            path = folder / name / f"{i:05}.npy"
            empty = bool(np.isnan(values[i]).all())
            cells.append("" if empty else path.relative_to(folder).as_posix())
            if not empty and not path.exists():
                with replacing(path) as part:
                    np.save(part, values[i].astype(np.float32))
        if any(cells):
            table.append([f"{i:05}", split, *cells])
    return write_csv(folder / ("manifest-holdout.csv" if "valid" in splits else "manifest.csv"), table)


# ------------------------------------------------------------------------------------ model, training, evaluation

SETTINGS = load_config("sensors")
MODEL, OBJECTIVE, TRAINING = SETTINGS.model, SETTINGS.objective, SETTINGS.training


def main(
    csv: Path | None = None,
    columns: list[str] | None = None,
    window: int = STEPS,
    out: Path | None = None,
    cache_dir: Path = Path(CACHE_DIR),
    seed: int | None = None,
    data_seed: int = 0,
    missing: float = 0.0,
    holdout: bool = False,
    samples: int = 100,
    proposals: int = 20,
    model: ModelConfig = MODEL,
    objective: ObjectiveConfig = OBJECTIVE,
    training: TrainingConfig = TRAINING,
) -> None:
    """Train a model of time series, measure what it forecasts and fills, and leave pictures. What is there is kept.

    Args:
        csv: a table of numbers, one row a step; without it spirals are made.
        columns: the columns that are modalities, by default all.
        window: steps of a series that is cut from the table.
        out: the run directory, by default runs/series-NAME.
        cache_dir: where series and features are kept.
        seed: of everything random but the data, the same as --training.seed.
        data_seed: of the spirals.
        missing: share of the spirals' training steps that are holes.
        holdout: keep a part of the training series back and measure on it instead of on the test series.
        samples: draws of each forecast.
        proposals: latents from which each draw's is taken, by how well it explains what is known.
        model: the networks.
        objective: what is maximised.
        training: how long and how fast.
    """
    training = training if seed is None else replace(training, seed=seed)
    if csv is None:
        manifest = by_first(prepare_spirals, cache_dir, data_seed, missing, holdout)
    else:
        manifest = by_first(prepare_csv, cache_dir, csv, columns, window, holdout)
    out = out or Path("runs") / f"series-{'spirals' if csv is None else csv.stem}{'-holdout' if holdout else ''}"
    names = manifest.read_text(encoding="utf-8").partition("\n")[0].split(",")[2:]

    from mmseqvae.data import prepare
    from mmseqvae.recipe import train_and_measure

    corpus = prepare(manifest, frames=names, cache_dir=cache_dir)
    split = "valid" if holdout else "test"

    def figures(trained: Trained) -> dict[str, Any]:
        clean = spirals(data_seed)[0] if csv is None else None
        return {"tasks": measure(trained, corpus, split, clean, samples, proposals, training.seed, out)}

    train_and_measure(
        "series", corpus, manifest, out, (model, objective, training), split, figures, summary,
        source="spirals" if csv is None else str(csv),
    )  # fmt: skip


def tasks(batch: dict[str, Sequence], generator: torch.Generator) -> dict[str, Hidden]:
    """What is hidden from the model in each task, {modality: [B, T]}."""
    import torch

    from mmseqvae.sequence import step_mask

    every = {name: x.valid for name, x in batch.items()}
    *_, last = batch
    first, part = {}, {}
    for name, x in batch.items():
        first[name] = step_mask(x.lengths // 4, x.steps)
        part[name] = step_mask(x.lengths - x.lengths // 4, x.steps)
    drop = {name: valid & (torch.rand(valid.shape, generator=generator) < 0.5) for name, valid in every.items()}
    return {
        "half dropped": drop,
        "forward": {name: valid & ~part[name] for name, valid in every.items()},
        "backward": first,
        f"{last}, three quarters, from the others": {last: every[last] & ~first[last]},
        f"{last} from the others": {last: every[last]},
    }


def measure(
    trained: Trained,
    corpus: Corpus,
    split: str,
    clean: np.ndarray | None,
    samples: int,
    proposals: int,
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """{task: figures}, in the units of the data, over the hidden steps of all modalities that were observed."""
    import torch

    from mmseqvae.evaluation import forecast_metrics as backtest
    from mmseqvae.evaluation.summary import destandardised
    from mmseqvae.features.arrays import FrontEnd

    dataset, model = corpus.datasets[split], trained.model
    batch = dataset.__getitems__(range(len(dataset)))
    ends = {name: end for name, end in trained.front_ends.items() if isinstance(end, FrontEnd)}
    plain = {name: destandardised(ends[name], x) for name, x in batch.items()}
    truth = {name: x.filled() for name, x in plain.items()}
    ideal = truth if clean is None else _clean(clean, dataset, truth)

    def own(name: str, draws: Draws) -> Draws:
        return replace(draws, samples=ends[name].destandardise(draws.samples))

    again = _reconstructed(trained, batch, samples, seed)
    found: dict[str, Any] = {"reconstruction": backtest.pooled([
        backtest.scores(own(name, draws), truth[name], batch[name].mask, ideal[name]) for name, draws in again.items()
    ])}  # fmt: skip
    for task, hidden in tasks(batch, torch.Generator().manual_seed(seed)).items():
        shown = {name: x.hiding(hidden[name]) if name in hidden else x for name, x in batch.items()}
        made = model.fill(shown, samples, list(hidden), proposals=proposals, generator=model.generator(seed))
        rows = []
        for name, draws in made.items():
            where, distribution = hidden[name] & batch[name].mask, own(name, draws)
            known = replace(plain[name], observed=shown[name].mask)
            guesses = {"last value": backtest.last_value(known), "straight line": backtest.straight_line(known)}
            others = {n: backtest.mean_squared_error(guess, ideal[name], where) for n, guess in guesses.items()}
            rows.append({**backtest.scores(distribution, truth[name], where, ideal[name]), "baselines": others})
            if task == "forward":
                picture(distribution, truth[name], shown[name], out / "pictures" / f"forecast-{name}.png")
                with replacing(out / "samples" / f"forecast-{name}.npy") as part:
                    np.save(part, distribution.quantiles([0.1, 0.5, 0.9]).numpy())
        spoke = [draws.effective for draws in made.values() if draws.effective is not None]
        found[task] = {**backtest.pooled(rows), "effective": float(spoke[0].mean()) if spoke else None}
    return found


def _clean(clean: np.ndarray, dataset: SequenceDataset, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The spirals without noise, in the order of the data set."""
    import torch

    rows = clean[[int(id) for id in dataset.ids]]
    return {name: torch.from_numpy(rows[..., [axis]]).to(like[name]) for axis, name in enumerate(like)}


def _reconstructed(trained: Trained, batch: dict[str, Sequence], samples: int, seed: int) -> dict[str, Draws]:
    """Draws of everything, from latents that have seen everything and decoders that see none of it."""
    import torch

    from mmseqvae.decoding import FrameSampling
    from mmseqvae.inference.forecasting import Draws

    generator = trained.model.generator(seed)
    made: dict[str, list[Tensor]] = {name: [] for name in batch}
    with torch.no_grad():
        for z in trained.model.latents(batch, samples=samples, generator=generator):
            for name, x in batch.items():
                hidden, how = x.hiding(x.valid), FrameSampling(noise=1.0)
                made[name].append(trained.model.modalities.complete(name, z, hidden, how, generator))
    return {name: Draws(torch.stack(pieces)) for name, pieces in made.items()}


def picture(draws: Draws, truth: Tensor, shown: Sequence, path: Path) -> None:
    """Four series, what was known of them, and the central 80 % of what was forecast."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    low, middle, high = draws.quantiles([0.1, 0.5, 0.9])
    for i, axes in enumerate(figure.subplots(2, 2).flat):
        if i >= len(truth):
            break
        length = int(shown.lengths[i])
        steps, start = np.arange(length), int(shown.known_lengths[i])
        axes.plot(steps, truth[i, :length, 0], "k.", markersize=2)
        axes.plot(steps[start:], middle[i, start:length, 0])
        axes.fill_between(steps[start:], low[i, start:length, 0], high[i, start:length, 0], alpha=0.3)
    save_png(figure, path)


def summary(metrics: dict[str, Any]) -> list[str]:
    """What the run reached, a task a line."""
    lines = [f"measured on the split {metrics['run']['split']}, squared error of the mean, on the hidden steps:"]
    for task, found in metrics["tasks"].items():
        others = "".join(f"  {name} {value:.3f}" for name, value in found.get("baselines", {}).items())
        inside = ", ".join(f"{value:.2f} in {float(level):.0%}" for level, value in found["coverage"].items())
        lines.append(f"  {task:<36}{found['mse']:.4f}  crps {found['crps']:.3f}  {inside}{others}")
    return lines


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m recipes.series")
