import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.decoding import FrameSampling, TokenSampling
from mmseqvae.distributions.gaussian import Gaussian
from mmseqvae.distributions.likelihoods import Normal
from mmseqvae.encoders import FrameEncoder, TokenEncoder
from mmseqvae.fusion import moe
from mmseqvae.inference.importance_sampling import effective_draws, log_mean_exp
from mmseqvae.modality import Covariate, Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.objectives import elbo
from mmseqvae.priors.mixtures import LearntMixture, Mixture
from mmseqvae.sequence import Sequence
from tests.exact import (
    CONJUGATE_LOG_P,
    LOG_P,
    LOG_P_TWO_GIVEN_ONE,
    LinearDecoder,
    LinearEncoder,
    conjugate,
    conjugate_at_prior,
    conjugate_batch,
    f64,
    gauss_hermite,
    nodes_instead_of_noise,
    ppca,
    ppca_batch,
)

V, C, D = 5, 2, 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Echo(nn.Module):
    """A decoder that writes the latent itself, one frame, so that tests see which latent was decoded."""

    latent = D
    writes = "frames"

    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        return -(z - x.values[:, 0]).abs().sum(-1, keepdim=True)

    def sample(self, z: Tensor, how: FrameSampling, generator: torch.Generator | None = None) -> Sequence:
        return Sequence(z[:, None], torch.ones(len(z), dtype=torch.long))


def build(**more: Modality) -> MultimodalVAE:
    torch.manual_seed(0)
    decoder = FrameDecoder(Normal(C), D, max_steps=9, reduction=2, hidden=6, inputs=4)
    modalities = {
        "text": Modality(
            TokenEncoder(V, D, embedding=4, hidden=6), TokenDecoder(V, D, end=0, max_steps=6, embedding=4, hidden=6)
        ),
        "audio": Modality(FrameEncoder(C, D, hidden=6), decoder),
    }
    return MultimodalVAE(modalities | more).double().eval()


def batch(rows: int = 3) -> dict[str, Sequence]:
    rng = seeded(7)
    text = torch.randint(1, V, (rows, 5), generator=rng)
    return {
        "text": Sequence(text, torch.arange(rows) % 4 + 1),
        "audio": Sequence(torch.randn(rows, 8, C, generator=rng, dtype=torch.float64), torch.arange(rows) % 5 + 3),
    }


def without(full: dict[str, Sequence], name: str, rows: list[int]) -> dict[str, Sequence]:
    keep = torch.ones(len(full[name]), dtype=torch.bool)
    keep[rows] = False
    return full | {name: full[name].where(keep)}


def equal(a: Gaussian, b: Gaussian) -> None:
    torch.testing.assert_close(a.mean, b.mean)
    torch.testing.assert_close(a.logvar, b.logvar)


# Exact likelihoods


@pytest.mark.parametrize("draws", [1, 7])
@pytest.mark.parametrize("names", LOG_P)
def test_with_the_exact_posterior_log_prob_is_exact_with_zero_variance(names: tuple[str, ...], draws: int) -> None:
    model = ppca()
    weights = model.log_weights(ppca_batch(3), names, draws)
    assert weights.shape == (draws, 3)
    assert weights.flatten().tolist() == pytest.approx([LOG_P[names]] * 3 * draws, abs=1e-12)
    assert model.log_prob(ppca_batch(), names, draws=draws).item() == pytest.approx(LOG_P[names], abs=1e-12)
    missing_instead = model.log_prob(ppca_batch(names=names), draws=draws)
    assert missing_instead.item() == pytest.approx(LOG_P[names], abs=1e-12)


def test_with_the_exact_posterior_the_conditional_is_exact() -> None:
    found = ppca().log_prob(ppca_batch(), want="two", given=["one"], draws=3)
    assert found.item() == pytest.approx(LOG_P_TWO_GIVEN_ONE, abs=1e-12)
    by_default = ppca().bound_difference(ppca_batch(), None, ["one"], draws=2)
    assert by_default.item() == pytest.approx(LOG_P_TWO_GIVEN_ONE, abs=1e-12)


def importance_bound(model: MultimodalVAE, draws: int, points: int, monkeypatch) -> float:
    """E log mean_k w_k by quadrature: a row for every combination of nodes of the K draws."""
    nodes, weights = gauss_hermite(points, draws)
    monkeypatch.setattr("mmseqvae.inference.importance_sampling.ROWS", 10**9)  # all draws at once
    nodes_instead_of_noise(monkeypatch, nodes.T[..., None])
    return float((weights * model.log_prob(conjugate_batch(len(nodes)), draws=draws)).sum())


@pytest.mark.parametrize(
    ("model", "elbo", "two_draws"),
    [
        (conjugate_at_prior(), -2.5723649429247, -1.8271032610360984),
        (conjugate(0.5, 0.5), -1.5439385332046727, -1.4880876054831786),
        (conjugate(2 / 3, 1 / 3), CONJUGATE_LOG_P, CONJUGATE_LOG_P),
    ],
    ids=["prior", "near", "posterior"],
)
def test_known_bounds_of_the_conjugate_model(model, elbo: float, two_draws: float, monkeypatch) -> None:
    bounds = [importance_bound(model, draws, points, monkeypatch) for draws, points in ((1, 8), (2, 120), (3, 40))]
    assert bounds[0] == pytest.approx(elbo, abs=1e-12)
    assert bounds[1] == pytest.approx(two_draws, abs=1e-6)
    if elbo == CONJUGATE_LOG_P:
        assert bounds == pytest.approx([CONJUGATE_LOG_P] * 3, abs=1e-12)
    else:
        assert bounds[0] < bounds[1] < bounds[2] < CONJUGATE_LOG_P


def test_a_large_importance_sample_reaches_the_likelihood() -> None:
    found = conjugate(0.5, 0.5).log_prob(conjugate_batch(1), draws=100_000, generator=seeded())
    assert found.item() == pytest.approx(CONJUGATE_LOG_P, abs=0.01)


def test_another_prior_is_weighed_in() -> None:
    """x | z ~ N(z, 0.5) under a mixture prior: log p(x) is a mixture of N(mean_k, variance_k + 0.5)."""
    weights, means, variances = f64(0.3, 0.7), f64([0.5], [-1]), f64([0.2], [1])
    model = conjugate(0.5, 0.5)
    model.fitted = Mixture(weights.log(), means, variances.log())
    distributions = Gaussian(means, (variances + 0.5).log())
    exact = (weights.log() + distributions.log_prob(f64(1))).logsumexp(0).item()
    by_default = model.log_prob(conjugate_batch(1), draws=100_000, generator=seeded())
    assert by_default.item() == pytest.approx(exact, abs=0.01)
    standard = model.log_prob(conjugate_batch(1), draws=100_000, prior=model.standard, generator=seeded())
    assert standard.item() == pytest.approx(CONJUGATE_LOG_P, abs=0.01)


def test_draws_in_pieces_are_all_counted(monkeypatch) -> None:
    model, rows = conjugate(0.5, 0.5), conjugate_batch(2)
    monkeypatch.setattr("mmseqvae.inference.importance_sampling.ROWS", 6)
    weights = model.log_weights(rows, draws=10, generator=seeded())
    assert weights.shape == (10, 2)
    assert len(weights.unique()) == 20
    torch.testing.assert_close(model.log_prob(rows, draws=10, generator=seeded()), log_mean_exp(weights))


def test_nothing_observed_has_probability_one() -> None:
    model = build()
    nothing = without(without(batch(), "text", [0, 1, 2]), "audio", [0, 1, 2])
    for prior in (None, LearntMixture(4, D).double()):  # which the proposal of such a row does not look like
        assert model.log_prob(nothing, draws=4, prior=prior).abs().max() < 1e-12
        assert model.log_prob(nothing, given=["text"], draws=4, prior=prior).abs().max() < 1e-12
        assert model.log_prob(batch(), draws=4, prior=prior).abs().min() > 1
    partly = without(batch(), "text", [1])
    alone = model.log_prob({"audio": batch()["audio"]}, "audio", draws=5, generator=seeded())
    together = model.log_prob(partly, draws=5, generator=seeded())
    assert together[1].item() == pytest.approx(alone[1].item())


def test_log_mean_exp_and_effective_draws() -> None:
    weights = f64([1, 1, -1000], [1, 3, 0], [1, 1, -1000]).log_softmax(0)
    torch.testing.assert_close(log_mean_exp(weights), weights.exp().mean(0).log())
    w = weights.exp()
    torch.testing.assert_close(effective_draws(weights), w.sum(0) ** 2 / (w**2).sum(0))
    assert effective_draws(weights)[[0, 2]].tolist() == pytest.approx([3, 1])
    assert effective_draws(weights - 5000).tolist() == pytest.approx(effective_draws(weights).tolist())


# Posterior


@pytest.fixture
def calls() -> Iterator[Callable[[MultimodalVAE], dict[str, int]]]:
    """Count how often each encoder and each decoder of a model runs."""

    def watch(model: MultimodalVAE) -> dict[str, int]:
        counts: dict[str, int] = {}

        def counting(key: str, function: Callable) -> Callable:
            def counted(*args, **kwargs):
                counts[key] = counts.get(key, 0) + 1
                return function(*args, **kwargs)

            return counted

        for name, modality in model.modalities.items():
            if modality.encoder is not None:
                modality.encoder.forward = counting(f"encode {name}", modality.encoder.forward)
            if modality.decoder is not None:
                modality.decoder.log_prob = counting(f"score {name}", modality.decoder.log_prob)
        return counts

    return watch


def test_every_part_runs_once(calls) -> None:
    model = build()
    counts = calls(model)
    encoded = model.encode(batch())
    for given in (None, [], ["text"], ["audio"], ["text", "audio"]):
        encoded.posterior(given)
    assert counts == {"encode text": 1, "encode audio": 1}
    model.log_prob(batch(), draws=20)
    assert counts == {"encode text": 2, "encode audio": 2, "score text": 1, "score audio": 1}
    model.posterior(batch(), given=["text"])
    assert counts["encode audio"] == 2


def test_subsets_of_one_encoding_are_posteriors() -> None:
    model, full = build(), without(batch(), "text", [1])
    encoded = model.encode(full)
    for given in (["text"], ["audio"], ["audio", "text"], []):
        equal(encoded.posterior(given), model.posterior(full, given))
    equal(encoded.posterior(), model.posterior(full))
    equal(encoded.posterior("audio"), model.posterior(full, "audio"))  # one name
    equal(encoded.posterior(name for name in ("text", "audio")), model.posterior(full))  # any iterable
    equal(encoded.posterior([]), Gaussian.standard_like(encoded.like))


def test_an_absent_view_a_missing_row_and_one_that_is_not_given_are_the_same() -> None:
    model, full = build(), batch()
    not_given = model.posterior(full, given=["audio"])
    equal(model.posterior({"audio": full["audio"]}), not_given)
    equal(model.posterior(without(full, "text", [0, 1, 2])), not_given)
    some = model.posterior(without(full, "text", [1]))
    torch.testing.assert_close(some.mean[1], not_given.mean[1])
    torch.testing.assert_close(some.mean[[0, 2]], model.posterior(full).mean[[0, 2]])
    assert not torch.allclose(some.mean[0], not_given.mean[0])


def test_likelihoods_of_missing_rows_are_zero_and_of_absent_views_left_out() -> None:
    model, z = build(), torch.randn(4, 3, D, dtype=torch.float64)
    full = model.log_likelihood(z, batch())
    some = model.log_likelihood(z, without(batch(), "text", [1]))
    assert (full["text"] < 0).all()
    assert some["text"][:, 1].tolist() == [0] * 4
    torch.testing.assert_close(some["text"][:, [0, 2]], full["text"][:, [0, 2]])
    assert set(model.log_likelihood(z, {"audio": batch()["audio"]})) == {"audio"}
    assert set(model.log_likelihood(z, batch(), "text")) == {"text"}


def test_views_may_differ_between_reading_and_writing() -> None:
    part = Modality(
        FrameEncoder(4, D), FrameDecoder(Normal(C), D, max_steps=9, hidden=6, inputs=4), reads="features", writes="mel"
    )
    model = build(speech=part)
    features, mel = torch.randn(3, 6, 4).double(), torch.randn(3, 8, C).double()
    both = {"features": Sequence(features, torch.tensor([6, 4, 2])), "mel": Sequence(mel, torch.tensor([8, 5, 3]))}
    z = model.posterior(both).mean
    changed = both | {"mel": Sequence(mel + 1, both["mel"].lengths)}
    torch.testing.assert_close(model.posterior(changed).mean, z)
    assert not torch.allclose(model.log_likelihood(z, changed)["speech"], model.log_likelihood(z, both)["speech"])
    changed = both | {"features": Sequence(features + 1, both["features"].lengths)}
    assert not torch.allclose(model.posterior(changed).mean, z)
    torch.testing.assert_close(model.log_likelihood(z, changed)["speech"], model.log_likelihood(z, both)["speech"])
    drawn = model.generate({"features": both["features"]}, want="speech", given="speech")
    assert set(drawn) == {"speech"}


def test_modalities_that_only_read_or_only_write() -> None:
    model = build(
        hint=Modality(FrameEncoder(C, D)), label=Modality(None, TokenDecoder(4, D, end=0, max_steps=2, hidden=6))
    )
    assert model.readable == ["text", "audio", "hint"]
    assert model.writable == ["text", "audio", "label"]
    full = batch() | {"hint": batch()["audio"], "label": Sequence(torch.tensor([[1, 0]] * 3), torch.tensor([2] * 3))}
    assert not torch.allclose(model.posterior(full).mean, model.posterior(full, ["text", "audio"]).mean)
    assert set(model.log_likelihood(torch.zeros(3, D).double(), full)) == {"text", "audio", "label"}
    assert model.log_prob(full, "label", draws=3).isfinite().all()
    assert set(model.generate({"hint": full["hint"]})) == {"text", "audio", "label"}
    with pytest.raises(ValueError, match=r"want names \['hint'\]"):
        model.generate(full, want=["hint"])
    with pytest.raises(ValueError, match=r"given names \['label'\]"):
        model.generate(full, given=["label"])


@pytest.mark.parametrize("missing", [[], [1], [0, 2], [0, 1, 2]])
def test_encoders_and_decoders_run_on_the_rows_that_are_there_only(missing: list[int], monkeypatch) -> None:
    model, z = build(), torch.randn(4, 3, D, dtype=torch.float64)
    seen: dict[str, list[int]] = {"encoder": [], "decoder": []}
    text = model.modality("text")
    read, score = text.encoder.forward, text.decoder.log_prob
    monkeypatch.setattr(text.encoder, "forward", lambda x: seen["encoder"].append(len(x)) or read(x))
    monkeypatch.setattr(text.decoder, "log_prob", lambda z, x: seen["decoder"].append(len(x)) or score(z, x))
    some = without(batch(), "text", missing)
    expert, nats = model.encode(some).expert("text"), model.log_likelihood(z, some)["text"]
    there = [i for i in range(3) if i not in missing]
    assert seen == {"encoder": [len(there)] * bool(there), "decoder": [len(there)] * bool(there)}
    full = model.encode(batch()).expert("text")
    torch.testing.assert_close(expert.mean[there], full.mean[there])
    torch.testing.assert_close(expert.logvar[there], full.logvar[there])
    torch.testing.assert_close(nats[:, there], model.log_likelihood(z, batch())["text"][:, there])
    assert not nats[:, missing].any()
    (expert.mean.sum() + nats.sum()).backward()
    for name, weight in text.named_parameters():
        if "to_latent" in name or "decoder" in name:
            assert weight.grad is not None, name
            assert bool(weight.grad.any()) == bool(there) or "to_state" in name, name


# Private latents


def with_private() -> tuple[MultimodalVAE, dict[str, Sequence], Tensor, Tensor, Tensor]:
    """Linear modalities whose second latent dimension is their own; the model, x, and x ~ N(bias, W W' + noise)."""
    weights = {"one": f64([1, 1], [1, -1], [0, 0]), "two": f64([2, 0], [0, 0.5])}
    bias, noise = {"one": f64(0.1, -0.2, 0.3), "two": f64(0, 1)}, {"one": 0.5, "two": 2.0}
    model = MultimodalVAE(
        {
            n: Modality(LinearEncoder(w, bias[n], noise[n]), LinearDecoder(w, bias[n], noise[n]), private=1)
            for n, w in weights.items()
        }
    ).double()
    zero = torch.zeros(3, 1).double()
    whole = torch.cat(
        [torch.cat([weights["one"], zero], 1), torch.cat([weights["two"][:, :1], zero[:2], weights["two"][:, 1:]], 1)]
    )
    spread = torch.cat([torch.full((3,), 0.5), torch.full((2,), 2.0)]).double()
    return model, ppca_batch(2), torch.cat([bias["one"], bias["two"]]), whole, spread


def test_with_private_latents_the_exact_posterior_is_still_a_product() -> None:
    model, x, bias, whole, spread = with_private()
    values = torch.cat([x["one"].values[0, 0], x["two"].values[0, 0]])
    for names, rows in ((["one", "two"], slice(0, 5)), (["one"], slice(0, 3)), (["two"], slice(3, 5))):
        w, distribution = whole[rows], torch.distributions.MultivariateNormal
        precision = torch.eye(3).double() + w.T @ (w / spread[rows, None])
        q = model.posterior(x, names)
        mean = torch.linalg.solve(precision, w.T @ ((values - bias)[rows] / spread[rows]))
        torch.testing.assert_close(q.mean[1], mean)
        torch.testing.assert_close(torch.diag(q.variance[1]), torch.linalg.inv(precision))
        log_p = distribution(bias[rows], w @ w.T + torch.diag(spread[rows])).log_prob(values[rows])
        torch.testing.assert_close(model.log_weights(x, names, 3), log_p.expand(3, 2))


def test_private_latents_have_their_place() -> None:
    model, x, *_ = with_private()
    assert (model.latent, model.shared) == (3, slice(0, 1))
    assert {name: model.columns(name).tolist() for name in model.readable} == {"one": [0, 1], "two": [0, 2]}
    z = torch.randn(2, 3).double()
    other = z + f64(0, 0, 1)
    before, after = model.log_likelihood(z, x), model.log_likelihood(other, x)
    assert torch.equal(before["one"], after["one"])
    assert not torch.allclose(before["two"], after["two"])
    encoded = model.encode(x, ["one"])
    assert encoded.known.tolist() == [[True, True, False]] * 2
    assert encoded.expert("two").mean.tolist() == [[0, 0, 0]] * 2
    alone = torch.nn.ModuleDict({"text": build().modality("text")})
    assert MultimodalVAE({"text": alone["text"]}).shared == slice(0, D)


def test_what_is_private_to_a_missing_modality_is_drawn_from_the_prior_given_the_rest() -> None:
    """Two far components: where the shared dimension says which, the private one must follow."""
    model, x, *_ = with_private()
    means = f64([-3, 0, -20], [3, 0, 20])
    model.fitted = Mixture(f64(0.5, 0.5).log(), means, torch.zeros(2, 3).double())
    x["one"] = Sequence(f64([[-3.0, -3.0, 0.0]], [[3.0, 3.0, 0.0]]), x["one"].lengths)
    drawn = model.generate(x, "two", "one", samples=200, generator=seeded())["two"].values[:, 0].reshape(2, 200, 2)
    assert (drawn[0, :, 1] < 0).all()  # 0.5 * -20 + 1
    assert (drawn[1, :, 1] > 0).all()


@pytest.mark.parametrize("private", [-1, D])
def test_something_must_be_shared(private: int) -> None:
    with pytest.raises(ValueError, match=f"of {D} dimensions, got {private}"):
        Modality(TokenEncoder(V, D), private=private)


# Covariates


def with_covariate(dropout: float = 0.0) -> tuple[MultimodalVAE, dict[str, Sequence], Tensor]:
    """x | z, c ~ N(z + shift_c, 0.5) with z ~ N(0, 1): shifts -0.5, 0.5 and, where c is unknown, 1.5."""
    decoder = LinearDecoder(f64([1, 1]), f64(0), 0.5)
    encoder = LinearEncoder(f64([1]), f64(0), 0.5)
    speaker = Covariate(2, 1, dropout)
    model = MultimodalVAE({"x": Modality(encoder, decoder, conditions=1)}, covariates={"speaker": speaker}).double()
    speaker.embedding.weight.data[:] = f64([-0.5], [0.5], [1.5])
    x = Sequence(torch.ones(3, 1, 1).double(), torch.ones(3, dtype=torch.long))
    who = Sequence(torch.tensor([[0], [1], [0]]), torch.tensor([1, 1, 0]))
    return model, {"x": x, "speaker": who}, f64(-0.5, 0.5, 1.5)


def test_covariates_condition_the_decoders_and_are_not_modelled() -> None:
    model, full, shift = with_covariate()
    exact = torch.distributions.Normal(shift, math.sqrt(1.5)).log_prob(f64(1))
    found = model.log_prob(full, draws=100_000, generator=seeded())
    torch.testing.assert_close(found, exact, atol=0.03, rtol=0)
    z = torch.randn(5, 3, 1).double()
    expected = torch.distributions.Normal(z[..., 0] + shift, math.sqrt(0.5)).log_prob(f64(1))
    torch.testing.assert_close(model.log_likelihood(z, full)["x"], expected)
    assert model.writable == ["x"]
    nobody = model.log_likelihood(z, {"x": full["x"]})["x"]
    torch.testing.assert_close(nobody[..., 2], expected[..., 2])
    missing = full | {"x": full["x"].where(torch.tensor([False, True, True]))}
    torch.testing.assert_close(model.log_likelihood(z, missing)["x"][:, 1:], expected[:, 1:])


def test_draws_are_conditioned_row_by_row() -> None:
    model, full, shift = with_covariate()
    drawn = model.generate(full, samples=2_000, generator=seeded())["x"].values.reshape(3, -1)
    torch.testing.assert_close(drawn.mean(1), shift + model.posterior(full).mean[:, 0], atol=0.1, rtol=0)
    drawn = model.sample(3, generator=seeded(), covariates={"speaker": full["speaker"]})["x"].values[:, 0, 0]
    torch.testing.assert_close(drawn, shift + model.prior.sample(3, seeded())[:, 0])
    torch.testing.assert_close(
        model.sample(3, generator=seeded())["x"].values[:, 0, 0], 1.5 + model.prior.sample(3, seeded())[:, 0]
    )
    ends = {"x": full["x"], "speaker": Sequence(torch.tensor([[1], [1], [1]]), torch.tensor([1, 1, 1]))}
    line = model.interpolate(full, ends, 3)["x"].values.reshape(3, 3)
    torch.testing.assert_close(line[0], f64(-0.5, 0, 0.5) + model.posterior(full).mean[0, 0])


def test_covariates_are_hidden_at_times_so_that_the_unknown_one_learns() -> None:
    model, full, shift = with_covariate(dropout=0.5)
    torch.manual_seed(0)
    seen = torch.stack([model.train().context(full, 3)[:, 0] for _ in range(200)])
    assert (seen[:, 2] == 1.5).all()
    share = (seen[:, :2] == 1.5).double().mean(0)
    torch.testing.assert_close(share, f64(0.5, 0.5), atol=0.12, rtol=0)
    assert torch.equal(model.eval().context(full, 3)[:, 0], shift)


def test_covariates_that_do_not_fit_are_errors() -> None:
    model, full, _ = with_covariate()
    with pytest.raises(ValueError, match=r"tokens 0..1, got \[0, 5\]"):
        model.log_prob(full | {"speaker": Sequence(torch.tensor([[5], [0], [0]]), torch.tensor([1, 1, 1]))})
    with pytest.raises(ValueError, match=r"2 wide in all: so must be `conditions` of \['text', 'audio'\]"):
        MultimodalVAE(dict(build().modalities), covariates={"speaker": Covariate(2, 2)})


# Drawing


def echoing() -> MultimodalVAE:
    return build(z=Modality(None, Echo()))


def test_generate_draws_from_the_posterior_row_by_row() -> None:
    model, full, n = echoing(), batch(), 4_000
    q = model.posterior(full, "text")
    z = model.generate(full, "z", "text", samples=n, generator=seeded())["z"].values[:, 0].reshape(3, n, D)
    torch.testing.assert_close(z.mean(1), q.mean, atol=0.06, rtol=0)
    torch.testing.assert_close(z.var(1), q.variance, atol=0, rtol=0.1)


def test_latent_noise_narrows_the_posterior_and_nothing_else() -> None:
    model, full = echoing(), batch()
    model.fit_prior(torch.randn(300, D, generator=seeded(), dtype=torch.float64) * 3 + 50, 2)
    partly = without(without(full, "text", [1]), "audio", [1])
    drawn = {noise: model.latents(partly, None, 2_000, seeded(), noise) for noise in (1.0, 0.5, 0.0)}
    q = model.posterior(partly)
    torch.testing.assert_close(drawn[0.0][:, [0, 2]], q.mean[[0, 2]].expand(2_000, 2, D))
    torch.testing.assert_close(drawn[0.5][:, 0].std(0), drawn[1.0][:, 0].std(0) / 2)
    assert (drawn[0.0][:, 1].std(0) > 2).all()  # nothing is known of this row: it is drawn from the prior
    z = model.generate(partly, "z", samples=3, generator=seeded(), latent_noise=0.0)["z"].values[:3, 0]
    torch.testing.assert_close(z, q.mean[0].expand(3, D))


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_latent_noise_out_of_range_is_an_error(noise: float) -> None:
    with pytest.raises(ValueError, match="latent_noise must be at least 0 and finite"):
        echoing().generate(batch(), "z", latent_noise=noise)


@pytest.mark.parametrize("number", [0, -1, 2.5])
def test_a_number_of_draws_is_a_whole_number(number: float) -> None:
    with pytest.raises(ValueError, match="n must be a whole number of at least 1"):
        echoing().sample(number)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="samples must be a whole number of at least 1"):
        echoing().generate(batch(), samples=number)  # type: ignore[arg-type]


def test_rows_with_nothing_observed_are_drawn_from_the_prior() -> None:
    model = echoing()
    model.fit_prior(torch.randn(300, D, generator=seeded(), dtype=torch.float64) * 0.01 + 50, 2)
    partly = without(without(batch(), "text", [1]), "audio", [1])
    z = model.generate(partly, "z", samples=5, generator=seeded())["z"].values[:, 0].reshape(3, 5, D)
    assert (z[1] > 45).all()
    assert (z[[0, 2]] < 20).all()
    z = model.generate(batch(), "z", given=[], generator=seeded())["z"].values
    assert (z > 45).all()  # all is observed, but nothing given
    model.fitted = None
    z = model.generate(partly, "z", samples=2_000, generator=seeded())["z"].values[:, 0].reshape(3, -1, D)[1]
    torch.testing.assert_close(z.mean(0), torch.zeros(D).double(), atol=0.08, rtol=0)
    torch.testing.assert_close(z.var(0), torch.ones(D).double(), atol=0, rtol=0.1)


def test_sample_uses_the_fitted_prior_unless_told_otherwise() -> None:
    model = echoing()
    assert model.prior is model.standard
    standard = model.sample(2_000, "z", generator=seeded())["z"].values
    assert abs(standard.mean()) < 0.1
    fitted = model.fit_prior(torch.randn(300, D, generator=seeded(), dtype=torch.float64) * 0.01 + 50, 2)
    assert model.prior is fitted
    assert (model.sample(20, "z", generator=seeded())["z"].values > 45).all()
    again = model.sample(2_000, "z", prior=model.standard, generator=seeded())["z"].values
    assert torch.equal(again, standard)


def test_a_learnt_prior_stands_between_the_standard_and_the_fitted_one() -> None:
    learnt = LearntMixture(3, D)
    model = MultimodalVAE(dict(build().modalities), prior=learnt).double()
    assert {"learnt.logits", "learnt.means", "learnt.logvars"} < set(model.state_dict())
    assert model.prior is model.training_prior is learnt
    fitted = model.fit_prior(torch.randn(50, D).double(), 2)
    assert (model.prior, model.training_prior) == (fitted, learnt)


def test_a_fusion_can_be_chosen() -> None:
    one, two = build(), MultimodalVAE(dict(build().modalities), moe).double()
    alone = [two.posterior(batch(), [name]) for name in ("text", "audio")]
    both, z = two.posterior(batch()), torch.randn(3, D).double()
    torch.testing.assert_close(both.log_prob(z).exp(), (alone[0].log_prob(z).exp() + alone[1].log_prob(z).exp()) / 2)
    assert not torch.allclose(one.posterior(batch()).mean, both.mean)
    assert two.log_prob(batch(), draws=3).isfinite().all()


def test_a_fitted_prior_is_part_of_the_weights() -> None:
    model = build()
    before = set(model.state_dict())
    model.fit_prior(torch.randn(50, D).double(), 2)
    assert {"fitted.log_weights", "fitted.means", "fitted.logvars"} == set(model.state_dict()) - before


def test_interpolation_is_a_line_between_the_posterior_means() -> None:
    model, a = echoing(), batch()
    b = {name: x[torch.tensor([2, 0, 1])] for name, x in a.items()}
    z = model.interpolate(a, b, 5, "z")["z"].values[:, 0].reshape(3, 5, D)
    torch.testing.assert_close(z[:, 0], model.posterior(a).mean)
    torch.testing.assert_close(z[:, -1], model.posterior(b).mean)
    torch.testing.assert_close(z[:, 1:] - z[:, :-1], ((z[:, -1] - z[:, 0]) / 4)[:, None].expand(-1, 4, -1))


def test_the_ends_of_an_interpolation_are_the_decoded_means() -> None:
    model, a = build(), batch()
    b = {name: x[torch.tensor([1, 2, 0])] for name, x in a.items()}
    how = {"audio": FrameSampling(noise=0.0)}
    line = model.interpolate(a, b, 3, decode=how)
    for side, start in ((a, 0), (b, 2)):
        ends = model.decode(model.posterior(side).mean, decode=how)
        for name in ("text", "audio"):
            for i, item in enumerate(ends[name].items()):
                torch.testing.assert_close(line[name].items()[3 * i + start], item)


def test_all_draws_repeat_with_a_generator() -> None:
    model, full = build(), batch()
    how = {"text": TokenSampling(temperature=1.0), "audio": FrameSampling(end="draw")}
    before = torch.get_rng_state()
    for draw in (
        lambda g: model.generate(full, samples=3, decode=how, generator=g),
        lambda g: model.sample(9, decode=how, generator=g),
        lambda g: model.interpolate(full, full, 3, decode=how, generator=g),
        lambda g: {"p": Sequence(model.log_prob(full, draws=5, generator=g)[:, None], torch.ones(3, dtype=torch.long))},
    ):
        a, b, c = (draw(seeded(seed)) for seed in (1, 1, 2))
        for name in a:
            assert torch.equal(a[name].values, b[name].values)
            assert torch.equal(a[name].lengths, b[name].lengths)
        assert any(a[n].values.shape != c[n].values.shape or not torch.equal(a[n].values, c[n].values) for n in a)
    assert torch.equal(before, torch.get_rng_state())


def test_drawing_leaves_no_gradient_and_scoring_does() -> None:
    model = build()
    assert not model.generate(batch())["audio"].values.requires_grad
    assert model.posterior(batch()).mean.requires_grad
    assert model.log_prob(batch(), draws=2).requires_grad


def test_how_a_modality_is_drawn_can_be_chosen() -> None:
    model, z = build(), torch.randn(40, D, generator=seeded(), dtype=torch.float64)
    default = model.decode(z)
    greedy = model.decode(z, decode={"text": TokenSampling()})
    assert torch.equal(default["text"].values, greedy["text"].values)
    short = model.decode(z, decode={"text": TokenSampling(max_steps=1), "audio": FrameSampling(max_steps=2)})
    assert short["text"].steps == 1
    assert short["audio"].steps <= 2
    a, b = (model.decode(z, "audio", {"audio": FrameSampling(noise=0.0)}, seeded(s))["audio"] for s in (1, 2))
    assert torch.equal(a.values, b.values)
    assert not torch.equal(
        model.decode(z, "audio", generator=seeded(1))["audio"].items()[0],
        model.decode(z, "audio", generator=seeded(2))["audio"].items()[0],
    )


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.posterior(batch(), given=["smell"]),
            r"given names \['smell'\]; this model has \['text',",
        ),
        (lambda m: m.generate(batch(), want="smell"), r"want names \['smell'\]"),
        (lambda m: m.sample(2, want=["text", "smell"]), r"want names \['smell'\]"),
        (lambda m: m.log_prob(batch(), want=["smell"]), r"want names \['smell'\]"),
        (lambda m: m.log_prob(batch(), want="text", given=["smell"]), r"given names \['smell'\]"),
        (lambda m: m.log_prob(batch(), want="text", given="text"), "the same modalities"),
        (lambda m: m.log_prob(batch(), draws=0), "draws must be at least 1, got 0"),
        (lambda m: m.sample(2, "text", decode={"audio": FrameSampling()}), r"decode names \['audio'\]"),
        (
            lambda m: m.sample(2, decode={"text": FrameSampling()}),
            "drawn with TokenSampling, got FrameSampling",
        ),
        (lambda m: m.interpolate(batch(), batch(), 1), "steps must be at least 2"),
        (lambda m: m.interpolate(batch(), batch(2), 3), "a has 3 rows and b has 2"),
        (lambda m: m.posterior({**batch(), "audio": batch(2)["audio"]}), "same number of rows"),
        (lambda m: m.posterior({}), "an empty batch"),
        (lambda m: Modality(), "an encoder, a decoder or both"),
        (lambda m: Modality(TokenEncoder(3, 2), TokenDecoder(3, 4, end=0, max_steps=3)), r"disagree .* \[2, 4\]"),
        (
            lambda m: MultimodalVAE({"a": Modality(TokenEncoder(3, 2)), "b": Modality(TokenEncoder(3, 4))}),
            "share one",
        ),
        (lambda m: MultimodalVAE({"a": Modality(None, TokenDecoder(3, 4, end=0, max_steps=3))}), "needs an encoder"),
    ],
)
def test_bad_calls_name_what_is_wrong(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(build())


def test_names_that_nothing_answers_to_are_refused() -> None:
    model = MultimodalVAE({"text": Modality(TokenEncoder(5, 2), TokenDecoder(5, 2, end=0, max_steps=4))})
    text = Sequence(torch.tensor([[1, 0]]), torch.tensor([2]))
    with pytest.raises(ValueError, match=r"the batch holds \['txt'\]"):
        model.generate({"txt": text})
    two = MultimodalVAE(
        {
            "text": Modality(TokenEncoder(5, 2), TokenDecoder(5, 2, end=0, max_steps=4)),
            "label": Modality(TokenEncoder(3, 2)),
        }
    )
    with pytest.raises(ValueError, match=r"given names \['label'\]"):
        two.posterior({"text": text}, given=["label"])
    with pytest.raises(ValueError, match=r"weights name \['txt'\]"):
        elbo(model, {"text": text}, weights={"txt": 20.0})
