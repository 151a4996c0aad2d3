"""Batches of like length: each item once an epoch, known length, bounds by frames, weights, ranks, exact resumption."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmseqvae.data.dataset import SequenceDataset
from mmseqvae.data.sample_weights import resampled, sampling_weights
from mmseqvae.data.sampler import BucketBatchSampler, make_loader
from tests.data.test_dataset import contents, small_set


def lengths_like_speech(count: int = 6400) -> np.ndarray:
    """Frames of log-normal durations: median 100, a tail up to several hundred."""
    return np.exp(np.random.default_rng(0).normal(np.log(100), 0.5, count)).astype(int).clip(10, 600)


def speech_and_text(count: int = 6400) -> np.ndarray:
    """[N, 2]: the same with about a token every six frames."""
    frames = lengths_like_speech(count)
    return np.stack([1 + (frames / 6 * np.random.default_rng(1).normal(1, 0.1, count)).astype(int), frames], axis=1)


def padded(lengths: np.ndarray, batches: Iterable[list[int]]) -> list[int]:
    """Steps of every batch, padding included."""
    return [len(batch) * int(lengths[batch].max(0).sum()) for batch in batches]


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
    sampler = BucketBatchSampler([5, 1, 4, 2, 3], 2, shuffle=False)
    assert [item for batch in sampler for item in batch] == [0, 1, 2, 3, 4]


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


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": 2, "chunk": 0}])
def test_sizes_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BucketBatchSampler([1, 2], **wrong)


# ------------------------------------------------------------------------------------------------------ by frames


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("count", "most", "ranks"), [(6400, 9000, 1), (997, 4000, 3), (7, 800, 2), (64, 700, 1), (0, 9, 1)]
)
def test_no_batch_has_more_frames_than_asked(count: int, most: int, ranks: int, shuffle: bool) -> None:
    """With padding, on every rank; every item once an epoch; as many batches in every epoch as the sampler says."""
    lengths = speech_and_text(count)
    samplers = [
        BucketBatchSampler(lengths, 1, shuffle, frames_per_batch=most, rank=rank, ranks=ranks) for rank in range(ranks)
    ]
    for _ in range(3):
        epochs = [list(sampler) for sampler in samplers]
        assert {len(epoch) for epoch in epochs} == {len(sampler) for sampler in samplers}
        assert sorted(item for epoch in epochs for batch in epoch for item in batch) == list(range(count))
        assert all(steps <= most for epoch in epochs for steps in padded(lengths, [b for b in epoch if b]))


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), max_size=60),
    st.integers(60, 400),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 5),
)
def test_bounds_and_numbers_hold_for_any_lengths(
    lengths: list[tuple[int, int]], most: int, ranks: int, weighted: bool, seed: int
) -> None:
    array = np.array(lengths, np.int64).reshape(-1, 2)
    random = np.random.default_rng(seed)
    weights = random.choice([0, 0.1, 1, 7], len(array)) if weighted else None
    if weights is not None and not weights.any():
        weights = None
    for rank in range(ranks):
        sampler = BucketBatchSampler(
            array, 1, seed=seed, frames_per_batch=most, weights=weights, rank=rank, ranks=ranks
        )
        for _ in range(3):
            batches = list(sampler)
            assert len(batches) == len(sampler)
            assert all(steps <= most for steps in padded(array, [batch for batch in batches if batch]))
            if ranks == 1:
                assert sum(map(len, batches)) == len(array)
                assert all(batches)


def test_by_frames_little_is_padded_in_either_modality() -> None:
    lengths = speech_and_text()
    most = int(64 * lengths.sum(1).mean())

    def share(batches: Iterable[list[int]]) -> float:
        return sum(padded(lengths, batches)) / lengths.sum()

    by_frames = BucketBatchSampler(lengths, 1, frames_per_batch=most)
    assert share(by_frames) < 1.05
    assert share(BucketBatchSampler(lengths, 64)) > 1.05  # a long item costs as much as ever
    apart = np.stack([np.random.default_rng(2).permutation(lengths[:, 0]), lengths[:, 1]], axis=1)
    sizes = [sum(padded(apart, BucketBatchSampler(apart[:, keep], 1, frames_per_batch=most)))
             for keep in ([0, 1], [1])]  # fmt: skip
    assert sizes[0] < 0.98 * sizes[1]  # text that says nothing of the frames is sorted too


def test_by_frames_the_order_is_that_of_seed_and_epoch() -> None:
    lengths = speech_and_text(2000)
    sampler = BucketBatchSampler(lengths, 1, seed=3, frames_per_batch=900)
    first, second = list(sampler), list(sampler)
    assert sampler.plan is not None
    assert sampler.plan.chunks > 1
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    sampler.set_epoch(0)
    assert list(sampler) == first
    longest = [lengths[batch, 1].max() for batch in first]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3


def test_an_item_longer_than_a_batch_is_told() -> None:
    with pytest.raises(ValueError, match="the longest item, 12 steps"):
        BucketBatchSampler(np.array([[3, 4], [7, 5]]), 2, frames_per_batch=11)


# ------------------------------------------------------------------------------------------------------ weights


def counts(batches: Iterable[list[int]], number: int) -> np.ndarray:
    return np.bincount([item for batch in batches for item in batch], minlength=number)


@pytest.mark.parametrize("frames", [None, 1500])
def test_every_item_comes_as_often_as_its_weight_says(frames: int | None) -> None:
    """Floor or ceil of it in every epoch, just as often on average, and as many draws an epoch as there are items."""
    random = np.random.default_rng(0)
    weights = np.append(random.gamma(0.5, size=400), [0, 0, 30])
    lengths = speech_and_text(len(weights))
    expected = len(weights) * weights / weights.sum()
    sampler = BucketBatchSampler(lengths, 16, weights=weights, frames_per_batch=frames)
    total = np.zeros(len(weights))
    epochs = 300
    for _ in range(epochs):
        batches = list(sampler)
        found = counts(batches, len(weights))
        assert len(batches) == len(sampler)
        assert found.sum() == len(weights)
        assert (found >= np.floor(expected - 1e-9)).all()
        assert (found <= np.ceil(expected + 1e-9)).all()
        total += found
    spread = np.sqrt(epochs * (expected % 1) * (1 - expected % 1)).clip(min=1)  # of as many Bernoulli draws
    assert (np.abs(total - epochs * expected) < 5 * spread).all()


def test_resampling_by_hand() -> None:
    """Cumulative weights 1, 1, 4, 8 of items 2, 0, 1, 3; points at 2 k + 1."""
    found = resampled(np.array([2, 0, 1, 3]), np.array([0.0, 3.0, 1.0, 4.0]), 0.5)
    assert found.tolist() == [1, 1, 3, 3]
    assert resampled(np.array([2, 0, 1, 3]), np.array([0.0, 3.0, 1.0, 4.0]), 0.0).tolist() == [2, 1, 3, 3]


def labelled() -> SequenceDataset:
    """90 items of label a, 9 of b, 1 of c, and 20 without; of weights 1 but for the first."""
    dataset = small_set(120)
    labels = ["a"] * 90 + ["b"] * 9 + ["c"] + [None] * 20
    weights = np.where(np.arange(120) == 0, 41.0, 1.0)
    return SequenceDataset(dataset.ids, labels, dataset.columns, weights)


ROOTS = 90**0.5 + 9**0.5 + 1
SHARES = {
    "plain": (90, 9, 1, 20),
    "balanced": (100 / 3, 100 / 3, 100 / 3, 20),
    "square-root": (100 * 90**0.5 / ROOTS, 300 / ROOTS, 100 / ROOTS, 20),
    "weights": (130 * 120 / 160, 9 * 120 / 160, 120 / 160, 20 * 120 / 160),
}


@pytest.mark.parametrize("sampling", SHARES)
def test_labels_come_as_often_as_asked(sampling: str) -> None:
    """In every epoch, to the draw; all items of a label as often as each other."""
    dataset = labelled()
    loader = make_loader(dataset, 8, sampling=sampling)
    for _ in range(5):
        found = counts(loader.batch_sampler, 120)
        by_label = [found[:90].sum(), found[90:99].sum(), found[99], found[100:].sum()]
        assert np.abs(np.array(by_label) - SHARES[sampling]).max() < (1.01 if sampling != "weights" else 5)
        assert np.ptp(found[1:90]) <= 1
    steps = sum(len(batch["text"].lengths) for batch in loader)
    assert steps == 120


def test_labels_may_be_a_modality() -> None:
    """A column of labels, of which each is one token and an end; an item without one is of no label."""
    from mmseqvae.data.dataset import Column

    dataset = labelled()
    intents = [None if i >= 100 else torch.tensor([2 + (i >= 90) + (i >= 99), 0]) for i in range(120)]
    columns = dataset.columns | {"intent": Column.of(intents, torch.zeros(0, dtype=torch.long))}
    other = SequenceDataset(dataset.ids, [None] * 120, columns)
    for sampling in ("balanced", "square-root"):
        weights, groups = sampling_weights(other, sampling, "intent")
        expected, _ = sampling_weights(dataset, sampling)
        assert weights is not None
        assert expected is not None
        assert groups is not None
        np.testing.assert_allclose(weights, expected)
        assert len(set(groups.tolist())) == 4


@pytest.mark.parametrize(("sampling", "column", "message"), [
    ("fair", "label", "sampling must be one of plain, balanced, square-root, weights"),
    ("balanced", "audio", "it is a sequence"),
    ("balanced", "mood", "no column 'mood'"),
    ("balanced", "label", "no training item has a 'label'"),
    ("weights", "label", "needs a column `weight`"),
])  # fmt: skip
def test_sampling_that_cannot_be_is_told(sampling: str, column: str, message: str) -> None:
    dataset = small_set()
    bare = SequenceDataset(dataset.ids, [None] * len(dataset), dataset.columns)
    with pytest.raises(ValueError, match=message):
        make_loader(bare, 4, sampling=sampling, sampling_column=column)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, np.nan], [0.0, 0.0]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be 2 numbers"):
        BucketBatchSampler([1, 2], 1, weights=np.array(weights))
    with pytest.raises(ValueError, match="shuffled"):
        BucketBatchSampler([1, 2], 1, shuffle=False, weights=np.array([1.0, 2.0]))


# ------------------------------------------------------------------------------------------------------ ranks


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("count", [1, 3, 96, 97, 101])
def test_ranks_share_the_batches_of_one_process(count: int, shuffle: bool, weighted: bool) -> None:
    """Step for step: as many batches everywhere, together those of one process with batches three times as large."""
    weights = np.random.default_rng(0).random(count) if weighted and shuffle else None
    lengths = lengths_like_speech(count)
    whole = BucketBatchSampler(lengths, 12, shuffle, seed=5, weights=weights)
    parts = [BucketBatchSampler(lengths, 4, shuffle, seed=5, weights=weights, rank=r, ranks=3) for r in range(3)]
    for _ in range(2):
        for union, *dealt in zip(whole, *parts, strict=True):
            assert Counter(union) == Counter(item for part in dealt for item in part)
            assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
            assert max(map(len, dealt)) <= 4


@pytest.mark.parametrize("options", [{"frames_per_batch": 30}, {"sampling": "balanced"}, {"rank": 1, "ranks": 2}])
@pytest.mark.parametrize("after", [1, 4, 9])
def test_every_kind_of_order_is_resumed(after: int, options: dict[str, object]) -> None:
    whole = make_loader(small_set(), 2, seed=1, **options)  # type: ignore[arg-type]
    expected = contents([*whole, *whole])
    loader = make_loader(small_set(), 2, seed=1, **options)  # type: ignore[arg-type]
    steps = (batch for _ in range(2) for batch in loader)
    for _ in range(after):
        next(steps)
    resumed = make_loader(small_set(), 2, seed=1, **options)  # type: ignore[arg-type]
    resumed.load_state_dict(loader.state_dict())
    rest = [batch for _ in range(2) for batch in resumed]
    assert contents(rest)[: len(expected) - after] == expected[after:]


def test_an_epoch_of_other_batches_is_not_gone_on_with() -> None:
    sampler = BucketBatchSampler(np.arange(20), 2)
    next(iter(sampler))
    state = sampler.state_dict()
    with pytest.raises(ValueError, match="an epoch of 10 batches with one of 5"):
        BucketBatchSampler(np.arange(20), 2, ranks=2).load_state_dict(state)
    list(sampler)
    BucketBatchSampler(np.arange(20), 2, ranks=2).load_state_dict(sampler.state_dict())  # between two epochs it may


def test_ranks_outside_their_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rank \(2\) must lie in 0\.\.1"):
        BucketBatchSampler([1, 2], 1, rank=2, ranks=2)


def test_an_epoch_takes_four_bytes_an_item_and_lengths_are_not_copied() -> None:
    lengths = np.arange(1, 1001, dtype=np.int64)
    sampler = BucketBatchSampler(lengths, 10)
    assert np.shares_memory(sampler.lengths[0], lengths)
    items, _, _ = sampler._ordered()
    assert items.nbytes == 4 * len(lengths)
    assert sorted(items.tolist()) == list(range(1000))
