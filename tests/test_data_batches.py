from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from mmseqvae.data.batches import Batch, BucketBatchSampler, Column, SequenceDataset, make_loader
from mmseqvae.frames import Standard


def lengths_like_speech(count: int = 6400) -> np.ndarray:
    """Frames of log-normal durations: median 100, a tail up to several hundred."""
    return np.exp(np.random.default_rng(0).normal(np.log(100), 0.5, count)).astype(int).clip(10, 600)


def small_set(count: int = 23) -> SequenceDataset:
    """Item i: text of i % 4 + 1 tokens i, audio of i % 7 frames i; every seventh has no audio."""
    tokens = [torch.full((i % 4 + 1,), i) for i in range(count)]
    frames = [torch.full((i % 7, 2), float(i)) if i % 7 else None for i in range(count)]
    audio = Column.of(frames, torch.zeros(0, 2))
    standard = Standard(torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.5]))
    columns = {
        "text": Column.of(tokens, torch.zeros(0, dtype=torch.long)),
        "audio": Column(audio.flat, audio.starts, audio.lengths, standard),
    }
    return SequenceDataset([f"id{i}" for i in range(count)], ["odd" if i % 2 else None for i in range(count)], columns)


def contents(batches: Iterable[Batch]) -> list[list[list[list[float]]]]:
    return [[[item.tolist() for item in sequence.items()] for sequence in batch.values()] for batch in batches]


def test_a_batch_is_its_items_standardised_and_padded_with_zeros() -> None:
    dataset = small_set()
    batch = dataset.__getitems__([13, 7, 2])
    assert batch["text"].lengths.tolist() == [2, 4, 3]
    assert batch["audio"].lengths.tolist() == [6, 0, 2]
    assert batch["text"].values.tolist() == [[13, 13, 0, 0], [7, 7, 7, 7], [2, 2, 2, 0]]
    standard = dataset.columns["audio"].standard
    assert standard is not None
    for row, i in enumerate([13, 7, 2]):
        item = batch["audio"].items()[row]
        assert torch.equal(item, standard.apply(torch.full((i % 7, 2), float(i))))
    assert not batch["audio"].values[~batch["audio"].valid].any()
    assert batch["audio"].present.tolist() == [True, False, True]


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_the_compiled_pass_gives_what_slices_give(tmp_path: Path, mapped: bool, standardised: bool) -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(0, 9, 50)
    starts = (np.cumsum(lengths) - lengths)[::-1].copy()  # items need not lie in their order
    lengths = lengths[::-1].copy()
    flat = random.standard_normal((int(lengths.sum()), 5)).astype(np.float32)
    if mapped:
        flat.tofile(tmp_path / "values")
        flat = np.memmap(tmp_path / "values", np.float32, "r", shape=flat.shape)
    standard = Standard(torch.randn(5), torch.rand(5) + 0.1) if standardised else None
    items = random.permutation(50)[:30]
    found = Column(flat, starts, lengths, standard).batch(items)
    slices = [torch.from_numpy(flat[starts[i] : starts[i] + lengths[i]].copy()) for i in items]
    expected = pad_sequence([standard.apply(piece) if standard else piece for piece in slices], batch_first=True)
    assert torch.equal(found.values, expected)
    assert found.lengths.tolist() == [len(piece) for piece in slices]


@pytest.mark.parametrize(("start", "length"), [(2, 2), (-1, 1), (0, -1)])
def test_items_outside_their_array_are_refused(start: int, length: int) -> None:
    with pytest.raises(ValueError, match=r"item 1 .* of 3 steps"):
        Column(np.zeros((3, 2), np.float32), np.array([0, start]), np.array([1, length]))


def test_dataset_knows_its_items() -> None:
    dataset = small_set()
    assert len(dataset) == 23
    assert dataset.ids[22] == "id22"
    assert dataset.labels[:2] == [None, "odd"]
    assert dataset.lengths("audio").tolist() == [i % 7 for i in range(23)]
    assert dataset.steps.tolist() == [i % 7 + i % 4 + 1 for i in range(23)]
    assert contents([dataset[-1]]) == contents([dataset.__getitems__([22])])
    with pytest.raises(IndexError):
        dataset[23]
    with pytest.raises(ValueError, match="'labels': 1"):
        SequenceDataset(["a", "b"], ["x"], {})


def test_all_missing_is_a_batch_of_no_steps() -> None:
    column = Column.of([None, None], torch.zeros(0, 3))
    sequence = column.batch(np.array([0, 1]))
    assert sequence.values.shape == (2, 0, 3)
    assert sequence.lengths.tolist() == [0, 0]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("count", "size"), [(1000, 16), (1001, 16), (5, 16), (0, 4)])
def test_every_item_comes_exactly_once_an_epoch(count: int, size: int, shuffle: bool) -> None:
    sampler = BucketBatchSampler(lengths_like_speech(count), size, shuffle, chunk=7)
    for _ in range(2):
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(item for batch in batches for item in batch) == list(range(count))
        assert all(len(batch) <= size for batch in batches)


def test_little_is_computed_on_padding() -> None:
    lengths = lengths_like_speech()

    def share(batches: Iterable[list[int]]) -> float:
        return sum(len(batch) * lengths[batch].max() for batch in batches) / lengths.sum()

    assert share(BucketBatchSampler(lengths, 64)) < 1.06
    assert share(BucketBatchSampler(lengths, 64, shuffle=False)) > 1.5  # what the sorting saves


def test_order_is_that_of_seed_and_epoch_and_long_batches_do_not_cluster() -> None:
    lengths = lengths_like_speech(2000)
    sampler, other = BucketBatchSampler(lengths, 16, seed=3), BucketBatchSampler(lengths, 16, seed=4)
    first, second = list(sampler), list(sampler)
    assert first != second
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    assert first != list(other)
    again = BucketBatchSampler(lengths, 16, seed=3)
    again.set_epoch(1)
    assert list(again) == second
    again.set_epoch(0)
    assert list(again) == first
    longest = [max(lengths[batch]) for batch in first]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3


def test_without_shuffling_items_keep_their_order() -> None:
    assert [item for batch in BucketBatchSampler([5, 1, 4, 2, 3], 2, shuffle=False) for item in batch] == [
        0,
        1,
        2,
        3,
        4,
    ]


@pytest.mark.parametrize("after", [0, 1, 5, 11, 12, 13, 17])
def test_loader_resumes_with_the_very_next_batch(after: int) -> None:
    """12 batches an epoch: before, in and after the first epoch."""
    whole = make_loader(small_set(), 2, seed=1)
    expected = contents([*whole, *whole, *whole])

    loader = make_loader(small_set(), 2, seed=1)
    steps = (batch for _ in range(3) for batch in loader)
    for _ in range(after):
        next(steps)
    state = loader.state_dict()

    resumed = make_loader(small_set(), 2, seed=1)
    resumed.load_state_dict(state)
    rest = [batch for _ in range(3) for batch in resumed]
    assert contents(rest)[: len(expected) - after] == expected[after:]


def test_breaking_off_starts_the_same_epoch_anew_and_set_epoch_does_not_undo_a_resume() -> None:
    sampler = BucketBatchSampler(np.arange(20), 2, seed=1)
    first = list(BucketBatchSampler(np.arange(20), 2, seed=1))
    steps = iter(sampler)
    assert [next(steps), next(steps)] == first[:2]
    state = sampler.state_dict()
    assert list(sampler) == first
    sampler.load_state_dict(state)
    sampler.set_epoch(0)  # as Lightning does before it resumes
    assert list(sampler) == first[2:]


def test_lightning_finds_set_epoch() -> None:
    from lightning.fabric.utilities.data import _set_sampler_epoch

    loader = make_loader(small_set(), 2)
    _set_sampler_epoch(loader, 3)
    assert loader.batch_sampler.epoch == 3


def test_workers_give_the_same_batches() -> None:
    assert contents(make_loader(small_set(), 4, num_workers=1)) == contents(make_loader(small_set(), 4))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": 2, "chunk": 0}])
def test_sizes_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BucketBatchSampler([1, 2], **wrong)
