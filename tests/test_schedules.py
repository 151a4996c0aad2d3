import itertools

import pytest

from mmseqvae.schedules import warm_up, warm_up_then_cosine


def test_warm_up_is_a_line_and_then_its_end() -> None:
    assert [warm_up(s, 4) for s in range(7)] == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [warm_up(s, 2, start=0.5, end=0.1) for s in range(4)] == pytest.approx([0.5, 0.3, 0.1, 0.1])
    assert warm_up(0, 0, end=0.7) == 0.7


def test_learning_rate_rises_to_one_and_falls_to_its_last_value() -> None:
    factors = [warm_up_then_cosine(s, 4, 24, last=0.1) for s in range(30)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1, 1]
    assert factors[14] == pytest.approx((1 + 0.1) / 2)  # half-way down
    assert factors[24:] == pytest.approx([0.1] * 6)
    assert all(a > b for a, b in itertools.pairwise(factors[4:25]))


def test_learning_rate_without_warm_up() -> None:
    assert warm_up_then_cosine(0, 0, 10) == 1
    assert warm_up_then_cosine(0, 0, 0) == 1
    assert warm_up_then_cosine(1, 0, 0, last=0.3) == pytest.approx(0.3)
    assert min(warm_up_then_cosine(s, 3, 3) for s in range(3)) > 0
