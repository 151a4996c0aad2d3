"""Flexible q(z | x_m): fitted to joint posteriors they are the posteriors given m, and they keep groups apart."""

import pytest
import torch
from torch import Tensor

from mmseqvae.distributions.gaussian import Gaussian
from mmseqvae.fusion import Encoded, poe
from mmseqvae.inference.unimodal_posteriors import KINDS, Conditional, SelectedDistribution, fit_conditional
from mmseqvae.model import MultimodalVAE
from mmseqvae.sequence import Sequence
from tests.exact import B, LinearDecoder, LinearEncoder, S, W, f64, ppca, ppca_batch

every_kind = pytest.mark.parametrize("kind", KINDS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn_from_the_model(n: int, seed: int) -> dict[str, Sequence]:
    rng = seeded(seed)
    z = torch.randn(n, 2, generator=rng, dtype=torch.float64)
    batch = {}
    for name in W:
        noise = torch.randn(n, len(B[name]), generator=rng, dtype=torch.float64) * S[name] ** 0.5
        batch[name] = Sequence((z @ W[name].T + B[name] + noise)[:, None], torch.ones(n, dtype=torch.long))
    return batch


@every_kind
def test_fitted_to_joint_posteriors_it_is_the_posterior_given_one(kind: str) -> None:
    """The exact model: the mean of q(z | x1, x2) over p(x2 | x1) is p(z | x1), N((.16, .32), (.2, .2)) for x1."""
    model = ppca()
    model.modalities["one"].encoder.requires_grad_(False)
    before = model.posterior(ppca_batch(), ["one"])
    train, valid = (model.encode(drawn_from_the_model(n, seed)) for n, seed in ((3_000, 0), (500, 1)))
    reached = model.fit_conditional("one", train, valid, kind=kind, components=1)
    exact = -model.encode(drawn_from_the_model(500, 1), ["one"]).posterior().entropy().mean()
    assert reached == pytest.approx(float(exact), abs=0.1)  # E log q(z | x1) is minus the entropy, at best
    q = model.posterior(ppca_batch(), ["one"])
    torch.testing.assert_close(q.mean, before.mean, atol=0.1, rtol=0)
    torch.testing.assert_close(q.variance, before.variance, atol=0.06, rtol=0)


def words_and_voices(n: int, seed: int) -> tuple[Encoded, Tensor]:
    """A word (sign of the first dimension) said in two voices, at -3 and 3 in the second; who said it, [N]."""
    rng = seeded(seed)
    word, voice = (torch.where(torch.rand(n, generator=rng) < 0.5, -1.0, 1.0) for _ in range(2))
    sound = Gaussian(torch.stack([2 * word, 3 * voice], 1), torch.full((n, 2), -4.0))
    text = Gaussian(torch.stack([2 * word, 0 * word], 1), torch.zeros(n, 2))
    experts = Gaussian(torch.stack([text.mean, sound.mean]), torch.stack([text.logvar, sound.logvar]))
    return Encoded(experts, torch.ones(2, n).bool(), ("text", "audio"), poe, torch.zeros(n, 2)), word


@every_kind
def test_the_hole_between_voices_stays_empty(kind: str) -> None:
    train, word = words_and_voices(600, 0)
    conditional, _ = fit_conditional("text", train, kind=kind, components=4)
    distribution = conditional(train.expert("text"))
    z = distribution.rsample(50, seeded())
    assert (z[..., 0].sign() == word).float().mean() > 0.99
    assert (z[..., 1].abs() > 1.5).float().mean() > 0.97  # a Gaussian of the same moments: 0.6
    high = (z[..., 1] > 0).float().mean(0)
    assert 0.3 < high.mean() < 0.7
    assert (distribution.variance[:, 1] > 6).all()


def model() -> MultimodalVAE:
    """The exact model with a conditional of "one" that has nothing to do with its expert."""
    made = ppca()
    conditional = Conditional(2, "mixture", 2).double()
    conditional.net.start.data[:] = f64(0, 0, 5, 5, 7, 7, -2, -2, -2, -2)
    for weight in conditional.net.move.parameters():
        weight.data.zero_()
    made.conditionals["one"] = conditional
    return made


def test_it_answers_where_its_modality_is_alone_and_nowhere_else() -> None:
    made, full = model(), ppca_batch(4)
    full["two"] = full["two"].where(torch.tensor([True, False, True, False]))
    full["one"] = full["one"].where(torch.tensor([True, True, False, False]))
    q, fused = made.posterior(full), made.encode(full).posterior()
    assert isinstance(q, SelectedDistribution)
    torch.testing.assert_close(q.mean[[0, 2, 3]], fused.mean[[0, 2, 3]])
    torch.testing.assert_close(q.mean[1], f64(6, 6))
    torch.testing.assert_close(q.variance[1], f64(1, 1) + f64(-2.0).exp())
    z = q.rsample(3_000, seeded())
    torch.testing.assert_close(z.mean(0), q.mean, atol=0.08, rtol=0)
    torch.testing.assert_close(q.log_prob(z)[:, [0, 2, 3]], fused.log_prob(z)[:, [0, 2, 3]])
    alone = made.posterior({"one": full["one"][:2]})
    torch.testing.assert_close(q.log_prob(z)[:, 1], alone.log_prob(z[:, :2])[:, 1])
    torch.testing.assert_close(q[1:].log_prob(z[:, 1:]), q.log_prob(z)[:, 1:])
    plain = made.posterior(ppca_batch(2))
    assert isinstance(plain, Gaussian)  # nobody is alone


def test_it_is_drawn_from_and_counts_in_likelihoods() -> None:
    made = model()
    made.modalities["two"].decoder = LinearDecoder(torch.eye(2).double(), f64(0, 0), 1.0)
    drawn = made.generate(ppca_batch(3), "two", "one", samples=10, generator=seeded())["two"].values
    assert (drawn > 2).all()
    weights = made.log_weights(ppca_batch(), "one", 4_000, generator=seeded())
    assert weights.var() > 1  # the proposal is poor now, yet its mean weight is that of any other


@every_kind
def test_without_noise_it_is_drawn_at_the_middle_of_a_part(kind: str) -> None:
    """Alone, and beside rows that something else answers; a flow bends the middle of its parts, too."""
    made = model()
    conditional = Conditional(2, kind, 2).double()
    conditional.net.load_state_dict(made.conditionals["one"].net.state_dict(), strict=False)
    made.conditionals["one"] = conditional
    full = ppca_batch(60)
    alone = made.posterior({"one": full["one"]})
    z = alone.rsample(generator=seeded(), noise=0.0)
    assert len(z.round(decimals=6).unique(dim=0)) == 2
    assert len(alone.rsample(generator=seeded()).unique(dim=0)) == 60
    full["two"] = full["two"].where(torch.arange(60) < 30)
    q = made.posterior(full)
    assert isinstance(q, SelectedDistribution)
    z = q.rsample(generator=seeded(), noise=0.0)
    torch.testing.assert_close(z[:30], q.mean[:30])
    assert len(z[30:].round(decimals=6).unique(dim=0)) == conditional.components


def test_of_private_dimensions_a_conditional_speaks_too() -> None:
    part = {n: (LinearEncoder(W[n], B[n], S[n]), LinearDecoder(W[n], B[n], S[n])) for n in W}
    from mmseqvae.modality import Modality

    made = MultimodalVAE({n: Modality(*pair, private=1) for n, pair in part.items()}).double()
    encoded = made.encode(ppca_batch(2), ["one"])
    assert not made.known(encoded).all()
    made.conditionals["one"] = Conditional(3).double()
    assert made.known(encoded).all()


def test_bad_requests_are_errors(monkeypatch) -> None:
    monkeypatch.setattr("mmseqvae.priors.flows.EPOCHS", 3)
    train, _ = words_and_voices(40, 0)
    with pytest.raises(ValueError, match="kind must be one of mixture, flow, got 'spline'"):
        fit_conditional("text", train, kind="spline")
    alone, _ = words_and_voices(40, 0)
    alone.present[1, 5:] = False
    with pytest.raises(ValueError, match="have text and something else: got 5, need 20"):
        fit_conditional("text", alone, train)
    repeat = [fit_conditional("text", train, seed=3)[1] for _ in range(2)]
    assert repeat[0] == repeat[1]
