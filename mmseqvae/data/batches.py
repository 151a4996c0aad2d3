"""Items to padded batches: one buffer a modality, batches of like lengths, and an order that can be resumed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

from mmseqvae.data.gather import fill, fill_standardised
from mmseqvae.data.strings import Strings
from mmseqvae.frames import Standard
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

    Ids and labels become `Strings`: a million items are a few arrays, which may be memory-mapped, and no objects.
    steps: what the property of that name gives, where it is known already.
    """

    def __init__(
        self, ids: Many[str], labels: Many[str | None], columns: dict[str, Column], *, steps: np.ndarray | None = None
    ) -> None:
        sizes = {"labels": len(labels), **{name: len(column.lengths) for name, column in columns.items()}}
        wrong = {name: size for name, size in sizes.items() if size != len(ids)}
        if wrong:
            raise ValueError(f"{len(ids)} ids, but {wrong}")
        self.ids: Strings[str] = Strings.of(ids)
        self.labels: Strings[str | None] = Strings.of(labels)
        self.columns = columns
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

    def __getitems__(self, items: Many[int]) -> Batch:
        """The items as one batch, every modality padded to its longest."""
        chosen = np.asarray(items, np.int64)
        return {name: column.batch(chosen) for name, column in self.columns.items()}

    def __getitem__(self, item: int) -> Batch:
        """One item as a batch of one."""
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        return self.__getitems__([item])


class BucketBatchSampler(Sampler[list[int]]):
    """Batches of items of like length, every item once an epoch, the same for the same (seed, epoch).

    With `shuffle` the items are drawn in chunks of `chunk` batches, sorted within a chunk, and the batches shuffled;
    without, they come in their own order. The epoch advances by itself after each whole pass, or by `set_epoch`.
    `state_dict` between two batches and `load_state_dict` before `iter` continue with the very next batch.
    """

    def __init__(
        self, lengths: Many[int] | np.ndarray, batch_size: int, shuffle: bool = True, seed: int = 0, chunk: int = 50
    ) -> None:
        if batch_size < 1 or chunk < 1:
            raise ValueError(f"batch_size ({batch_size}) and chunk ({chunk}) must be at least 1")
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.chunk = chunk
        self.epoch = 0
        self._given = 0  # batches already given in this epoch
        self._start = 0  # batches that the next pass leaves out

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def batches(self) -> list[list[int]]:
        """All batches of the current epoch, in order."""
        items = np.arange(len(self.lengths))
        if not self.shuffle:
            return [items[i : i + self.batch_size].tolist() for i in range(0, len(items), self.batch_size)]
        random = np.random.default_rng((self.seed, self.epoch))
        random.shuffle(items)
        size = self.chunk * self.batch_size
        batches = []
        for first in range(0, len(items), size):
            part = items[first : first + size]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size].tolist() for i in range(0, len(part), self.batch_size)]
        return [batches[i] for i in random.permutation(len(batches))]

    def __iter__(self) -> Iterator[list[int]]:
        # Nothing is settled before the first batch is asked for: on resuming, Lightning sets the epoch after this call.
        self._given, self._start = self._start, 0
        for batch in self.batches()[self._given :]:
            self._given += 1
            yield batch
        self.epoch += 1
        self._given = 0

    @property
    def sampler(self) -> BucketBatchSampler:
        """Itself: Lightning calls `set_epoch` on a batch sampler's `sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of `epoch`."""
        if epoch != self.epoch:
            self.epoch, self._start = epoch, 0

    def state_dict(self) -> dict[str, int]:
        whole = self._given == len(self)  # the last batch was given, but nobody asked for one more yet
        return {"epoch": self.epoch + whole, "given": 0 if whole else self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self._start = state["epoch"], state["given"]
        self._given = self._start


def make_loader(
    dataset: SequenceDataset, batch_size: int, shuffle: bool = True, seed: int = 0, num_workers: int = 0
) -> StatefulDataLoader:
    """Batches `dict[str, Sequence]` of like length, resumable in mid-epoch through `state_dict`.

    Without `shuffle` the items come in the order of `dataset.ids`. Filling a batch takes little more than copying its
    bytes, so workers seldom pay.
    """
    sampler = BucketBatchSampler(dataset.steps, batch_size, shuffle, seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'set_vital' is deprecated", UserWarning)  # torchdata 0.11 on torch 2.12
        return StatefulDataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=_as_is,
            num_workers=num_workers,
            generator=torch.Generator().manual_seed(seed),  # a loader would else draw from the global one
        )


def _as_is(batch: Batch) -> Batch:
    return batch
