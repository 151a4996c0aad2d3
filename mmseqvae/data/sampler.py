"""Which items make a batch: like lengths together, resumable orders, weighted draws, a part for every rank.

Arrays of numbers only: a million items are shuffled in a fraction of a second, their batches made one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from collections.abc import Sequence as Many
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

from mmseqvae.data.collate import compiled
from mmseqvae.data.dataset import Batch, SequenceDataset
from mmseqvae.data.sample_weights import checked_weights, highest_drawn, resampled, sampling_weights

SORTED_TOGETHER = 100  # batches by frames that are sorted as one; more pad less, fewer mix more
PROBED = 50_000  # items on which widths are compared
CLASSES = (
    128,
    32,
    16,
    8,
    4,
)  # a standard deviation of the longest modality in so many classes, in which the others sort


class BucketBatchSampler(Sampler[list[int]]):
    """Batches of items of like length, every item once an epoch, the same for the same (seed, epoch).

    lengths: [N] steps, or of every modality, [N, M] or a tuple of [N], which are not copied. A batch has `batch_size`
    items, or, with `frames_per_batch`, as many as make at most that many steps, padding and all modalities included:
    rows * sum_m longest_m. The number of batches is known, and the same in every epoch.

    With `shuffle` and a batch size the items are drawn in chunks of `chunk` batches, sorted within a chunk, and the
    batches shuffled. By frames all items are sorted, roughly by the modality with the most steps and then by the
    others, and dealt, as cards are, to chunks of about 100 batches, all of which can then be cut at the same places.
    Without `shuffle` items come in their own order.

    weights: [N] >= 0; item i is then drawn with probability proportional to weights[i], N draws an epoch, by systematic
    resampling: it comes floor or ceil of N * share times. groups: [N] numbers; if given, the same holds for every group
    as a whole (not by frames, where groups come nearly as often as that).

    ranks, rank: the batches above are dealt to `ranks` processes item by item, so that all of them have as many batches
    of like lengths; sizes are then those of one process, and a batch may be empty where there are fewer items than
    ranks.

    The epoch advances by itself after each whole pass, or by `set_epoch`. `state_dict` between two batches and
    `load_state_dict` before `iter` continue with the very next batch.

    Raises ValueError for sizes below 1, an item longer than `frames_per_batch`, and weights that are none.
    """

    def __init__(
        self,
        lengths: Many[int] | np.ndarray | tuple[np.ndarray, ...],
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        chunk: int = 50,
        *,
        frames_per_batch: int | None = None,
        weights: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size < 1 or chunk < 1:
            raise ValueError(f"batch_size ({batch_size}) and chunk ({chunk}) must be at least 1")
        if not 0 <= rank < ranks:
            raise ValueError(f"rank ({rank}) must lie in 0..{ranks - 1}")
        self.lengths = _columns(lengths)
        self.items = len(self.lengths[0])
        self.weights = None if weights is None else checked_weights(weights, self.items, shuffle)
        self.groups = groups
        self.batch_size, self.shuffle, self.seed, self.chunk = batch_size, shuffle, seed, chunk
        self.rank, self.ranks = rank, ranks
        self.plan = None if frames_per_batch is None else self._planned(frames_per_batch)
        self.epoch = 0
        self._given = 0  # batches already given in this epoch
        self._start = 0  # batches that the next pass leaves out

    def __len__(self) -> int:
        """Batches in an epoch."""
        if self.plan is None:
            return -(-self.items // (self.batch_size * self.ranks))
        whole = self.plan.chunks * (len(self.plan.cuts) - 1)
        short = -self.items % self.plan.chunks  # chunks without a shortest item
        return whole - (short if self.plan.cuts[1:2].tolist() == [1] else 0)

    def batches(self) -> Iterator[list[int]]:
        """All batches of the current epoch, in order: of this rank."""
        items, starts, stops = self._ordered()
        for start, stop in zip(starts, stops, strict=True):
            yield items[start:stop][self.rank :: self.ranks].tolist()

    def _ordered(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The epoch's items, and where in them every batch of all ranks together starts and stops."""
        if not self.shuffle:
            items = numbers(self.items)
            cuts = self._even() if self.plan is None else self.plan.cuts
            return items, cuts[:-1], cuts[1:]
        random = np.random.default_rng((self.seed, self.epoch))
        items, starts, stops = self._by_count(random) if self.plan is None else self._by_frames(random, self.plan)
        order = random.permutation(len(starts))
        return items, starts[order], stops[order]

    def _even(self) -> np.ndarray:
        size = self.batch_size * self.ranks
        return np.append(np.arange(0, self.items, size), self.items)

    def _by_count(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        items = self._drawn(random, self.weights) if self.weights is not None else numbers(self.items)
        random.shuffle(items)
        size = self.chunk * self.batch_size * self.ranks
        for first in range(0, len(items), size):
            part = items[first : first + size]
            items[first : first + size] = part[np.argsort(self._steps(part), kind="stable")]
        cuts = self._even()
        return items, cuts[:-1], cuts[1:]

    def _drawn(self, random: np.random.Generator, weights: np.ndarray) -> np.ndarray:
        items = numbers(len(weights))
        random.shuffle(items)
        if self.groups is not None:
            items = items[np.argsort(self.groups[items], kind="stable")]
        return resampled(items, weights, random.random())

    def _by_frames(self, random: np.random.Generator, plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        items = random.permutation(self.items).astype(numbers(self.items).dtype)
        items = items[_sorted(self._rows(items), plan.width)]
        if self.weights is not None:
            items = resampled(items, self.weights, random.random())
        table = np.full((plan.deep, plan.chunks), -1, items.dtype)
        table.reshape(-1)[plan.deep * plan.chunks - len(items) :] = items
        random.permuted(table, axis=1, out=table)
        firsts = plan.deep * np.arange(plan.chunks)[:, None]
        starts, stops = firsts + plan.cuts[:-1], firsts + plan.cuts[1:]
        if len(table):
            starts[:, 0] += table[0] < 0
        there = starts < stops
        return table.T.reshape(-1), starts[there], stops[there]

    def _planned(self, most: int) -> Plan:
        """How epochs are cut by frames; the places are the same in all of them."""
        steps = self._steps()
        if most < 1 or steps.max(initial=0) > most:
            raise ValueError(
                f"frames_per_batch must hold the longest item, {steps.max(initial=1)} steps of all modalities "
                f"together, got {most}"
            )
        if not self.shuffle or not self.items:
            return Plan(1, 1.0, self.items, self._cuts(self._rows(), most))
        mean = np.average(steps, weights=self.weights)
        chunks = max(1, round(self.items * mean / most / self.ranks / SORTED_TOGETHER))
        spread = max(float(column.std()) for column in self.lengths)
        thin = slice(None, None, min(chunks, 1 + self.items // PROBED))  # widths are compared on a part
        widths = [max(1.0, spread / classes) for classes in CLASSES]
        width = min(
            widths, key=lambda width: len(self._cuts(self._tops(chunks // (thin.step or 1), width, thin), most))
        )
        tops = self._tops(chunks, width)
        return Plan(chunks, width, len(tops), self._cuts(tops, most))

    def _tops(self, chunks: int, width: float, part: slice = slice(None)) -> np.ndarray:
        """[depth, M]: the most steps that the item at a place of a chunk can have."""
        lengths = self._rows(part)
        order = _sorted(lengths, width)
        tops = lengths[order]
        if self.weights is not None and self.weights[part].any():
            tops = highest_drawn(tops, self.weights[part][order])
        missing = np.zeros((-len(tops) % chunks, tops.shape[1]), np.int64)
        return np.concatenate([missing, tops]).reshape(-1, chunks, tops.shape[1]).max(1)

    def _rows(self, items: np.ndarray | slice = slice(None)) -> np.ndarray:
        """[N', M]: the steps of every modality."""
        return np.stack([column[items] for column in self.lengths], axis=1)

    def _steps(self, items: np.ndarray | slice = slice(None)) -> np.ndarray:
        """[N']: the steps of all modalities together."""
        first, *others = (column[items] for column in self.lengths)
        return sum(others, start=first)

    def _cuts(self, tops: np.ndarray, most: int) -> np.ndarray:
        return np.array(_cut(tops, most, self.ranks) if len(tops) else [0])

    def __iter__(self) -> Iterator[list[int]]:
        # Nothing is settled before the first batch is asked for: on resuming, Lightning sets the epoch after this call.
        self._given, self._start = self._start, 0
        items, starts, stops = self._ordered()
        for place in range(self._given, len(starts)):
            self._given += 1
            yield items[starts[place] : stops[place]][self.rank :: self.ranks].tolist()
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
        return {"epoch": self.epoch + whole, "given": 0 if whole else self._given, "batches": len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another sampler was. Raises ValueError in the middle of an epoch of other batches."""
        if state["given"] and state.get("batches", len(self)) != len(self):
            raise ValueError(
                f"cannot go on in the middle of an epoch of {state['batches']} batches with one of {len(self)}: "
                "use the same data, sizes and number of processes"
            )
        self.epoch, self._start = state["epoch"], state["given"]
        self._given = self._start


class NumberedDraws(BucketBatchSampler):
    """The same batches, an item as the number of its draw, epoch * N + item: what is done to it can depend on both."""

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            yield [self.epoch * self.items + item for item in batch]


class Plan(NamedTuple):
    """How epochs are cut by frames: into `chunks` alike, sorted in classes of `width` steps, each cut at `cuts`
    [batches + 1]; deep: the items of a chunk."""

    chunks: int
    width: float
    deep: int
    cuts: np.ndarray


def _columns(lengths: Many[int] | np.ndarray | tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """[N] of every modality. Not copied: they may be a mapped file."""
    if isinstance(lengths, tuple) and lengths and isinstance(lengths[0], np.ndarray):
        return lengths
    array = np.asarray(lengths, np.int64)
    return (array,) if array.ndim == 1 else tuple(array.T)


def numbers(n: int) -> np.ndarray:
    """0 to n - 1, in half the memory where they fit."""
    return np.arange(n, dtype=np.int32 if n <= np.iinfo(np.int32).max else np.int64)


def _sorted(lengths: np.ndarray, width: float) -> np.ndarray:
    """Order by the modality with the most steps in all, in classes of `width` steps, and in a class by the others."""
    keys = lengths[:, np.argsort(lengths.sum(0), kind="stable")].T
    return np.lexsort([keys[-1], *keys[:-1], (keys[-1] / width).astype(np.int64)])


@compiled
def _cut(lengths: Any, most: int, ranks: int) -> list[int]:
    """Bounds of runs of rows [N, M]: as long as the padded steps a rank are at most `most`, and one row at least."""
    cuts, longest = [0], np.zeros_like(lengths[0])
    for row in range(len(lengths)):
        total = 0
        for m in range(len(longest)):
            longest[m] = max(longest[m], lengths[row, m])
            total += longest[m]
        if row > cuts[-1] and -(-(row + 1 - cuts[-1]) // ranks) * total > most:
            cuts.append(row)
            longest[:] = lengths[row]
    cuts.append(len(lengths))
    return cuts


def make_loader(
    dataset: SequenceDataset,
    batch_size: int,
    shuffle: bool = True,
    seed: int = 0,
    num_workers: int = 0,
    *,
    frames_per_batch: int | None = None,
    sampling: str = "plain",
    sampling_column: str = "label",
    rank: int = 0,
    ranks: int = 1,
) -> StatefulDataLoader:
    """Batches `dict[str, Sequence]` of like length, resumable in mid-epoch through `state_dict`.

    frames_per_batch: most steps of a batch, instead of batch_size items; rank, ranks: see `BucketBatchSampler`.
    sampling, sampling_column: see `sampling_weights`. Without `shuffle` the items come in the order of `dataset.ids`.
    Filling a batch takes little more than copying its bytes, so workers seldom pay.
    """
    weights, groups = sampling_weights(dataset, sampling, sampling_column)
    every = (dataset.steps,) if frames_per_batch is None else tuple(map(dataset.lengths, dataset.columns))
    sampler = (NumberedDraws if dataset.numbered else BucketBatchSampler)(
        every, batch_size, shuffle, seed, frames_per_batch=frames_per_batch, weights=weights, groups=groups,
        rank=rank, ranks=ranks,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'set_vital' is deprecated", UserWarning)  # torchdata 0.11 on torch 2.12
        return StatefulDataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=_as_is,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),  # so that a batch is copied to a GPU while it computes
            generator=torch.Generator().manual_seed(seed),  # a loader would else draw from the global one
        )


def _as_is(batch: Batch) -> Batch:
    return batch
