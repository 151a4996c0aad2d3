"""Items to padded batches: one buffer a modality."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset

from mmseqvae.data.collate import fill, fill_standardised
from mmseqvae.data.string_array import StringArray
from mmseqvae.features.arrays import Standard
from mmseqvae.sequence import Sequence

Batch = dict[str, Sequence]


@dataclass(frozen=True)
class Column:
    """One modality of all items: item i is `flat[starts[i] : starts[i] + lengths[i]]`; length 0 means missing.

    flat: [steps] tokens of any type of integers or [steps, C] float32 frames, in memory or memory-mapped, not
    standardised.
    starts, lengths: [N] int64. standard: applied to every batch. holes: whether frames may be NaN, which are steps that
    were not observed.

    Raises ValueError where an item does not lie within `flat`: batches are filled by compiled code that does not look.
    """

    flat: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    standard: Standard | None = None
    holes: bool = False

    def __post_init__(self) -> None:
        outside = (self.starts < 0) | (self.lengths < 0) | (self.starts + self.lengths > len(self.flat))
        if outside.any():
            item = int(outside.argmax())
            raise ValueError(
                f"item {item} begins at step {self.starts[item]} and has {self.lengths[item]}, which does not lie in "
                f"an array of {len(self.flat)} steps"
            )

    @classmethod
    def of(cls, items: Many[torch.Tensor | None], empty: torch.Tensor) -> Column:
        """From in-memory items, None for missing; `empty` is a tensor of no steps that tells type and channels."""
        lengths = np.array([0 if item is None else len(item) for item in items], np.int64)
        flat = torch.cat([empty, *[item for item in items if item is not None]])
        return cls(flat.numpy(), np.cumsum(lengths) - lengths, lengths)

    def batch(self, items: np.ndarray) -> Sequence:
        """The chosen items as one padded Sequence; the padding is 0 after standardisation."""
        lengths = self.lengths[items]
        size = (len(items), max(lengths.tolist(), default=0), *self.flat.shape[1:])
        values = torch.empty(size, dtype=torch.long if self.flat.ndim == 1 else torch.float32)
        channels = math.prod(self.flat.shape[1:])
        buffer, flat = values.numpy().reshape(*size[:2], channels), self.flat.view(np.ndarray).reshape(-1, channels)
        if self.standard is None:
            fill(buffer, flat, self.starts[items], lengths)
        else:
            mean, std = self.standard.mean.numpy(), self.standard.std.numpy()
            fill_standardised(buffer, flat, self.starts[items], lengths, mean, std)
        sequence = Sequence(values, torch.from_numpy(lengths))
        return sequence.without_nans() if self.holes else sequence


class SequenceDataset(Dataset[Batch]):
    """Items with an id, perhaps a label, and one `Column` a modality; gives whole batches to the loader.

    Ids and labels become a `StringArray` each: a million items are a few arrays, perhaps memory-mapped, and no objects.
    weights: [N] how often an item is to be drawn, for sampling by weights; None if nobody said. steps: what the
    property of that name gives, where it is known already. speeds: {modality: Column of S * N items}, all items as they
    are and then at every other speed, for those who change items in training (`mmseqvae.data.augment`).
    """

    numbered: ClassVar[bool] = False  # whether items are asked for by the number of a draw, epoch * N + item

    def __init__(
        self,
        ids: Many[str],
        labels: Many[str | None],
        columns: dict[str, Column],
        weights: np.ndarray | None = None,
        *,
        steps: np.ndarray | None = None,
        speeds: Mapping[str, Column] | None = None,
    ) -> None:
        sizes = {"labels": len(labels), **{name: len(column.lengths) for name, column in columns.items()}}
        wrong = {name: size for name, size in sizes.items() if size != len(ids)}
        if wrong:
            raise ValueError(f"{len(ids)} ids, but {wrong}")
        self.ids: StringArray[str] = StringArray.of(ids)
        self.labels: StringArray[str | None] = StringArray.of(labels)
        self.columns = columns
        self.weights = weights
        self.speeds = dict(speeds or {})
        self._steps = steps

    def __len__(self) -> int:
        return len(self.ids)

    def lengths(self, name: str) -> np.ndarray:
        """[N] int64: steps of the modality `name` in every item, 0 where it is missing. Raises KeyError for others."""
        return self.columns[name].lengths

    @property
    def steps(self) -> np.ndarray:
        """[N] int64: steps of all modalities together, what batches are sorted by."""
        if self._steps is not None:
            return self._steps
        return np.sum([np.zeros(len(self), np.int64), *[column.lengths for column in self.columns.values()]], axis=0)

    def only(self, *names: str) -> SequenceDataset:
        """The same items without the other modalities. Raises KeyError for a name that is not there."""
        columns = {name: self.columns[name] for name in names}
        speeds = {name: column for name, column in self.speeds.items() if name in names}
        return SequenceDataset(self.ids, self.labels, columns, self.weights, speeds=speeds)

    def __getitems__(self, items: Many[int]) -> Batch:
        """The items as one batch, every modality padded to its longest."""
        chosen = np.asarray(items, np.int64)
        return {name: column.batch(chosen) for name, column in self.columns.items()}

    def __getitem__(self, item: int) -> Batch:
        """One item as a batch of one."""
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        return self.__getitems__([item])


def to_device(batch: Mapping[str, Sequence], device: torch.device) -> dict[str, Sequence]:
    return {view: sequence.to(device, non_blocking=True) for view, sequence in batch.items()}
