from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from mmseqvae.data.dataset import Batch, Column, SequenceDataset
from mmseqvae.data.sampler import make_loader
from mmseqvae.features.arrays import Standard


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


def test_workers_give_the_same_batches() -> None:
    assert contents(make_loader(small_set(), 4, num_workers=1)) == contents(make_loader(small_set(), 4))
