import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmseqvae.sequence import Sequence, constant, step_mask

NAN = float("nan")


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 3))
def test_mask_is_the_steps_before_the_length(lengths: list[int], padding: int) -> None:
    steps = max(lengths) + padding
    assert step_mask(torch.tensor(lengths), steps).tolist() == [[t < n for t in range(steps)] for n in lengths]


@given(st.lists(st.one_of(st.none(), st.integers(0, 5)), min_size=1, max_size=5))
def test_from_list_and_back(lengths: list[int | None]) -> None:
    rows = [None if n is None else torch.rand(n, 2) for n in lengths]
    x = Sequence.from_list(rows, empty=torch.zeros(0, 2))
    assert x.present.tolist() == [bool(n) for n in lengths]
    for row, back in zip(rows, x.items(), strict=True):
        assert torch.equal(back, torch.zeros(0, 2) if row is None else row)


def test_from_list_needs_to_know_the_channels_of_nothing() -> None:
    with pytest.raises(ValueError, match="pass `empty`"):
        Sequence.from_list([None, None])
    x = Sequence.from_list([None, None], empty=torch.zeros(0, dtype=torch.long))
    assert x.values.dtype == torch.long
    assert x.steps == 0
    assert not x.present.any()


def test_padding_holes_and_missing_rows_are_one_mask() -> None:
    x = Sequence(
        torch.zeros(3, 4),
        torch.tensor([3, 0, 2]),
        torch.tensor([[True, False, True, True], [True] * 4, [False] * 4]),
    )
    assert x.valid.tolist() == [[True, True, True, False], [False] * 4, [True, True, False, False]]
    assert x.mask.tolist() == [[True, False, True, False], [False] * 4, [False] * 4]
    assert x.present.tolist() == [True, False, False]  # a row of nothing but holes was not observed
    assert x.where(torch.tensor([False, True, True])).mask.tolist() == [[False] * 4] * 3


def test_filled_and_sum_steps_see_no_nan() -> None:
    values = torch.tensor([[[1.0, 2], [NAN, 4], [NAN, NAN]]], dtype=torch.float64)
    x = Sequence(values, torch.tensor([2]), torch.tensor([[True, False, True]]))
    assert x.filled(7).tolist() == [[[1, 2], [7, 7], [7, 7]]]
    assert x.sum_steps(values[..., 0]).tolist() == [1]
    draws = torch.stack([values[..., 0], 10 * values[..., 0]]).requires_grad_()
    total = x.sum_steps(draws)
    assert total.tolist() == [[1], [10]]
    total.sum().backward()
    assert draws.grad is not None
    assert draws.grad.tolist() == [[[1, 0, 0]]] * 2


def test_filled_keeps_tokens_whole_numbers() -> None:
    x = Sequence(torch.tensor([[3, -999]]), torch.tensor([1]))
    assert x.filled(5).dtype == torch.long
    assert x.filled(5).tolist() == [[3, 5]]


def test_rows_travel_with_their_lengths_and_holes() -> None:
    x = Sequence(torch.arange(6).reshape(3, 2), torch.tensor([2, 1, 0]), torch.rand(3, 2) < 0.5)
    picked = x[torch.tensor([2, 0])]
    assert picked.values.tolist() == [[4, 5], [0, 1]]
    assert picked.lengths.tolist() == [0, 2]
    assert x.observed is not None
    assert picked.observed is not None
    assert torch.equal(picked.observed, x.observed[[2, 0]])
    assert x[1:].lengths.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "lengths", "observed", "message"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), None, r"\[B, T"),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.long), None, r"lengths must be \[3\]"),
        (torch.zeros(3, 2), torch.zeros(3), None, "whole numbers"),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), torch.zeros(3, 2), "observed must be bool"),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), torch.zeros(3, 3) > 0, r"shape \(3, 2\)"),
    ],
)
def test_what_does_not_fit_together_is_an_error(values, lengths, observed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sequence(values, lengths, observed)


@pytest.mark.parametrize("lengths", [[3, 1], [1, -1]])
def test_check_finds_lengths_out_of_range(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"lengths must lie in 0\.\.2"):
        Sequence(torch.zeros(2, 2), torch.tensor(lengths)).check()


@pytest.mark.parametrize("trailing", [(), (2,)])
def test_check_names_the_step_that_is_not_finite_and_ignores_padding(trailing: tuple[int, ...]) -> None:
    values = torch.zeros(2, 3, *trailing)
    values[1, 1] = torch.inf
    values[0, 2] = NAN
    with pytest.raises(ValueError, match=r"row 1 .* step 1"):
        Sequence(values, torch.tensor([2, 2])).check()
    x = Sequence(values, torch.tensor([2, 1]))
    assert x.check() is x
    holes = torch.ones(2, 3, dtype=torch.bool)
    holes[1, 1] = False
    Sequence(values, torch.tensor([2, 3]), holes).check()


def test_rows_that_are_present_are_known_without_asking_the_batch() -> None:
    x = Sequence(torch.zeros(3, 2), torch.tensor([2, 0, 1]))
    assert x.rows_present().tolist() == [0, 2]  # type: ignore[union-attr]
    assert Sequence(x.values, torch.tensor([2, 1, 1])).rows_present() is None
    moved = Sequence(x.values, x.lengths, there=torch.tensor([False, True, True]))  # what it says, not what is there
    assert moved.rows_present().tolist() == [1, 2]  # type: ignore[union-attr]
    assert x.to("cpu").there is None
    assert moved[torch.tensor([0, 1])].there is None


def test_a_constant_is_made_once_for_each_type() -> None:
    cpu = torch.device("cpu")
    no, zero = constant((False, True), torch.bool, cpu), constant((0, 1), torch.long, cpu)
    assert no.dtype == torch.bool
    assert zero.tolist() == [0, 1]
    assert zero.dtype == torch.long
    assert constant((0, 1), torch.long, cpu) is zero
