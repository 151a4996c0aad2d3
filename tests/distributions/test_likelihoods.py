import math

import pytest
import torch
import torch.distributions as td
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from mmseqvae.distributions import likelihoods
from mmseqvae.distributions.likelihoods import (
    FRAME_LIKELIHOODS,
    SCALES,
    Bernoulli,
    FrameLikelihood,
    Laplace,
    Normal,
    at_least,
    categorical_log_prob,
    categorical_sample,
    draw,
    linear_categorical_log_prob,
)
from tests.exact import f64

LAWS = {Normal: td.Normal, Laplace: td.Laplace}
location_scale = pytest.mark.parametrize("kind", LAWS)
every_scale = pytest.mark.parametrize("scale", SCALES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distribution(likelihood: Normal | Laplace, parameters: Tensor) -> td.Distribution:
    """torch's own distribution with the scale that `likelihood` should have, its floor at 0.3."""
    c = likelihood.channels
    if likelihood.scale_kind == "fixed":
        scale = torch.tensor(0.7, dtype=torch.float64)
    elif likelihood.scale_kind == "learnt":
        scale = likelihood.log_scale.exp().clamp(min=0.3)
    else:
        scale = (0.7 * parameters[..., c:].exp()).clamp(min=0.3)
    return LAWS[type(likelihood)](parameters[..., :c], scale)


def build(kind: type, scale: str, channels: int = 3) -> Normal | Laplace:
    likelihood = kind(channels, scale, scale=0.7, floor=0.3).double()
    if scale == "learnt":
        likelihood.log_scale.data += torch.linspace(-2, 1, channels)  # the first one on the floor
    return likelihood


@location_scale
@every_scale
@given(shape=st.lists(st.integers(0, 3), max_size=3), seed=st.integers(0, 99))
def test_densities_are_those_of_torch_distributions(kind: type, scale: str, shape: list[int], seed: int) -> None:
    likelihood = build(kind, scale)
    parameters = torch.randn(*shape, likelihood.size, generator=seeded(seed), dtype=torch.float64)
    x = 2 * torch.randn(*shape, 3, generator=seeded(seed + 1), dtype=torch.float64)
    expected = distribution(likelihood, parameters).log_prob(x).sum(-1)
    torch.testing.assert_close(likelihood.log_prob(parameters, x), expected)


@pytest.mark.parametrize("name", FRAME_LIKELIHOODS)
def test_every_likelihood_is_normalised(name: str) -> None:
    """The density integrates, or the probabilities sum, to 1."""
    likelihood = FRAME_LIKELIHOODS[name](1).double()
    x = f64([0], [1]) if name == "bernoulli" else torch.linspace(-40, 40, 400_001, dtype=torch.float64)[:, None]
    p = likelihood.log_prob(torch.full((len(x), likelihood.size), 0.3, dtype=torch.float64), x).exp()
    total = p.sum() if name == "bernoulli" else torch.trapezoid(p, x[:, 0])
    assert total.item() == pytest.approx(1, abs=1e-7)


def test_bernoulli_is_that_of_torch_distributions() -> None:
    logits, x = torch.randn(4, 3, dtype=torch.float64), f64([0, 1, 1], [0.0, 1, 0], [1, 1, 1], [0, 0, 0])
    expected = td.Bernoulli(logits=logits).log_prob(x).sum(-1)
    torch.testing.assert_close(Bernoulli(3).log_prob(logits, x), expected)


def test_categorical_is_that_of_torch_distributions() -> None:
    logits, tokens = torch.randn(4, 3, 5, dtype=torch.float64), torch.randint(5, (4, 3))
    expected = td.Categorical(logits=logits).log_prob(tokens)
    torch.testing.assert_close(categorical_log_prob(logits, tokens), expected)
    assert categorical_log_prob(torch.zeros(2, 7, dtype=torch.float64), torch.tensor([0, 6])).tolist() == pytest.approx(
        [-math.log(7)] * 2
    )


# Scales and their floor


@location_scale
@every_scale
def test_floor_hits_count_the_channels_that_sit_on_it(kind: type, scale: str) -> None:
    likelihood = build(kind, scale, channels=4)
    parameters = torch.zeros(5, likelihood.size).double()
    expected = torch.zeros(5).double()
    if scale == "learnt":
        expected += (likelihood.log_scale < math.log(0.3)).double().mean()
        assert 0 < expected[0] < 1
    if scale == "predicted":
        parameters[1, 4:6] = -5
        parameters[2, 4:] = -5
        expected[1:3] = f64(0.5, 1)
    torch.testing.assert_close(likelihood.floor_hits(parameters), expected)


def test_no_scale_has_no_floor_to_hit() -> None:
    assert Bernoulli(3).floor_hits(torch.zeros(2, 3)).tolist() == [0, 0]


def test_density_is_bounded_by_the_floor() -> None:
    """On constant data the predicted scale runs off; the density stops at that of the floor."""
    likelihood = build(Normal, "predicted", channels=1)
    found = likelihood.log_prob(f64([0, -1e3]), f64([0]))
    assert found.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - math.log(0.3))


def test_at_least_is_a_maximum_that_can_be_left() -> None:
    x = f64(-2, -2, 1, 1).requires_grad_()
    y = at_least(x, 0.0)
    assert y.tolist() == [0, 0, 1, 1]
    y.backward(f64(1, -1, 1, -1))  # of a loss: a negative gradient asks for a larger x
    assert x.grad is not None
    assert x.grad.tolist() == [0, -1, 1, -1]


@location_scale
@pytest.mark.parametrize("scale", ["learnt", "predicted"])
def test_a_scale_below_its_floor_comes_back(kind: type, scale: str) -> None:
    likelihood = kind(1, scale, scale=1.0, floor=0.1).double()
    parameters = torch.zeros(500, likelihood.size).double()
    below = likelihood.log_scale if scale == "learnt" else parameters[:, 1:]
    below.data.fill_(math.log(0.01))
    parameters.requires_grad_()
    target = likelihood.log_scale if scale == "learnt" else parameters
    x = torch.randn(500, 1, generator=seeded()).double()
    loss = -likelihood.log_prob(parameters, x).sum()
    (gradient,) = torch.autograd.grad(loss, target)
    assert (gradient if scale == "learnt" else gradient[:, 1:]).sum() < 0  # descent raises it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale_kind": "free"}, "scale_kind must be one of fixed, learnt, predicted, got 'free'"),
        ({"scale": -1.0}, "0 < floor <= scale"),
        ({"floor": 0.0}, "0 < floor <= scale"),
        ({"scale": 0.1, "floor": 0.2}, "floor 0.2 and scale 0.1"),
    ],
)
def test_bad_scales_are_errors(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normal(2, **arguments)


# Draws


@location_scale
@every_scale
def test_draws_have_the_moments_times_the_noise(kind: type, scale: str) -> None:
    likelihood = build(kind, scale)
    parameters = torch.linspace(-1, 1, likelihood.size).double().expand(40_000, -1)
    expected = distribution(likelihood, parameters[0])
    for noise in (1.0, 0.5):
        x = likelihood.sample(parameters, noise, seeded())
        torch.testing.assert_close(x.mean(0), expected.mean, atol=0.03, rtol=0)
        torch.testing.assert_close(x.std(0), noise * expected.stddev.expand(3), atol=0, rtol=0.03)
        kurtosis = ((x - x.mean(0)) ** 4).mean(0) / x.var(0) ** 2
        assert kurtosis.tolist() == pytest.approx([3 if kind is Normal else 6] * 3, rel=0.15)
    assert torch.equal(likelihood.sample(parameters, 0.0), parameters[:, :3])


def test_laplace_draws_stay_finite_in_single_precision() -> None:
    assert Laplace(1).sample(torch.zeros(2_000_000, 1), 1.0, seeded()).isfinite().all()


def test_bernoulli_draws() -> None:
    logits = f64(-1, 0.5, 3).expand(40_000, 3)
    likelihood = Bernoulli(3)
    for noise in (1.0, 0.5):
        x = likelihood.sample(logits, noise, seeded())
        assert set(x.unique().tolist()) == {0, 1}
        torch.testing.assert_close(x.mean(0), (logits[0] / noise).sigmoid(), atol=0.012, rtol=0)
    assert likelihood.sample(logits[:1], 0.0).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("likelihood", [Normal(2), Laplace(2), Bernoulli(2)])
def test_draws_repeat_with_a_generator(likelihood: FrameLikelihood) -> None:
    parameters = torch.zeros(50, 2)
    a, b, c = (likelihood.sample(parameters, 1.0, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


LOGITS = f64(0.3, -1.0, 2.0, 0.0, 1.2, -0.4)


def expected_law(temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    """By hand: sort, cut to k, cut where the mass reaches p, share out."""
    p = {i: math.exp(v / temperature) for i, v in enumerate(LOGITS.tolist())}
    order = sorted(p, key=lambda i: -p[i])[:top_k]
    total = sum(p[i] for i in order)
    kept, mass = [], 0.0
    for i in order:
        kept.append(i)
        mass += p[i] / total
        if top_p is not None and mass >= top_p:
            break
    return [p[i] / sum(p[j] for j in kept) if i in kept else 0.0 for i in range(len(p))]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1, None, None),
        (0.5, None, None),
        (2, None, None),
        (1, 3, None),
        (1, 99, None),
        (1, None, 0.7),
        (1.5, 4, 0.8),
        (1, 1, None),
    ],
)
def test_tokens_follow_the_softmax(temperature: float, top_k: int | None, top_p: float | None) -> None:
    n = 20_000
    tokens = categorical_sample(LOGITS.expand(n, -1), temperature, top_k, top_p, seeded())
    counts = torch.bincount(tokens, minlength=6)
    expected = torch.tensor(expected_law(temperature, top_k, top_p), dtype=torch.float64)
    assert not counts[expected == 0].any()
    possible = expected > 0
    if possible.sum() > 1:
        assert stats.chisquare(counts[possible], n * expected[possible]).pvalue > 0.01


def test_temperature_zero_is_greedy() -> None:
    logits = torch.randn(50, 7)
    assert torch.equal(categorical_sample(logits, 0.0, 3, 0.5), logits.argmax(-1))


def test_top_p_keeps_the_token_that_reaches_it() -> None:
    """With shares .5, .3, .2 and p = .6 two tokens stay; the first alone would not reach it."""
    logits = f64(0.2, 0.5, 0.3).log().expand(2_000, -1)
    assert set(categorical_sample(logits, 1.0, None, 0.6, seeded()).tolist()) == {1, 2}
    assert set(categorical_sample(logits, 1.0, None, 0.4, seeded()).tolist()) == {1}


def test_draw_never_takes_what_is_impossible() -> None:
    p = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).expand(20_000, -1)
    counts = torch.bincount(draw(p, seeded()), minlength=5)
    assert counts[[0, 2, 4]].tolist() == [0, 0, 0]
    assert stats.chisquare(counts[[1, 3]]).pvalue > 0.01


def test_rows_are_drawn_from_their_own_law() -> None:
    p = torch.eye(6)[[4, 0, 5, 2]]
    assert draw(p, seeded()).tolist() == [4, 0, 5, 2]


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_extreme_uniforms_fall_on_possible_tokens(u: float, monkeypatch) -> None:
    p = torch.rand(500, 9, generator=seeded())
    p[:, [0, 8]] = 0
    monkeypatch.setattr(torch, "rand", lambda *shape, **how: torch.full(shape[:2], u, dtype=torch.float64))
    assert set(draw(p).tolist()) == {1 if u == 0 else 7}


@pytest.mark.parametrize("vocabulary", [1, 7])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_logits_in_pieces_are_cross_entropy(rows: int, vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nats and gradients, whatever stands above them."""
    monkeypatch.setattr(likelihoods, "LOGITS", 3 * vocabulary)
    hidden, weight, bias = (
        torch.randn(*size, dtype=torch.float64).requires_grad_() for size in ((rows, 4), (vocabulary, 4), (vocabulary,))
    )
    tokens = torch.randint(vocabulary, (rows,))
    above = torch.randn(rows, dtype=torch.float64)
    found = linear_categorical_log_prob(hidden, weight, bias, tokens)
    expected = categorical_log_prob(torch.nn.functional.linear(hidden, weight, bias), tokens)
    torch.testing.assert_close(found, expected)
    inputs = [hidden, weight, bias]
    for a, b in zip(
        torch.autograd.grad((above * found).sum(), inputs),
        torch.autograd.grad((above * expected).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_logits_under_bf16_are_rounded_products_summed_in_float32() -> None:
    torch.manual_seed(0)
    hidden, layer, tokens = torch.randn(50, 16), torch.nn.Linear(16, 30), torch.randint(30, (50,))
    exact = linear_categorical_log_prob(hidden, layer.weight, layer.bias, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = linear_categorical_log_prob(hidden.bfloat16(), layer.weight, layer.bias, tokens)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0)
    (a,) = torch.autograd.grad(exact.sum(), [layer.weight])
    (b,) = torch.autograd.grad(rounded.sum(), [layer.weight])
    assert (a - b).norm() < 0.02 * a.norm()
