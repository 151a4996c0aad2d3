"""Fitted densities: they integrate to one, start as mixtures and end no worse."""

import math

import pytest
import torch
from torch import Tensor

from mmseqvae.distributions.gaussian import Gaussian, GaussianMixture
from mmseqvae.priors.flows import Flow, LinearMap, MixtureFlow, fit_flow
from mmseqvae.priors.mixtures import fit_mixture
from tests.exact import f64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(reach: float = 12, points: int = 481) -> tuple[Tensor, float]:
    """Points of a square [N, 2] and the area of each."""
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return torch.cartesian_prod(line, line), (2 * reach / (points - 1)) ** 2


def net(context: int = 0, transforms: int = 2) -> MixtureFlow:
    torch.manual_seed(1)
    made = MixtureFlow(2, 3, context, transforms, hidden=8).double()
    for weight in made.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    made.latent_mean.copy_(f64(1, -1))
    made.latent_std.copy_(f64(1.5, 0.7))
    made.start.data[3:9] += f64(-2, 0, 2, 1, 0, -2)
    return made


@pytest.mark.parametrize("context", [0, 4])
@pytest.mark.parametrize("transforms", [0, 2])
def test_a_law_integrates_to_one_and_draws_what_it_scores(context: int, transforms: int) -> None:
    made, (points, area) = net(context, transforms), grid()
    given = torch.randn(3, context, generator=seeded(), dtype=torch.float64) if context else None
    distribution = made.distribution(given)
    density = distribution.log_prob(points[:, None] if context else points).exp() * area
    total = density.sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), atol=2e-3, rtol=0)
    z = distribution.rsample(20_000, seeded())
    assert z.shape == ((20_000, 3, 2) if context else (20_000, 2))
    exact = (density.T @ points) if context else density @ points
    torch.testing.assert_close(z.mean(0), exact, atol=0.06, rtol=0)
    torch.testing.assert_close(distribution.mean, exact, atol=0.5, rtol=0)
    spread = ((points.square() * density[:, None]).sum(0) - exact.square()) if not context else None
    if spread is not None:
        torch.testing.assert_close(z.var(0), spread, atol=0, rtol=0.05)
        torch.testing.assert_close(distribution.variance, spread, atol=0, rtol=0.4)


@pytest.mark.parametrize("transforms", [0, 2])
def test_rows_of_a_law_are_laws(transforms: int) -> None:
    distribution, z = (
        net(4, transforms).distribution(torch.randn(5, 4, generator=seeded(), dtype=torch.float64)),
        torch.zeros(5, 2),
    )
    torch.testing.assert_close(distribution[2].log_prob(z[2].double()), distribution.log_prob(z.double())[2])
    assert not torch.allclose(distribution[1].log_prob(z[1].double()), distribution[2].log_prob(z[2].double()))


@pytest.mark.parametrize("transforms", [0, 2])
def test_a_flow_starts_as_the_mixture_that_it_is_given(transforms: int) -> None:
    distribution = GaussianMixture(f64(0.3, 0.7).log(), Gaussian(f64([5, 1], [-3, 0]), f64([0.5, -1], [0, -2])))
    made = MixtureFlow(2, 2, transforms=transforms).double()
    made.begin(distribution.rsample(100, seeded()), distribution)
    z = 4 * torch.randn(50, 2, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(made.distribution().log_prob(z), distribution.log_prob(z))
    torch.testing.assert_close(made.distribution().rsample(9, seeded()), distribution.rsample(9, seeded()))


@pytest.mark.parametrize("transforms", [0, 2])
def test_of_a_context_it_starts_as_a_line_and_what_that_leaves(transforms: int) -> None:
    context = torch.randn(2_000, 3, generator=seeded(), dtype=torch.float64) * 2 + 1
    slope = f64([1, -1], [0, 2], [3, 0])
    rest = GaussianMixture(f64(0.5, 0.5).log(), Gaussian(f64([5, 1], [-5, -1]), f64([0.5, -1], [0, -2])))
    z = context @ slope + 7 + rest.rsample(2_000, seeded(1))
    line = LinearMap.through(context, z)
    torch.testing.assert_close(line(context), context @ slope + 7, atol=1.5, rtol=0)
    made = MixtureFlow(2, 2, 3, transforms).double()
    made.begin(z, rest, line)
    expected = rest.log_prob(z[:50] - line(context[:50]))
    torch.testing.assert_close(made.distribution(context[:50]).log_prob(z[:50]), expected)


def bananas(n: int, seed: int) -> Tensor:
    """Two groups, each bent along a parabola."""
    rng = seeded(seed)
    x = 2 * torch.randn(n, generator=rng)
    side = torch.where(torch.rand(n, generator=rng) < 0.5, -6.0, 6.0)
    return torch.stack([x, side + 0.5 * x.square() + 0.3 * torch.randn(n, generator=rng)], 1)


def test_a_fitted_flow_is_better_than_its_mixture_where_groups_are_bent(monkeypatch) -> None:
    monkeypatch.setattr("mmseqvae.priors.flows.EPOCHS", 60)
    z, valid, test = bananas(700, 0), bananas(300, 1), bananas(2_000, 2)
    flow, start = fit_flow(z, 4, valid=valid), fit_mixture(z, 4, valid=valid)
    assert flow.log_prob(valid).mean() >= start.log_prob(valid).mean() - 1e-4
    assert flow.log_prob(test).mean() > start.log_prob(test).mean() + 0.2
    exact = math.log(0.5) - 2 * 0.5 * (1 + math.log(2 * math.pi)) - math.log(2 * 0.3)
    assert flow.log_prob(test).mean() < exact + 0.05
    drawn = flow.sample(2_000, seeded())
    assert not drawn.requires_grad
    torch.testing.assert_close(drawn.median(0).values, test.median(0).values, atol=1.0, rtol=0)
    bend = drawn[:, 1] - 0.5 * drawn[:, 0].square()  # at -6 or 6
    assert ((bend.abs() - 6).abs() < 1.5).float().mean() > 0.75
    assert str(flow) == "flow over a mixture of 4 fitted to training posteriors"


def test_a_flow_depends_on_its_seed_alone(monkeypatch) -> None:
    monkeypatch.setattr("mmseqvae.priors.flows.EPOCHS", 3)
    z = bananas(100, 0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = fit_flow(z, 2, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    two = fit_flow(z, 2, seed=1)
    assert torch.equal(one.log_prob(z), two.log_prob(z))


def test_a_flow_in_one_dimension(monkeypatch) -> None:
    monkeypatch.setattr("mmseqvae.priors.flows.EPOCHS", 3)
    assert fit_flow(bananas(60, 0)[:, :1], 2).log_prob(torch.zeros(3, 1)).isfinite().all()


def test_too_few_draws_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least 2 draws to learn from and 1 to stop by, got 5 and 0"):
        fit_flow(torch.zeros(5, 2), 1)
    assert Flow(2, 1).latent == 2
