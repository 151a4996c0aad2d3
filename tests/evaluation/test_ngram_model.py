"""The n-gram judge: a distribution for every context, numbers worked out by hand, no impossible perplexity."""

import math

import pytest

from mmseqvae.evaluation.judges.ngram_model import START, KneserNey

DATA = [[1, 2, 0], [1, 2, 0], [1, 3, 0], [2, 0]]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_every_context_has_a_law(order: int) -> None:
    model = KneserNey(DATA, 5, order)
    for context in ([START] * 3, [START, START, 1], [1, 2, 3], [4, 4, 4], [START, 1, 2], []):
        before = [START] * (order - 1) + context
        total = sum(model.probability(token, before) for token in range(5))
        assert total == pytest.approx(1, abs=1e-12)
        assert all(model.probability(token, before) > 0 for token in range(5))


def test_a_bigram_by_hand() -> None:
    """Bigrams S1 3, S2 1, 12 2, 13 1, 20 3, 30 1: three occur once, one twice, so the discount is 3 / (3 + 2) = 0.6.

    Before 0 stand two different tokens, before 2 two, before 1 and 3 one: of six, two occur once and two twice, and
    the discount is 2 / (2 + 4) = 1/3. Every token has 1/5 below that.
    """
    model = KneserNey(DATA, 5, 2)
    below = {1: (1 - 1 / 3 + 4 / 3 / 5) / 6, 2: (2 - 1 / 3 + 4 / 3 / 5) / 6, 4: 4 / 3 / 5 / 6}
    assert model.probability(1, [START]) == pytest.approx((3 - 0.6 + 1.2 * below[1]) / 4)
    assert model.probability(2, [1]) == pytest.approx((2 - 0.6 + 1.2 * below[2]) / 3)
    assert model.probability(4, [1]) == pytest.approx(1.2 * below[4] / 3)
    assert model.probability(2, [4]) == pytest.approx(below[2])  # a context that was never seen
    nats = -math.log(model.probability(1, [START]) * model.probability(2, [1]) * model.probability(0, [2]))
    assert model.nats([1, 2, 0]) == pytest.approx(nats)
    assert model.perplexity([[1, 2, 0], [1, 2, 0]]) == pytest.approx(math.exp(nats / 3))


def test_only_the_last_tokens_count() -> None:
    model = KneserNey(DATA, 5, 2)
    assert model.probability(2, [3, 3, 1]) == model.probability(2, [1])


def test_text_like_the_training_text_is_less_perplexing_than_the_same_tokens_shuffled() -> None:
    model = KneserNey(20 * DATA, 5, 3)
    assert 1 < model.perplexity(DATA) < 2 < model.perplexity([[2, 1, 0], [3, 1, 0]])


def test_nothing_to_count_is_refused() -> None:
    with pytest.raises(ValueError, match="no sequences"):
        KneserNey([], 5)
    with pytest.raises(ValueError, match="at least 1"):
        KneserNey(DATA, 5, 0)
    with pytest.raises(ValueError, match="no token"):
        KneserNey(DATA, 5).perplexity([])
