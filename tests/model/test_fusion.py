import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmseqvae.distributions.gaussian import Gaussian, GaussianMixture, Posterior
from mmseqvae.fusion import (
    FUSIONS,
    Encoded,
    Fusion,
    GeneralisedPoE,
    SampledMoPoE,
    moe,
    mopoe,
    poe,
    poe_without_base,
)
from mmseqvae.priors.base import StandardNormal, divergence
from tests.exact import LOG_P, B, S, W, X, f64, ppca, ppca_batch

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
        distribution = torch.distributions.MultivariateNormal(bias, weight @ weight.T + torch.diag(noise))
        assert distribution.log_prob(x).item() == pytest.approx(log_p, abs=1e-12)


def test_experts_of_multimodal_pca() -> None:
    encoded = ppca().encode(ppca_batch(2))
    assert encoded.names == ("one", "two")
    torch.testing.assert_close(encoded.expert("one").mean[0], f64(0.2, 0.4))
    torch.testing.assert_close(encoded.expert("one").variance[0], f64(0.25, 0.25))
    torch.testing.assert_close(encoded.expert("two").mean[0], f64(-0.5, 1))
    torch.testing.assert_close(encoded.expert("two").variance[0], f64(0.5, 8))


# The other ways


def every_fusion() -> dict[str, Fusion]:
    """Over three modalities and two dimensions, with whatever is learnt away from where it starts."""
    torch.manual_seed(0)
    built = {name: make(3, 2) for name, make in FUSIONS.items()}
    for fusion in built.values():
        if isinstance(fusion, torch.nn.Module):
            fusion.double().eval()
            for weight in fusion.parameters():
                weight.data += 0.3 * torch.randn_like(weight)
    return built


EVERY = pytest.mark.parametrize("fuse", every_fusion().values(), ids=FUSIONS)
FIXED = pytest.mark.parametrize("fuse", [poe, poe_without_base, moe, mopoe])
SUBSET_KLS = (0.091621, 0.438195, 0.127824, 0.361075, 0.238145, 0.388460, 0.387841)


def drawn(m: int, *shape: int, seed: int = 0) -> Gaussian:
    rng = torch.Generator().manual_seed(seed)
    return Gaussian(*torch.randn(2, m, *shape, generator=rng, dtype=torch.float64))


def present_parts(q: GaussianMixture, row: int) -> dict[float, tuple[float, float]]:
    """{mean: (weight, variance)} of the parts that are there, in the first dimension of a row."""
    weights = q.log_weights.exp()[:, row].tolist()
    mean, variance = q.parts.mean[:, row, 0].tolist(), q.parts.variance[:, row, 0].tolist()
    return {round(m, 9): (w, v) for w, m, v in zip(weights, mean, variance, strict=True) if w}


def test_known_product_without_the_base_expert() -> None:
    product = poe_without_base(experts((1, 2), (-1, 0.5)), torch.ones(2, 1, dtype=torch.bool))
    assert product.mean.item() == pytest.approx(-0.6, abs=1e-15)
    assert product.variance.item() == pytest.approx(0.4, abs=1e-15)


def test_a_mixture_of_experts_is_uniform_over_those_present() -> None:
    q = moe(experts((1, 2), (-1, 0.5), (0.5, 1)), torch.tensor([[True], [True], [False]]))
    assert present_parts(q, 0) == {1: pytest.approx((1 / 2, 2)), -1: pytest.approx((1 / 2, 0.5))}
    z = f64([[0.3]])
    expected = torch.stack([Gaussian(f64(m), f64(v).log()).log_prob(z) for m, v in ((1, 2), (-1, 0.5))])
    torch.testing.assert_close(q.log_prob(z), expected.logsumexp(0) - math.log(2))


def test_known_mixture_of_products() -> None:
    q = mopoe(experts((1, 2), (-1, 0.5), (0.5, 1)), torch.ones(3, 1, dtype=torch.bool))
    weights, kls = q.log_weights.exp()[:, 0], q.parts.kl().sum(-1)[:, 0]
    assert weights.tolist() == pytest.approx([0] + 7 * [1 / 7])
    assert sorted(kls[1:].tolist()) == pytest.approx(sorted(SUBSET_KLS), abs=5e-7)
    assert (weights * kls).sum().item() == pytest.approx(0.29045166318079346, abs=1e-14)
    # KL(mixture || prior) by quadrature on a fine grid
    z = torch.linspace(-12, 12, 40_001, dtype=torch.float64)[:, None, None]
    log_q, log_p = q.log_prob(z)[:, 0], Gaussian.standard_like(z).log_prob(z)[:, 0]
    kl = torch.trapezoid(log_q.exp() * (log_q - log_p), z[:, 0, 0]).item()
    assert kl == pytest.approx(0.0954366, abs=1e-7)
    draws = q.rsample(200_000, torch.Generator().manual_seed(0))
    assert divergence(q, StandardNormal(1).double(), draws).item() == pytest.approx(kl, abs=0.003)


def test_with_one_missing_the_mixture_is_over_subsets_of_the_others() -> None:
    three, there = experts((1, 2), (NAN, NAN), (0.5, 1)), torch.tensor([[True], [False], [True]])
    q, two = mopoe(three, there), mopoe(experts((1, 2), (0.5, 1)), torch.ones(2, 1, dtype=torch.bool))
    assert {round(mean, 6) for mean in present_parts(q, 0)} == {0.333333, 0.25, 0.4}
    z = torch.randn(9, 1, 1).double()
    torch.testing.assert_close(q.log_prob(z), two.log_prob(z))


@EVERY
def test_nothing_present_is_exactly_the_standard_normal(fuse) -> None:
    junk = torch.full((3, 4, 2), NAN).double()
    for present in (torch.zeros(3, 4).bool(), torch.zeros(3, 4, 2).bool()):
        q = fuse(Gaussian(junk, junk), present)
        assert (q.mean == 0).all()
        assert (q.variance == 1).all()
        z = torch.randn(4, 2).double()
        torch.testing.assert_close(q.log_prob(z), Gaussian.standard_like(z).log_prob(z))


@EVERY
def test_leading_dimensions_are_free_and_rows_are_independent(fuse) -> None:
    own, present = drawn(3, 5, 4, 2), torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    q, z = fuse(own, present), torch.randn(5, 4, 2).double()
    assert q.mean.shape == (5, 4, 2)
    for i in range(5):
        row = fuse(own[:, i], present[:, i])
        torch.testing.assert_close(row.mean, q.mean[i])
        torch.testing.assert_close(row.log_prob(z[i]), q.log_prob(z)[i])


@EVERY
@given(seed=st.integers(0, 99))
def test_absent_experts_reach_neither_values_nor_gradients(fuse, seed: int) -> None:
    own, rng = drawn(3, 4, 2, seed=seed), torch.Generator().manual_seed(seed)
    present = torch.rand(3, 4, generator=rng) < 0.5
    found = []
    for junk in (0.0, NAN):
        mean, logvar = (torch.where(present[..., None], t, junk).requires_grad_() for t in (own.mean, own.logvar))
        q = fuse(Gaussian(mean, logvar), present)
        z = q.rsample(3, torch.Generator().manual_seed(1))
        value = q.log_prob(z).sum() + q.mean.square().sum() + q.variance.sum()
        value.backward()
        assert mean.grad is not None
        assert logvar.grad is not None
        found.append((value.detach(), mean.grad, logvar.grad))
    for clean, dirty in zip(*found, strict=True):
        torch.testing.assert_close(dirty, clean)


@EVERY
def test_of_private_dimensions_nothing_is_known_without_their_modality(fuse) -> None:
    speaks = torch.tensor([[True, True], [True, False], [True, False]])  # dimension 1 belongs to the first
    present = torch.tensor([[False, True], [True, True], [True, False]])[..., None] & speaks[:, None]
    q = fuse(drawn(3, 2, 2), present)
    assert (q.mean[0, 1].item(), q.variance[0, 1].item()) == (0, 1)
    assert q.mean[1, 1].item() != 0


@FIXED
def test_private_dimensions_take_all_that_is_known_about_them(fuse) -> None:
    """Dimension 0 is shared; 1 belongs to the first modality, 2 to the second. Row 1 lacks the second modality."""
    own = drawn(2, 2, 3)
    speaks = torch.tensor([[True, True, False], [True, False, True]])
    present = torch.tensor([[True, True], [True, False]])[..., None] & speaks[:, None]
    q: Posterior = fuse(own, present)
    alone = fuse if fuse in (poe, mopoe) else poe_without_base  # which says what one expert is worth
    shared = fuse(Gaussian(own.mean[..., :1], own.logvar[..., :1]), present[..., 0])
    torch.testing.assert_close(q.mean[:, :1], shared.mean)
    torch.testing.assert_close(q.variance[:, :1], shared.variance)
    for dimension, m in ((1, 0), (2, 1)):
        one = Gaussian(own.mean[m : m + 1, :, dimension, None], own.logvar[m : m + 1, :, dimension, None])
        expected = alone(one, present[m : m + 1, :, dimension])
        torch.testing.assert_close(q.mean[:, dimension, None], expected.mean)
        torch.testing.assert_close(q.variance[:, dimension, None], expected.variance)
    if isinstance(q, GaussianMixture):  # every part that is there knows as much of them
        there = q.log_weights > -torch.inf
        torch.testing.assert_close(q.parts.mean[..., 1][there], q.mean[:, 1].expand(there.shape)[there])


# One encoding, every subset


def test_experts_and_who_is_there() -> None:
    full = ppca_batch(3)
    full["two"] = full["two"].where(torch.tensor([True, False, True]))
    encoded = ppca().encode(full)
    assert encoded.here("two").tolist() == [True, False, True]
    assert encoded.several.tolist() == [True, False, True]
    assert encoded.expert("two").variance[1].tolist() == [1, 1]
    without = ppca().encode(full, ["one"])
    assert not without.here("two").any()
    torch.testing.assert_close(without.posterior().mean, encoded.posterior("one").mean)


def test_encodings_join_row_by_row() -> None:
    model, full = ppca(), ppca_batch(4)
    full["one"] = full["one"].where(torch.tensor([True, False, False, True]))
    pieces = [model.encode({name: x[rows] for name, x in full.items()}) for rows in (slice(0, 1), slice(1, 4))]
    joined, whole = Encoded.join(pieces), model.encode(full)
    torch.testing.assert_close(joined.posterior().mean, whole.posterior().mean)
    assert torch.equal(joined.present, whole.present)


# What is learnt


@pytest.mark.parametrize("name", ["generalised-poe", "joint"])
def test_learnt_fusions_start_as_the_product_of_experts(name: str) -> None:
    own = drawn(3, 4, 2)
    present = torch.tensor([[True, True, False, False], [True, False, True, False], [True, True, True, False]])
    product, start = poe(own, present), FUSIONS[name](3, 2).double()(own, present)
    torch.testing.assert_close(start.mean, product.mean)
    torch.testing.assert_close(start.variance, product.variance)


def test_generalised_product_of_experts() -> None:
    fuse, own = GeneralisedPoE(2, 3).double(), drawn(2, 4, 3)
    fuse.log_power.data.normal_()
    q = fuse(own, torch.ones(2, 4).bool())
    power = fuse.log_power.exp()[:, None] / own.variance
    torch.testing.assert_close(q.variance, 1 / (1 + power.sum(0)))
    torch.testing.assert_close(q.mean, (power * own.mean).sum(0) / (1 + power.sum(0)))


def test_alone_a_modality_is_its_own_answer_to_the_joint_encoder() -> None:
    fuse, own = every_fusion()["joint"], drawn(3, 4, 2)
    q = fuse(own, torch.tensor([[True], [False], [False]]).expand(3, 4))
    assert torch.equal(q.mean, own.mean[0])
    torch.testing.assert_close(q.variance, own.variance[0])
    both = fuse(own, torch.tensor([[True], [True], [False]]).expand(3, 4))
    assert not torch.allclose(both.mean, poe(own, torch.tensor([[True], [True], [False]]).expand(3, 4)).mean)


@pytest.mark.parametrize("name", ["generalised-poe", "joint", "attention"])
def test_learnt_fusions_learn_the_posterior_that_they_are_shown(name: str) -> None:
    """One expert is wrong by a scale: what is learnt must beat the plain product on other rows."""
    torch.manual_seed(0)
    fuse = FUSIONS[name](2, 2)
    optimizer = torch.optim.Adam(fuse.parameters(), 0.05 if name == "generalised-poe" else 0.01)

    def loss(seed: int, fuse: Fusion) -> torch.Tensor:
        rng = torch.Generator().manual_seed(seed)
        z = torch.randn(256, 2, generator=rng)
        right, wrong = z + 0.5 * torch.randn(256, 2, generator=rng), 3 * torch.randn(256, 2, generator=rng)
        own = Gaussian(torch.stack([right, wrong]), torch.full((2, 256, 2), math.log(0.25)))
        return -fuse(own, torch.ones(2, 256).bool()).log_prob(z).mean()

    for step in range(200):
        optimizer.zero_grad()
        loss(step, fuse).backward()
        optimizer.step()
    best = Gaussian(torch.zeros(1), f64(0.2).float().log()).entropy().item() * 2  # of the exact posterior
    assert loss(1_000, fuse).item() < best + 0.3
    assert loss(1_000, poe).item() > best + 1


def test_above_four_modalities_training_draws_subsets_of_what_is_present() -> None:
    own, fuse = drawn(6, 50, 2), SampledMoPoE(8).double()
    present = torch.ones(6, 50).bool()
    present[0] = False
    present[:, 0] = False
    exact = mopoe(own, present)
    assert fuse.eval()(own, present).log_weights.shape == exact.log_weights.shape == (64, 50)
    torch.manual_seed(0)
    q = fuse.train()(own, present)
    there = q.log_weights > -torch.inf
    assert there.sum(0)[1:].max() <= 8
    full = poe(own, present)
    assert there[1, 1:].all()
    torch.testing.assert_close(q.parts.mean[1, 1:], full.mean[1:])  # all that is present is always among them
    assert (q.mean[0] == 0).all()
    known = exact.parts.mean[:, 1:, 0].T  # every part is one of the exact mixture's
    for i in range(49):
        mine = q.parts.mean[:, 1 + i, 0][there[:, 1 + i]]
        assert ((mine[:, None] - known[i]).abs() < 1e-9).any(1).all()
    small = drawn(3, 5, 2)
    assert len(fuse(small, torch.ones(3, 5).bool()).log_weights) == 8  # few enough to count them all
    with pytest.raises(ValueError, match="at least 2, got 1"):
        SampledMoPoE(1)
