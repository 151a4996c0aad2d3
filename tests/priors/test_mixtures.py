import copy
import math

import numpy as np
import pytest
import torch
import torch.distributions as td
from scipy import stats

from mmseqvae.distributions.gaussian import Gaussian, GaussianMixture
from mmseqvae.model import MultimodalVAE
from mmseqvae.priors.base import StandardNormal, divergence
from mmseqvae.priors.mixtures import LearntMixture, Mixture, fit_mixture, merged
from mmseqvae.priors.resampling_baselines import Resampled, WordThenPosterior
from mmseqvae.priors.vamp import VampPrior
from mmseqvae.sequence import Sequence
from tests.exact import conjugate_batch, f64, ppca, ppca_batch

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
    assert len(fit_mixture(z.expand(4, *z.shape), 50).log_weights) == 4  # ten items each, not ten draws


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
    distribution = prior.mixture()
    torch.testing.assert_close(distribution.mean, torch.zeros(3).double(), atol=0.15, rtol=0)
    torch.testing.assert_close(distribution.variance, torch.ones(3).double(), atol=0.15, rtol=0)
    points = mixture().sample(500, seeded())
    learnt = LearntMixture(6, 2).double()
    optimizer = torch.optim.Adam(learnt.parameters(), 0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (-learnt.log_prob(points).mean()).backward()
        optimizer.step()
    assert learnt.log_prob(points).mean() > mixture().log_prob(points).mean() - 0.1
    assert abs(learnt.sample(5_000, seeded()).mean(0) - points.mean(0)).max() < 0.4


def test_idle_parts_of_a_learnt_mixture_go_to_the_heaviest_and_the_whole_stays_what_it_was() -> None:
    prior = LearntMixture(5, 2).double()
    with torch.no_grad():
        prior.logits.copy_(f64(0.6, 0.3, 0.1 - 2e-6, 1e-6, 1e-6).log())
        prior.means.copy_(torch.arange(10.0).view(5, 2))
        prior.logvars.copy_(f64([4, 1], [0.2, 0.1], [1, 1], [9, 9], [9, 9]).log())
    before, points = prior.mixture(), prior.sample(2000, seeded())
    density = prior.log_prob(points)
    assert prior.split() == 2
    torch.testing.assert_close(prior.logits.softmax(-1), f64(0.15, 0.3, 0.1, 0.3, 0.15), atol=3e-6, rtol=0)
    # first half a deviation of 2 apart, the lower one then again: its variance in that dimension is 3 by now
    torch.testing.assert_close(prior.means[3], f64(1, 1))
    torch.testing.assert_close(prior.means[:1], f64([-1 - 0.75**0.5, 1]), atol=1e-9, rtol=0)
    torch.testing.assert_close(prior.means[4:], f64([-1 + 0.75**0.5, 1]), atol=1e-9, rtol=0)
    torch.testing.assert_close(prior.means[1:3], torch.arange(2.0, 6).view(2, 2).double())
    after = prior.mixture()
    torch.testing.assert_close(after.mean, before.mean, atol=2e-5, rtol=0)
    torch.testing.assert_close(after.variance, before.variance, atol=2e-4, rtol=0)
    assert abs(prior.log_prob(points) - density).mean() < 0.05
    kept = prior.means.clone()
    assert prior.split() == 0
    assert kept.equal(prior.means)


def test_the_fit_starts_from_the_learnt_parts_too() -> None:
    """Clusters a hundred times as many in one dimension that k-means cannot tell from noise: the learnt prior can."""
    noise = torch.randn(4000, 3, generator=seeded(), dtype=torch.float64) * f64(0.01, 30, 30)
    z = noise + f64([-1, 0, 0], [1, 0, 0]).repeat(2000, 1)
    learnt = LearntMixture(3, 3).double()
    with torch.no_grad():
        learnt.logits.copy_(f64(0, -8, 0))
        learnt.means.copy_(f64([-0.9, 0, 0], [5, 5, 5], [0.9, 0, 0]))
        learnt.logvars.copy_(f64(0.1, 900, 900).log().expand(3, 3))
    alone, told = fit_mixture(z, 2), fit_mixture(z, 2, learnt=learnt)
    assert told.log_prob(z).mean() > alone.log_prob(z).mean() + 1
    torch.testing.assert_close(told.means[:, 0].sort().values, f64(-1, 1), atol=1e-2, rtol=0)
    for seed in range(5):  # of 30 weights, the rounded sum of some is above 1
        torch.manual_seed(seed)
        many = LearntMixture(30, 3).double()
        with torch.no_grad():
            many.logits.normal_()
        assert fit_mixture(z[:20], 1, learnt=many).log_weights.tolist() == [0]
    assert fit_mixture(z, 2, learnt=StandardNormal(3)).means.equal(alone.means)
    assert fit_mixture(z, 4, learnt=learnt).means.equal(fit_mixture(z, 4).means)  # fewer parts than wanted


def test_a_mixture_is_reduced_by_joining_what_is_alike() -> None:
    """Two pairs close together, one of them light, and one part that lies alone: it and the sums of moments stay."""
    weights, means = np.array([0.3, 0.05, 0.25, 0.15, 0.25]), np.array([[0, 0], [9, 9], [0.1, 0], [0, 5], [0.2, 5.0]])
    variances = np.array([[1, 1], [1, 2], [1.2, 1], [0.5, 1], [0.6, 1]])
    fewer = merged(weights, means, variances, 3)
    assert fewer[0].tolist() == pytest.approx([0.55, 0.05, 0.4])
    assert fewer[1][:, 1].tolist() == pytest.approx([0, 9, 5])
    assert fewer[1][0, 0] == pytest.approx(0.25 / 0.55 * 0.1)
    for (w, m, v), (w2, m2, v2) in [
        ((weights, means, variances), merged(weights, means, variances, n)) for n in (4, 1)
    ]:
        assert w2 @ m2 == pytest.approx(w @ m)
        assert w2 @ (v2 + m2**2) == pytest.approx(w @ (v + m**2))
    assert all(np.array_equal(a, b) for a, b in zip(merged(*fewer, 3), fewer, strict=True))


def test_split_parts_fit_what_the_one_part_could_not() -> None:
    points = torch.cat([mixture().sample(300, seeded()), 8 + mixture().sample(300, seeded())])
    fits = []
    for splits in (False, True):
        prior = LearntMixture(12, 2).double()
        with torch.no_grad():
            prior.logits.copy_(torch.tensor([0.0] + 11 * [-12.0]))
            prior.means.copy_(torch.zeros(12, 2))
        optimizer = torch.optim.Adam(prior.parameters(), 0.1)
        for step in range(120):
            if splits and step % 20 == 0:
                prior.split()
            optimizer.zero_grad()
            (-prior.log_prob(points).mean()).backward()
            optimizer.step()
        fits.append(float(prior.log_prob(points).mean().detach()))
    assert fits[1] > fits[0] + 0.5


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


# Pseudo-inputs


def vamp(names: tuple[str, ...] = ("one", "two")) -> tuple[MultimodalVAE, VampPrior]:
    """The exactly solvable model under the mean of three posteriors."""
    prior = VampPrior(3, 2)
    model = MultimodalVAE(dict(ppca().modalities), prior=prior).double()
    items = ppca_batch(3, names)
    prior.start({view: Sequence(x.values + f64(0, 1, 2)[:, None, None], x.lengths) for view, x in items.items()})
    return model, prior


def test_a_vamp_prior_is_the_mean_of_the_posteriors_of_its_pseudo_inputs() -> None:
    model, prior = vamp()
    z = torch.randn(4, 5, 2).double()
    q = model.posterior({view: x() for view, x in prior.views.items()})
    expected = q.log_prob(z[..., None, :]).exp().mean(-1).log()
    torch.testing.assert_close(prior.log_prob(z), expected)
    weight = model.modalities["one"].encoder.weight
    before = prior.log_prob(z).detach()
    weight.data *= 1.5  # encoded anew each time
    assert not torch.allclose(prior.log_prob(z), before)
    assert abs(prior.sample(5_000, seeded()).mean(0) - prior.mixture().mean).max() < 0.1
    assert str(prior) == "VampPrior of 3 pseudo-inputs learnt with the model"


def test_pseudo_frames_learn_and_travel_with_copies_and_weights() -> None:
    model, prior = vamp(("one",))
    prior.log_prob(torch.zeros(1, 2).double()).sum().backward()
    gradient = prior.views["one"].values.grad
    assert gradient is not None
    assert gradient.any()
    twin = copy.deepcopy(model)
    assert twin.learnt.encode.__self__ is twin
    empty = MultimodalVAE(dict(ppca().modalities), prior=VampPrior(3, 2)).double()
    empty.load_state_dict(model.state_dict())
    z = torch.randn(5, 2).double()
    torch.testing.assert_close(empty.learnt.log_prob(z), prior.log_prob(z))
    tokens = VampPrior(2, 2)
    tokens.start({"text": Sequence(torch.tensor([[1, 0], [2, 0]]), torch.tensor([2, 2]))})
    assert not list(tokens.parameters())


def test_a_vamp_prior_without_its_pseudo_inputs_says_so() -> None:
    with pytest.raises(RuntimeError, match="pseudo-inputs"):
        VampPrior(3, 2).log_prob(torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"needs 3 items of every view, got \{'x': 1\}"):
        VampPrior(3, 2).start(conjugate_batch(1))
    with pytest.raises(ValueError, match="at least 1 component, got 0"):
        VampPrior(0, 2)


# What part of a latent says about the rest


def test_unknown_dimensions_are_drawn_given_the_known_ones() -> None:
    """At 5 in the second dimension the second component is certain, whose first dimension is N(0, exp(-2))."""
    prior, n = mixture(), 4_000
    z, known = f64(99.0, 5.0).expand(n, 2), torch.tensor([False, True]).expand(n, 2)
    found = prior.complete(z, known, seeded())
    assert (found[:, 1] == 5).all()
    assert found[:, 0].mean().item() == pytest.approx(0, abs=0.02)
    assert found[:, 0].var().item() == pytest.approx(math.exp(-2), rel=0.1)
    # halfway, the posterior over components by quadrature
    z = f64(0.0, 2.0).expand(n, 2)
    weights = (WEIGHTS.log() + td.Normal(MEANS[:, 1], (LOGVARS[:, 1] / 2).exp()).log_prob(f64(2.0))).softmax(-1)
    expected = (weights * MEANS[:, 0]).sum().item()
    assert prior.complete(z, known, seeded())[:, 0].mean().item() == pytest.approx(expected, abs=0.15)
    nothing = torch.zeros(n, 2).bool()
    assert torch.equal(prior.complete(z, nothing, seeded()), prior.sample(n, seeded()))
    assert torch.equal(prior.complete(z, ~nothing, seeded()), z)
    standard = StandardNormal(2).double()
    half = standard.complete(z, known, seeded())
    assert (half[:, 1] == 2).all()
    torch.testing.assert_close(half[:, 0], standard.sample(n, seeded())[:, 0])


# Baselines


def test_resampled_posteriors_are_their_mean() -> None:
    q = Gaussian(MEANS, LOGVARS)
    prior, even = Resampled(q), Mixture(torch.zeros(3).double(), MEANS, LOGVARS)
    z = 4 * torch.randn(6, 5, 2).double()
    torch.testing.assert_close(prior.log_prob(z), even.log_prob(z))
    draws = prior.sample(20_000, seeded())
    torch.testing.assert_close(draws.mean(0), even.mixture().mean, atol=0.12, rtol=0)
    assert str(prior) == "resampled posteriors of training items (3)"
    many = Resampled(Gaussian(torch.randn(600, 2).double(), torch.zeros(600, 2).double()))  # in pieces
    expected = many.posteriors.log_prob(z[..., None, :]).exp().mean(-1).log()
    torch.testing.assert_close(many.log_prob(z), expected)


def test_a_word_then_its_posterior_may_be_mixtures() -> None:
    words = GaussianMixture(f64([0.5, 0.2], [0.5, 0.8]).log(), Gaussian(*torch.randn(2, 2, 2, 2).double()))
    prior, z = WordThenPosterior(words), torch.randn(7, 2).double()
    torch.testing.assert_close(prior.log_prob(z), words.log_prob(z[:, None]).exp().mean(-1).log())
    torch.testing.assert_close(prior.sample(30_000, seeded()).mean(0), words.mean.mean(0), atol=0.05, rtol=0)
    assert str(prior) == "a word, then its posterior (2)"


def test_the_number_of_components_is_chosen_by_validation() -> None:
    z, valid = mixture().sample(400, seeded()), mixture().sample(400, seeded(1))
    chosen = fit_mixture(z, 24, valid=valid)
    assert len(chosen.log_weights) == 3  # of 24, 12, 6, 3, 1
    assert chosen.log_prob(valid).mean() > fit_mixture(z, 24).log_prob(valid).mean()
