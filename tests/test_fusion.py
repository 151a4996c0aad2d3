import itertools

import pytest
import torch
from exact import LOG_P, B, S, W, X, f64, ppca, ppca_batch
from hypothesis import given
from hypothesis import strategies as st

from mmseqvae.fusion import poe
from mmseqvae.gaussian import Gaussian

NAN = float("nan")


def experts(*pairs: tuple[float, float]) -> Gaussian:
    mean, variance = f64(*pairs).unbind(1)
    return Gaussian(mean[:, None, None], variance.log()[:, None, None])  # [M, 1, 1]


def everywhere(value: Gaussian) -> torch.Tensor:
    return torch.ones(value.mean.shape[:-1], dtype=torch.bool)


def test_known_product_with_the_base_expert() -> None:
    product = poe(experts((1, 2), (-1, 0.5)), torch.ones(2, 1, dtype=torch.bool))
    assert product.mean.item() == pytest.approx(-3 / 7, abs=1e-15)
    assert product.variance.item() == pytest.approx(2 / 7, abs=1e-15)
    assert product.kl().item() == pytest.approx(0.36107536179870436, abs=1e-14)


@pytest.mark.parametrize(
    ("subset", "kl"),
    [
        ((0,), 0.091621),
        ((1,), 0.438195),
        ((2,), 0.127824),
        ((0, 1), 0.361075),
        ((0, 2), 0.238145),
        ((1, 2), 0.388460),
        ((0, 1, 2), 0.387841),
    ],
)
def test_known_kl_of_every_subset(subset: tuple[int, ...], kl: float) -> None:
    present = torch.tensor([[m in subset] for m in range(3)])
    assert poe(experts((1, 2), (-1, 0.5), (0.5, 1)), present).kl().item() == pytest.approx(kl, abs=5e-7)


def test_a_missing_expert_is_one_of_infinite_variance() -> None:
    pair, present = experts((1, 2), (NAN, NAN)), torch.tensor([[True], [False]])
    alone = poe(experts((1, 2)), torch.tensor([[True]]))
    product = poe(pair, present)
    assert torch.equal(product.mean, alone.mean)
    torch.testing.assert_close(product.logvar, alone.logvar)
    flat = poe(experts((1, 2), (123, 1e300)), torch.ones(2, 1, dtype=torch.bool))
    torch.testing.assert_close(flat.mean, alone.mean)
    torch.testing.assert_close(flat.logvar, alone.logvar)


def test_with_all_missing_it_is_exactly_the_base_expert_whatever_nan() -> None:
    product = poe(experts((NAN, NAN), (NAN, 1), (1, NAN)), torch.zeros(3, 1, dtype=torch.bool))
    assert product.mean.item() == 0
    assert product.logvar.item() == 0
    assert product.kl().item() == 0


def test_gradients_pass_an_absent_nan_by() -> None:
    mean = f64([1], [NAN]).requires_grad_()
    logvar = f64([0.5], [NAN]).requires_grad_()
    product = poe(Gaussian(mean, logvar), torch.tensor([True, False]))
    (product.mean + product.kl()).sum().backward()
    assert mean.grad is not None
    assert logvar.grad is not None
    assert mean.grad[0].isfinite().all()
    assert mean.grad[0] != 0
    assert logvar.grad[0].isfinite().all()
    assert mean.grad[1] == 0
    assert logvar.grad[1] == 0


@given(st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 99))
def test_equals_the_sum_of_precisions_in_any_order(m: int, shape: list[int], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    mean, logvar = 2 * torch.randn(2, m, *shape, 3, generator=rng, dtype=torch.float64)
    present = torch.rand(m, *shape, generator=rng) < 0.6
    product = poe(Gaussian(mean, logvar), present)
    here = present[..., None].double()
    precision = 1 + (here * (-logvar).exp()).sum(0)
    torch.testing.assert_close(product.variance, 1 / precision)
    torch.testing.assert_close(product.mean, (here * mean * (-logvar).exp()).sum(0) / precision)
    for order in itertools.islice(itertools.permutations(range(m)), 3):
        again = poe(Gaussian(mean[list(order)], logvar[list(order)]), present[list(order)])
        torch.testing.assert_close(again.mean, product.mean)
        torch.testing.assert_close(again.logvar, product.logvar)


def test_extreme_precisions_stay_finite() -> None:
    """A naive sum of exp(-logvar) overflows here, in float32."""
    mean, logvar = torch.tensor([[3.0], [5.0]]), torch.tensor([[-200.0], [200.0]])
    product = poe(Gaussian(mean, logvar), torch.tensor([True, True]))
    assert product.mean.item() == pytest.approx(3)
    assert product.logvar.item() == pytest.approx(-200)


@pytest.mark.parametrize(
    ("names", "mean", "variance"),
    [
        (("one", "two"), (-0.0285714286, 0.3365853659), (1 / 7, 0.1951219512)),
        (("one",), (0.16, 0.32), (0.2, 0.2)),
        (("two",), (-1 / 3, 1 / 9), (1 / 3, 8 / 9)),
        ((), (0, 0), (1, 1)),
    ],
)
def test_posteriors_of_multimodal_pca(names: tuple[str, ...], mean: tuple, variance: tuple) -> None:
    """The diagonal product is the exact posterior there, as dense linear algebra confirms."""
    q = ppca().posterior(ppca_batch(names=names))
    torch.testing.assert_close(q.mean, f64(mean), atol=1e-9, rtol=0)
    torch.testing.assert_close(q.variance, f64(variance), atol=1e-9, rtol=0)
    precision = torch.eye(2).double() + sum(W[n].T @ W[n] / S[n] for n in names)
    natural = sum((W[n].T @ (X[n] - B[n]) / S[n] for n in names), torch.zeros(2).double())
    torch.testing.assert_close(q.mean[0], torch.linalg.solve(precision, natural))
    torch.testing.assert_close(torch.diag(q.variance[0]), torch.linalg.inv(precision))


def test_known_likelihoods_are_those_of_dense_gaussians() -> None:
    for names, log_p in LOG_P.items():
        weight, bias, x = (torch.cat([part[name] for name in names]) for part in (W, B, X))
        noise = torch.cat([torch.full_like(B[name], S[name]) for name in names])
        law = torch.distributions.MultivariateNormal(bias, weight @ weight.T + torch.diag(noise))
        assert law.log_prob(x).item() == pytest.approx(log_p, abs=1e-12)


def test_experts_of_multimodal_pca() -> None:
    experts = ppca().encode(ppca_batch()).experts
    torch.testing.assert_close(experts["one"].mean[0], f64(0.2, 0.4))
    torch.testing.assert_close(experts["one"].variance[0], f64(0.25, 0.25))
    torch.testing.assert_close(experts["two"].mean[0], f64(-0.5, 1))
    torch.testing.assert_close(experts["two"].variance[0], f64(0.5, 8))
