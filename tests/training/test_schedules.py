import itertools
import math

import pytest

from mmseqvae.training.schedules import TargetKL, beta_at, cyclical, sigmoid, warm_up, warm_up_then_cosine


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


def test_a_cycle_is_a_line_and_then_one() -> None:
    """Two cycles of six steps, each rising over three: Fu et al. 2019 with R = 0.5."""
    expected = [0, 1 / 3, 2 / 3, 1, 1, 1] * 2 + [1, 1]
    assert [cyclical(s, 12, 2) for s in range(14)] == pytest.approx(expected)
    assert [cyclical(s, 8, 2, rise=0.25) for s in range(5)] == [0, 1, 1, 1, 0]
    assert cyclical(0, 0, 4) == 1


def test_a_sigmoid_is_symmetric_about_the_middle() -> None:
    values = [sigmoid(s, 10) for s in range(11)]
    assert values[5] == 0.5
    assert values[10] == pytest.approx(0.9933071490757153)
    assert [a + b for a, b in zip(values, reversed(values), strict=True)] == pytest.approx([1] * 11)
    assert all(a < b for a, b in itertools.pairwise(values))
    assert sigmoid(0, 0) == sigmoid(10**6, 1) == 1


def test_beta_starts_as_its_schedule_says() -> None:
    assert [beta_at(s, "linear", 10, 100, 4) for s in (0, 5, 10, 99)] == pytest.approx([0.1, 0.55, 1, 1])
    assert [beta_at(s, "sigmoid", 10, 100, 4) for s in (5, 99)] == pytest.approx([0.5, 1])
    assert [beta_at(s, "cyclical", 10, 100, 4) for s in (0, 24, 25, 99)] == [0, 1, 0, 1]


def test_the_controller_does_what_its_algorithm_says() -> None:
    """By hand, gains 0.1 and 0.01: errors -2, 1, -0.5."""
    control, accumulated = TargetKL(5.0, 1.0, proportional=0.1, integral=0.01), 0.0
    for kl, change in ((7.0, 0.02), (4.0, -0.01), (5.5, 0.005)):
        accumulated += change
        expected = 0.1 / (1 + math.exp(5.0 - kl)) + accumulated
        assert control.update(kl) == pytest.approx(expected)


def test_the_controller_reaches_its_target() -> None:
    """On a system whose KL falls with beta: KL = 20 (1 - beta), so beta must become 0.6 for a KL of 8."""
    control = TargetKL(8.0, 1.0, integral=0.001)
    for _ in range(2000):
        beta = control.update(20 * (1 - control.beta))
    assert 20 * (1 - beta) == pytest.approx(8.0, abs=0.05)


def test_the_controller_keeps_within_its_bounds_and_comes_back_at_once() -> None:
    control = TargetKL(1.0, 0.5, integral=0.01)
    assert max(control.update(100.0) for _ in range(50)) == control.beta == 0.5
    assert control.update(0.0) < 0.5 + 0.01  # nothing has piled up above the bound
    for _ in range(100):
        control.update(0.0)
    assert control.beta < 0.01
    resumed = TargetKL(1.0, 0.5, integral=0.01)
    resumed.state = control.state
    assert resumed.update(3.0) == control.update(3.0)


@pytest.mark.parametrize(("target", "most"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0)])
def test_targets_that_mean_nothing_are_refused(target: float, most: float) -> None:
    with pytest.raises(ValueError, match="target_kl"):
        TargetKL(target, most)
