"""Importance-weighted and mixture objectives where the answer is known: values, gradients, what is a bound."""

import pytest
import torch
from torch import Tensor, nn

from mmseqvae.distributions.gaussian import Gaussian
from mmseqvae.fusion import moe, mopoe, poe, poe_without_base
from mmseqvae.modality import Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.objectives import coordinated, importance, mixture
from mmseqvae.sequence import Sequence
from tests.exact import (
    CONJUGATE_LOG_P,
    LOG_P,
    FixedEncoder,
    LinearDecoder,
    conjugate,
    conjugate_at_prior,
    conjugate_batch,
    f64,
    gauss_hermite,
    nodes_instead_of_noise,
    ppca,
    ppca_batch,
)
from tests.slow import batch, build

TWO_DRAWS = {"prior": -1.8271032610360984, "near": -1.4880876054831786, "posterior": CONJUGATE_LOG_P}
ONE_DRAW = {"prior": -2.5723649429247, "near": -1.5439385332046727, "posterior": CONJUGATE_LOG_P}


def conjugates() -> dict[str, MultimodalVAE]:
    return {"prior": conjugate_at_prior(), "near": conjugate(0.5, 0.5), "posterior": conjugate(2 / 3, 1 / 3)}


def two_draws(monkeypatch, points: int) -> Tensor:
    """Let two draws [2, 1, N, 1] be all pairs of nodes, and return the pairs' weights [N]."""
    nodes, weights = gauss_hermite(points, 2)
    nodes_instead_of_noise(monkeypatch, nodes.T[:, None, :, None])
    return weights


@pytest.mark.parametrize("distribution", TWO_DRAWS)
@pytest.mark.parametrize("gradient", ["iwae", "dreg"])
def test_two_draws_give_the_known_bound(distribution: str, gradient: str, monkeypatch) -> None:
    weights = two_draws(monkeypatch, 100)
    terms = importance(conjugates()[distribution], conjugate_batch(len(weights)), draws=2, gradient=gradient)
    assert (weights * terms.objective).sum().item() == pytest.approx(TWO_DRAWS[distribution], abs=1e-6)
    assert (weights * terms.elbo).sum().item() == pytest.approx(ONE_DRAW[distribution], abs=1e-10)


@pytest.mark.parametrize("how", ["one part", "tight", "loose"])
def test_bounds_rise_with_the_number_of_draws_and_stay_bounds(how: str) -> None:
    """Encoders that are off; means of many rows, whose standard errors are far below the steps."""
    model = ppca()
    model.fusion = model.fusion if how == "one part" else moe
    model.modalities["one"].encoder.bias.data += 0.2
    means = []
    for draws in (1, 4, 16):
        torch.manual_seed(0)
        terms = importance(model, ppca_batch(4000), draws=draws, tight=how != "loose")
        error = terms.objective.std().item() / 4000**0.5
        means.append(terms.objective.mean().item())
        assert means[-1] < LOG_P["one", "two"] + 4 * error
        effective = terms.others["effective_draws"]
        assert effective.min() >= 1
        assert effective.max() <= draws * (1 if how == "one part" else 2) + 1e-9
        assert not effective.requires_grad
    if how != "loose":  # with several parts a loose bound compares parts, whatever K
        assert means[0] + 0.01 < means[1] < means[2]
    else:
        assert means[0] < means[1] < means[2]


def test_a_tight_bound_is_above_the_loose_one() -> None:
    found = {}
    for tight in (True, False):
        torch.manual_seed(5)
        found[tight] = importance(build(fusion=moe), batch(), draws=4, tight=tight).objective
    assert (found[True] >= found[False] - 1e-12).all()
    assert (found[True][0] - found[False][0]).abs() > 1e-3


def test_draws_of_the_exact_posterior_are_all_effective() -> None:
    terms = importance(conjugates()["posterior"], conjugate_batch(3), draws=7)
    torch.testing.assert_close(terms.others["effective_draws"], torch.full((3,), 7.0, dtype=torch.float64))
    torch.testing.assert_close(terms.objective, torch.full((3,), CONJUGATE_LOG_P, dtype=torch.float64))


class Free(nn.Module):
    """An expert whose mean and logarithm of the standard deviation are parameters."""

    latent = 1

    def __init__(self, mean: float, variance: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(f64(mean))
        self.log_sigma = nn.Parameter(f64(variance).log() / 2)

    def forward(self, x: Sequence) -> Gaussian:
        like = x.values.new_zeros(len(x), 1)
        return Gaussian(like + self.mean, like + 2 * self.log_sigma)


def free_model(mean: float, variance: float) -> tuple[MultimodalVAE, Free]:
    """The conjugate model whose posterior is just its expert."""
    encoder = Free(mean, variance)
    modality = Modality(encoder, LinearDecoder(f64([1]), f64(0), 0.5))
    return MultimodalVAE({"x": modality}, fusion=poe_without_base).double(), encoder


@pytest.mark.parametrize("gradient", ["dreg", "iwae"])
def test_both_gradients_have_the_known_mean(gradient: str, monkeypatch) -> None:
    weights = two_draws(monkeypatch, 100)
    model, encoder = free_model(0.5, 0.5)
    terms = importance(model, conjugate_batch(len(weights)), draws=2, gradient=gradient)
    found = torch.autograd.grad((weights * terms.objective).sum(), [encoder.mean, encoder.log_sigma])
    assert found[0].item() == pytest.approx(0.183629827643659, abs=1e-6)
    assert found[1].item() == pytest.approx(-0.151895685615089, abs=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_both_gradients_have_one_mean_whatever_beta(beta: float, monkeypatch) -> None:
    """Where beta is not 1 the score that is rewritten weighs beta times as much."""
    found = []
    for gradient in ("dreg", "iwae"):
        weights = two_draws(monkeypatch, 100)
        model, encoder = free_model(0.5, 0.5)
        terms = importance(model, conjugate_batch(len(weights)), draws=2, gradient=gradient, beta=beta)
        found.append(torch.stack(torch.autograd.grad((weights * terms.objective).sum(), [*encoder.parameters()])))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_at_the_posterior_the_doubly_reparameterised_gradient_is_zero_draw_by_draw() -> None:
    for gradient in ("dreg", "iwae"):
        model, encoder = free_model(2 / 3, 1 / 3)
        terms = importance(model, conjugate_batch(1), draws=3, gradient=gradient)
        largest = max(g.abs().item() for g in torch.autograd.grad(terms.objective.sum(), encoder.parameters()))
        assert largest < 1e-12 if gradient == "dreg" else largest > 1e-3


def test_decoders_learn_alike_from_both_gradients() -> None:
    found = []
    for gradient in ("dreg", "iwae"):
        model = build(fusion=moe)
        torch.manual_seed(5)
        importance(model, batch(), draws=3, gradient=gradient, tight=False).objective.sum().backward()
        found.append(model.modalities["audio"].decoder.to_frames.weight.grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("fusion", [poe, moe])
def test_coordinated_draws_without_coordination_are_the_importance_bound(fusion) -> None:
    found = []
    for objective, options in (
        (coordinated, {"coordination": 0.0, "token_reconstruction": 0.0, "self_reconstruction": 0.0}),
        (importance, {}),
    ):
        model = build(fusion=fusion)
        torch.manual_seed(5)
        terms = objective(model, batch(), draws=3, beta=0.7, **options)
        terms.objective.sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([terms.objective, terms.elbo, terms.kl, terms.others["effective_draws"], *gradients])
    assert len(found[0]) > 10
    torch.testing.assert_close(*found)


def three_experts() -> tuple[MultimodalVAE, dict[str, Sequence]]:
    """Experts (1, 2), (-1, 0.5), (0.5, 1) whatever they read."""
    distributions = {"a": (1, 2), "b": (-1, 0.5), "c": (0.5, 1)}
    parts = {
        n: Modality(FixedEncoder(*distribution), LinearDecoder(f64([1]), f64(0), 0.5))
        for n, distribution in distributions.items()
    }
    return MultimodalVAE(parts, fusion=mopoe).double(), {name: conjugate_batch(64)["x"] for name in distributions}


def test_the_kls_of_a_mixture_of_products_are_the_known_ones(monkeypatch) -> None:
    """The loose one is the mean over the seven subsets; the tight one is that of the mixture itself, and smaller."""
    model, full = three_experts()
    nodes, weights = gauss_hermite(64, 1)
    nodes_instead_of_noise(monkeypatch, nodes)
    tight, loose = mixture(model, full), mixture(model, full, tight=False)
    scores = sum(loose.reconstruction.values())
    torch.testing.assert_close(scores - loose.objective, torch.full((64,), 0.29045166318079346, dtype=torch.float64))
    assert (weights * tight.kl).sum().item() == pytest.approx(0.0954366, abs=1e-6)
    torch.testing.assert_close(tight.objective, tight.elbo)
    torch.testing.assert_close(loose.elbo, tight.elbo)


@pytest.mark.parametrize("fusion", [moe, mopoe])
def test_the_bound_of_a_mixture_is_a_bound(fusion, monkeypatch) -> None:
    """On the exact model, by quadrature: below log p, loose below tight; one part gives the plain bound."""
    nodes, weights = gauss_hermite(24, 2)
    nodes_instead_of_noise(monkeypatch, nodes)
    model = ppca()
    model.fusion = fusion
    values = {}
    for tight in (True, False):
        values[tight] = (weights * mixture(model, ppca_batch(len(nodes)), tight=tight).objective).sum().item()
    assert values[False] < values[True] < LOG_P["one", "two"] - 0.01
    alone = ppca_batch(len(nodes), ("one",))
    # by quadrature, since the KL of the part that is there is exact in the one and a mean over draws in the other
    bound = (weights * mixture(model, alone).objective).sum()
    torch.testing.assert_close(bound, (weights * elbo_of(model, alone)).sum())


def elbo_of(model: MultimodalVAE, full: dict[str, Sequence]) -> Tensor:
    """The plain bound with the posterior that the model's fusion has for one modality: that expert's own product."""
    q = model.posterior(full)
    plain = Gaussian(q.mean, q.variance.log())
    z = plain.rsample()
    scores = sum(model.log_likelihood(z, full).values())
    return scores - plain.log_prob(z) + model.standard.log_prob(z)
