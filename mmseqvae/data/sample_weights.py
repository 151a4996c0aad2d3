"""How often items are drawn: weights by label or by hand, and draws that keep to them in every epoch."""

from __future__ import annotations

import numpy as np

from mmseqvae.data.dataset import SequenceDataset
from mmseqvae.tokenizers.categories import Labels

SAMPLING = ("plain", "balanced", "square-root", "weights")


def resampled(items: np.ndarray, weights: np.ndarray, offset: float) -> np.ndarray:
    """As many draws from `items` as there are, in their order: systematic resampling (Kitagawa 1996, appendix).

    weights: [N] by item number. offset: uniform in [0, 1). An item of weight w comes floor or ceil of N w / sum times,
    on average just as often; so does any run of neighbours in `items`.
    """
    places = np.cumsum(weights[items])
    points = (np.arange(len(items)) + offset) * (places[-1] / len(items)) if len(items) else places
    return items[np.searchsorted(places, points, side="right").clip(max=max(0, len(items) - 1))]


def highest_drawn(lengths: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[N, M]: the most steps that the n-th draw of `resampled` can have, whatever the offset; lengths are sorted."""
    if not len(lengths):
        return lengths
    places = np.cumsum(weights) * (len(lengths) / weights.sum())
    turns = np.arange(len(lengths))
    little = 1e-6  # rounding in the sums
    first = np.searchsorted(places, turns - little, side="right").clip(max=len(lengths) - 1)
    last = np.searchsorted(places, turns + 1 + little, side="left").clip(max=len(lengths) - 1)
    pairs = np.stack([first, last + 1], 1).reshape(-1)
    padded = np.concatenate([lengths, np.zeros((1, lengths.shape[1]), np.int64)])
    return np.maximum.reduceat(padded, pairs, axis=0)[::2]


def checked_weights(weights: np.ndarray, number: int, shuffle: bool) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    if not shuffle:
        raise ValueError("weights are for shuffled batches")
    if (
        weights.shape != (number,)
        or not (np.isfinite(weights) & (weights >= 0)).all()
        or (number and not weights.any())
    ):
        raise ValueError(f"weights must be {number} numbers >= 0, some above 0")
    return weights


def sampling_weights(
    dataset: SequenceDataset, sampling: str, column: str = "label"
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Weights and groups [N] for `BucketBatchSampler`, None for "plain".

    sampling: "balanced", every label as often as every other; "square-root", in proportion to the square root of how
    often it is there; "weights", every item by the manifest's column `weight`. column: whose values are the labels:
    "label", or the name of a modality or a covariate whose items are one label. Items without a label come as often as
    in plain sampling.

    Raises ValueError for another `sampling`, and where there are no labels.
    """
    if sampling not in SAMPLING:
        raise ValueError(f"sampling must be one of {', '.join(SAMPLING)}, got {sampling!r}")
    if sampling == "plain":
        return None, None
    if sampling == "weights":
        if dataset.weights is None:
            raise ValueError("sampling by weights needs a column `weight` in the manifest")
        return dataset.weights, None
    groups = _labels(dataset, column)
    counts = np.bincount(groups[groups >= 0])
    shares = np.where(counts > 0, counts, 1) ** (0.0 if sampling == "balanced" else 0.5) * (counts > 0)
    each = counts.sum() * shares / shares.sum() / np.maximum(counts, 1)
    return np.where(groups >= 0, each[groups], 1.0), groups


def _labels(dataset: SequenceDataset, column: str) -> np.ndarray:
    """[N] numbers of labels, -1 where there is none."""
    if column in dataset.columns:
        found = dataset.columns[column]
        if found.flat.ndim > 1 or found.lengths.max(initial=0) > Labels.STEPS:
            raise ValueError(f"sampling by {column!r} needs one label an item, and it is a sequence")
        groups = np.full(len(dataset), -1)
        there = found.lengths > 0
        groups[there] = found.flat[found.starts[there]]
    elif column == "label":
        numbers: dict[str, int] = {}
        groups = np.array(
            [-1 if label is None else numbers.setdefault(label, len(numbers)) for label in dataset.labels]
        )
    else:
        raise ValueError(f"there is no column {column!r} to sample by; there are label, {', '.join(dataset.columns)}")
    if not (groups >= 0).any():
        raise ValueError(
            f"no training item has a {column!r} to sample by: add the column, or name one of labels or covariates "
            "as sampling_column"
        )
    return groups.astype(np.int64)
