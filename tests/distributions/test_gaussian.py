import math

import pytest
import torch
import torch.distributions as td
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.distributions import Normal, kl_divergence

from mmseqvae.distributions.gaussian import Gaussian, GaussianMixture, parts
from tests.exact import f64


def gaussian(mean: float, variance: float) -> Gaussian:
    return Gaussian(f64(mean), f64(variance).log())


def drawn(*shape: int, seed: int = 0) -> Gaussian:
    rng = torch.Generator().manual_seed(seed)
    mean, logvar = torch.randn(2, *shape, generator=rng, dtype=torch.float64)
    return Gaussian(mean, logvar)


def test_kl_has_the_known_values() -> None:
    a, b = gaussian(1, 2), gaussian(-1, 0.5)
    assert a.kl(b).item() == pytest.approx(4.806852819440055, abs=1e-12)
    assert b.kl(a).item() == pytest.approx(1.3181471805599454, abs=1e-12)
    assert a.kl(a).item() == 0


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 99))
def test_everything_is_as_in_torch_distributions(shape: list[int], seed: int) -> None:
    """Any leading dimensions; the KL stays per dimension, densities and entropy are summed over D."""
    a, b = drawn(*shape, seed=seed), drawn(*shape, seed=seed + 1)
    p, q = Normal(a.mean, a.std), Normal(b.mean, b.std)
    z = b.rsample(4)
    torch.testing.assert_close(a.kl(b), kl_divergence(p, q))
    torch.testing.assert_close(a.kl(), kl_divergence(p, Normal(0 * a.mean, 1)))
    torch.testing.assert_close(a.kl(Gaussian.standard_like(a.mean)), a.kl())
    torch.testing.assert_close(a.log_prob(z), p.log_prob(z).sum(-1))
    torch.testing.assert_close(a.entropy(), p.entropy().sum(-1))
    torch.testing.assert_close(a.variance, a.std**2)


def test_draws_have_the_moments_and_repeat_with_a_generator() -> None:
    q = Gaussian(f64(1, -2), f64(0.25, 9).log())
    z = q.rsample(100_000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(z.mean(0), q.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(z.var(0), q.variance, atol=0, rtol=0.02)
    assert abs(float(torch.corrcoef(z.T)[0, 1])) < 0.01
    assert torch.equal(z, q.rsample(100_000, torch.Generator().manual_seed(1)))
    assert q.rsample().shape == (2,)


def test_draws_are_reparameterised() -> None:
    """d z / d mean = 1 and d z / d logvar = (z - mean) / 2."""
    mean, logvar = f64(1, -2).requires_grad_(), f64(0.3, -1).requires_grad_()
    z = Gaussian(mean, logvar).rsample()
    by_mean, by_logvar = torch.autograd.grad(z.sum(), [mean, logvar])
    torch.testing.assert_close(by_mean, torch.ones_like(mean))
    torch.testing.assert_close(by_logvar, (z - mean).detach() / 2)
    assert not Gaussian(mean, logvar).detach().rsample().requires_grad


def test_kl_stays_accurate_near_zero_and_far_away() -> None:
    close = Gaussian(f64(1e-4), f64(1e-4))
    assert close.kl().item() == pytest.approx(0.5 * (1e-8 + math.expm1(1e-4) - 1e-4), rel=1e-6)
    assert drawn(1).kl(Gaussian(f64(0), f64(-60))).isfinite().all()
    assert Gaussian(f64(0), f64(-60)).kl().item() == pytest.approx(29.5)


def test_mismatched_shapes_are_an_error() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        Gaussian(torch.zeros(2, 3), torch.zeros(3))


def test_indexing_takes_rows_of_both() -> None:
    q = drawn(4, 2)
    assert torch.equal(q[1:3].mean, q.mean[1:3])
    assert torch.equal(q[torch.tensor([3, 0])].logvar, q.logvar[[3, 0]])


# Mixtures

LOG_WEIGHTS, MEANS, VARIANCES = f64([0.2], [0.5], [0.3]).log(), f64([[-3, 0]], [[0, 3]], [[3, -3]]), f64([1, 0.3])
INF, NAN = float("inf"), float("nan")


def mixture() -> GaussianMixture:
    """Three parts in one row of two dimensions; unnormalised weights are allowed."""
    return GaussianMixture(LOG_WEIGHTS + 3, Gaussian(MEANS, VARIANCES.log().expand(3, 1, 2)))


def reference() -> td.Distribution:
    parts = td.Independent(td.Normal(MEANS.transpose(0, 1), VARIANCES.sqrt()), 1)
    return td.MixtureSameFamily(td.Categorical(LOG_WEIGHTS.exp().T), parts)


def test_a_mixture_is_as_in_torch_distributions() -> None:
    q, distribution, z = mixture(), reference(), 3 * torch.randn(4, 5, 1, 2, dtype=torch.float64)
    torch.testing.assert_close(q.mean, distribution.mean)
    torch.testing.assert_close(q.variance, distribution.variance)
    torch.testing.assert_close(q.log_prob(z), distribution.log_prob(z))
    torch.testing.assert_close(q.log_prob(z[0, 0]), distribution.log_prob(z[0, 0]))


def test_draws_of_a_mixture_follow_weights_means_and_variances() -> None:
    n, q = 30_000, mixture()
    z = q.rsample(n, torch.Generator().manual_seed(0))[:, 0]
    nearest = torch.cdist(z, MEANS[:, 0]).argmin(1)
    assert stats.chisquare(torch.bincount(nearest), n * LOG_WEIGHTS.exp()[:, 0]).pvalue > 0.01
    torch.testing.assert_close(z.mean(0), q.mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(z.var(0), q.variance[0], atol=0.1, rtol=0)
    assert torch.equal(z, q.rsample(n, torch.Generator().manual_seed(0))[:, 0])
    assert q.rsample().shape == (1, 2)


def test_less_noise_draws_nearer_to_the_means_of_the_same_parts() -> None:
    q = mixture()
    full, half, none = (q.rsample(500, torch.Generator().manual_seed(0), noise) for noise in (1.0, 0.5, 0.0))
    parts = MEANS[torch.cdist(none[:, 0], MEANS[:, 0]).argmin(1)]
    assert torch.equal(none, parts)
    torch.testing.assert_close(half - none, (full - none) / 2)
    assert (full - none).std() > 0.1


def test_gradients_of_draws_pass_through_the_chosen_part_only() -> None:
    mean = MEANS.clone().requires_grad_()
    weights = LOG_WEIGHTS.clone().requires_grad_()
    q = GaussianMixture(weights, Gaussian(mean, VARIANCES.log().expand(3, 1, 2)))
    z = q.rsample(1, torch.Generator().manual_seed(3))
    z.sum().backward()
    assert mean.grad is not None
    assert sorted(mean.grad.sum((1, 2)).tolist()) == [0, 0, 2]
    assert weights.grad is None


def test_an_absent_part_is_not_there_whatever_nan_it_holds() -> None:
    mean = torch.cat([MEANS, torch.full((1, 1, 2), NAN).double()]).requires_grad_()
    logvar = VARIANCES.log().expand(4, 1, 2).clone()
    logvar[3] = NAN
    logvar.requires_grad_()
    q = GaussianMixture(torch.cat([LOG_WEIGHTS, f64([-INF])]), Gaussian(mean, logvar))
    z = torch.randn(6, 1, 2).double()
    torch.testing.assert_close(q.log_prob(z), mixture().log_prob(z))
    torch.testing.assert_close(q.mean, mixture().mean)
    torch.testing.assert_close(q.variance, mixture().variance)
    (q.log_prob(z).sum() + q.mean.sum() + q.variance.sum() + q.rsample(50).sum()).backward()
    for gradient in (mean.grad, logvar.grad):
        assert gradient is not None
        assert gradient.isfinite().all()
        assert not gradient[3].any()


def test_rows_of_a_mixture_are_mixtures() -> None:
    weights, own = torch.randn(3, 4, 5).double(), drawn(3, 4, 5, 2)
    q, z = GaussianMixture(weights, own), torch.randn(5, 2).double()
    torch.testing.assert_close(q[1].log_prob(z), q.log_prob(z.expand(4, 5, 2))[1])
    torch.testing.assert_close(q[:, 2].mean, q.mean[:, 2])
    torch.testing.assert_close(q[torch.tensor([3, 0]), 1].variance, q.variance[[3, 0], 1])


def test_parts_of_both_kinds() -> None:
    plain = drawn(4, 2)
    weights, one = parts(plain)
    assert torch.equal(weights, torch.zeros(1, 4).double())
    assert torch.equal(one.mean[0], plain.mean)
    weights, several = parts(mixture())
    torch.testing.assert_close(weights.exp(), LOG_WEIGHTS.exp())
    assert torch.equal(several.mean, MEANS)


def test_parts_that_no_row_has_are_left_out() -> None:
    shares = torch.tensor([[0.0, 0.0], [0.3, 0.0], [0.7, 1.0]], dtype=torch.float64)
    q = GaussianMixture(shares.log(), drawn(3, 2, 4))
    weights, there = parts(q)
    torch.testing.assert_close(weights.exp(), shares[1:])
    assert torch.equal(there.mean, q.parts.mean[1:])


def test_weights_that_do_not_fit_the_parts_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"log_weights \[S, ...\]"):
        GaussianMixture(torch.zeros(3), drawn(3, 4, 2))
