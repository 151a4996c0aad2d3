import pytest
import torch
import torch.distributions as td
from exact import f64
from scipy import stats

from mmseqvae.gaussian import Gaussian
from mmseqvae.priors import LearntMixture, Mixture, StandardNormal, divergence, fit_mixture

WEIGHTS, MEANS, LOGVARS = f64(0.2, 0.5, 0.3), f64([-5, 0], [0, 5], [5, -5]), f64([0, -1], [-2, 0.5], [0.1, 0.2])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture() -> Mixture:
    return Mixture(WEIGHTS.log() + 3, MEANS, LOGVARS)  # unnormalised weights are allowed


def test_standard_normal() -> None:
    prior, z = StandardNormal(3).double(), torch.randn(4, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(z), td.Normal(0, 1).log_prob(z).sum(-1))
    draws = prior.sample(50_000, seeded())
    assert draws.dtype == torch.float64
    torch.testing.assert_close(draws.mean(0), torch.zeros(3).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(draws.T.cov(), torch.eye(3).double(), atol=0.03, rtol=0)


def test_mixture_density_is_that_of_torch_distributions() -> None:
    z = 5 * torch.randn(4, 7, 2, dtype=torch.float64)
    parts = td.Independent(td.Normal(MEANS, (LOGVARS / 2).exp()), 1)
    expected = td.MixtureSameFamily(td.Categorical(WEIGHTS), parts).log_prob(z)
    torch.testing.assert_close(mixture().log_prob(z), expected)


def test_mixture_of_one_is_its_component() -> None:
    z = torch.randn(5, 2, dtype=torch.float64)
    one = Mixture(f64(0.0), MEANS[:1], LOGVARS[:1])
    torch.testing.assert_close(one.log_prob(z), Gaussian(MEANS[0], LOGVARS[0]).log_prob(z))


def test_mixture_draws_follow_weights_means_and_variances() -> None:
    n = 30_000
    z = mixture().sample(n, seeded())
    nearest = torch.cdist(z, MEANS).argmin(1)  # the components stand far apart
    assert stats.chisquare(torch.bincount(nearest), n * WEIGHTS).pvalue > 0.01
    for k in range(3):
        torch.testing.assert_close(z[nearest == k].mean(0), MEANS[k], atol=0.05, rtol=0)
        torch.testing.assert_close(z[nearest == k].var(0), LOGVARS[k].exp(), atol=0, rtol=0.06)
    assert torch.equal(z, mixture().sample(n, seeded()))


def test_fitted_mixture_finds_what_the_draws_came_from() -> None:
    z = mixture().sample(3_000, seeded())
    fitted = fit_mixture(z, 3)
    order = fitted.means[:, 0].argsort()
    torch.testing.assert_close(fitted.means[order], MEANS, atol=0.15, rtol=0)
    torch.testing.assert_close(fitted.log_weights.exp()[order], WEIGHTS, atol=0.03, rtol=0)
    torch.testing.assert_close(fitted.logvars[order], LOGVARS, atol=0.2, rtol=0)
    held_out = mixture().sample(3_000, seeded(1))
    assert fitted.log_prob(held_out).mean() == pytest.approx(mixture().log_prob(held_out).mean().item(), abs=0.01)


def test_fit_repeats_with_a_seed_and_keeps_the_type() -> None:
    z = mixture().sample(200, seeded()).float()
    a, b = fit_mixture(z, 4, seed=1), fit_mixture(z, 4, seed=1)
    assert torch.equal(a.means, b.means)
    assert a.means.dtype == torch.float32


def test_fit_takes_a_component_for_every_ten_draws_at_most() -> None:
    z = mixture().sample(45, seeded())
    assert len(fit_mixture(z, 50).log_weights) == 4
    assert len(fit_mixture(z[:5], 50).log_weights) == 1


def test_bad_arguments_are_errors() -> None:
    with pytest.raises(ValueError, match="at least 1 component and 2 draws, got 0 and 3"):
        fit_mixture(torch.zeros(3, 2), 0)
    with pytest.raises(ValueError, match="2 draws"):
        fit_mixture(torch.zeros(1, 2), 1)
    with pytest.raises(ValueError, match=r"log_weights \[K\]"):
        Mixture(torch.zeros(2), torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="at least 1 component, got 0"):
        LearntMixture(0, 2)


def test_a_prior_names_itself() -> None:
    assert str(StandardNormal(2)) == "N(0, I)"
    assert str(LearntMixture(4, 2)) == "mixture of 4 learnt with the model"
    assert str(mixture()) == "mixture of 3 fitted to training posteriors"


def test_a_learnt_mixture_starts_near_the_standard_normal_and_learns() -> None:
    torch.manual_seed(0)
    prior = LearntMixture(200, 3).double()
    law = prior.mixture()
    torch.testing.assert_close(law.mean, torch.zeros(3).double(), atol=0.15, rtol=0)
    torch.testing.assert_close(law.variance, torch.ones(3).double(), atol=0.15, rtol=0)
    points = mixture().sample(500, seeded())
    learnt = LearntMixture(6, 2).double()
    optimizer = torch.optim.Adam(learnt.parameters(), 0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (-learnt.log_prob(points).mean()).backward()
        optimizer.step()
    assert learnt.log_prob(points).mean() > mixture().log_prob(points).mean() - 0.1
    assert abs(learnt.sample(5_000, seeded()).mean(0) - points.mean(0)).max() < 0.4


def test_divergence_is_exact_where_it_can_be_and_else_a_mean_over_draws() -> None:
    q = Gaussian(f64([1, 0], [0.5, 2]), f64([2, 0.5], [1, 0.3]).log())
    other = Gaussian(f64([-1, 0.2], [0, 0]), f64([0.5, 1], [3, 1]).log())
    z = q.rsample(200_000, seeded())
    anything = torch.full_like(z, torch.nan)
    torch.testing.assert_close(divergence(q, StandardNormal(2).double(), anything), q.kl().sum(-1))
    torch.testing.assert_close(divergence(q, other, anything), q.kl(other).sum(-1))
    one = Mixture(f64(0.0), f64([0, 0]), f64([0, 0]))  # N(0, I), but nobody knows
    torch.testing.assert_close(divergence(q, one, z), q.kl().sum(-1), atol=0.02, rtol=0)
    torch.testing.assert_close(divergence(q, one, z[0]), q.log_prob(z[0]) - one.log_prob(z[0]))
