import math

import pytest
import torch
from exact import f64
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from mmseqvae.gaussian import Gaussian


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
