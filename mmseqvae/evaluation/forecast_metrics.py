"""How good a forecast or a filled hole was, and what one gets without a model: the last value, a straight line."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmseqvae.inference.forecasting import Draws
from mmseqvae.sequence import Sequence

LEVELS = (0.8, 0.95)
LINE = 5  # observed steps that a line is laid through


def scores(draws: Draws, truth: Tensor, where: Tensor, clean: Tensor | None = None) -> dict[str, Any]:
    """Figures of draws [S, B, T, C] at the steps `where` [B, T], as plain data; truth [B, T, C] is what was observed.

    mse: of the mean of the draws, to `clean` if it is given (a series without its noise), else to the truth. crps: of
    the draws as a distribution, the mean over steps and channels, in the units of the data (Gneiting & Raftery 2007,
    eq. 21); coverage and width: share of true values within the central interval of each level, and its mean width.
    None where there is no such step.
    """
    if not where.any():
        return {"steps": 0, "mse": None, "crps": None, "coverage": None, "width": None}
    at = where[..., None].expand(truth.shape)
    coverage, width = {}, {}
    for level in LEVELS:
        low, high = draws.quantiles([(1 - level) / 2, (1 + level) / 2])
        coverage[str(level)] = float(((low <= truth) & (truth <= high))[at].double().mean())
        width[str(level)] = float((high - low)[at].double().mean())
    return {
        "steps": int(where.sum()),
        "mse": mean_squared_error(draws.mean, truth if clean is None else clean, where),
        "crps": float(crps(draws.frames, truth)[at].double().mean()),
        "coverage": coverage,
        "width": width,
    }


def pooled(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of several modalities or batches as one, each weighing as many steps as it has."""
    rows = [row for row in rows if row["steps"]]
    total = sum(row["steps"] for row in rows)

    def mean(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: mean([value[key] for value in values]) for key in values[0]}
        return sum(value * row["steps"] for value, row in zip(values, rows, strict=True)) / total

    names = [name for name in (rows[0] if rows else ()) if name != "steps"]
    return {"steps": total, **{name: mean([row[name] for row in rows]) for name in names}}


def mean_squared_error(guess: Tensor, truth: Tensor, where: Tensor) -> float:
    """Over the steps `where` [B, T] and all channels of [B, T, C]."""
    return float((guess - truth)[where].double().square().mean())


def crps(samples: Tensor, truth: Tensor) -> Tensor:
    """E|X - x| - E|X - X'| / 2 over the draws [S, ...] as a distribution, in [...]; by order statistics, in S log S."""
    ordered = samples.sort(0).values
    size = len(ordered)
    rank = torch.arange(1, size + 1, device=samples.device, dtype=samples.dtype).reshape(-1, *[1] * truth.ndim)
    spread = ((2 * rank - size - 1) * ordered).sum(0) / size**2  # E|X - X'| / 2 = sum (2 i - S - 1) x_(i) / S^2
    return (samples - truth).abs().mean(0) - spread


def last_value(x: Sequence) -> Tensor:
    """Every unobserved step as the last one that was observed before it, else the first: [B, T, C]."""
    return _each_channel(x, lambda steps, seen, values: values[(np.searchsorted(seen, steps, "right") - 1).clip(0)])


def straight_line(x: Sequence) -> Tensor:
    """Holes on the line between their ends, and beyond them on the least-squares line of the nearest LINE steps."""

    def guess(steps: np.ndarray, seen: np.ndarray, values: np.ndarray) -> np.ndarray:
        made = np.interp(steps, seen, values)
        for beyond, near in ((steps > seen[-1], slice(-LINE, None)), (steps < seen[0], slice(LINE))):
            if beyond.any() and len(seen[near]) > 1:
                made[beyond] = np.polyval(np.polyfit(seen[near], values[near], 1), steps[beyond])
        return made

    return _each_channel(x, guess)


def _each_channel(x: Sequence, guess: Any) -> Tensor:
    """`guess(all steps, observed steps, their values)` for every item and channel; 0 where nothing was observed."""
    values, mask = x.filled().cpu().double().numpy(), x.mask.cpu().numpy()
    steps = np.arange(x.steps)
    made = values.copy()
    for item, seen in enumerate(mask):
        known = np.flatnonzero(seen)
        for channel in range(values.shape[2]) if len(known) else ():
            series = values[item, :, channel]
            made[item, :, channel] = np.where(seen, series, guess(steps, known, series[known]))
    return torch.from_numpy(made).to(x.values)
