"""Forecasts against a state-space model that is solved exactly, and completed sequences against teacher forcing."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.decoding import FrameSampling, TokenSampling
from mmseqvae.distributions.gaussian import Gaussian
from mmseqvae.distributions.likelihoods import Bernoulli, Laplace, Normal
from mmseqvae.encoders import FrameEncoder, TokenEncoder
from mmseqvae.inference.forecasting import Draws, _goes_on
from mmseqvae.modality import Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.sequence import Sequence
from tests.exact import FixedEncoder, gauss_hermite, nodes_instead_of_noise
from tests.pipeline.test_trained_model import untrained

# z_1 ~ N(0, 1), z_t = .9 z_{t-1} + N(0, .19), x_t = z_t + N(0, .5), three of which are known (a Kalman filter's values)
X, T = torch.tensor([0.5, -0.3, 1.2], dtype=torch.float64), 4
LOG_P, MEAN, VARIANCE = -3.9475799547521575, 0.47490986214209974, 0.8659437963944857


def path() -> Tensor:
    """W [T, T] with x = W u + noise, u ~ N(0, I), turned so that what the three known steps say of u is diagonal."""
    step = torch.arange(T)
    past = step[:, None] - step
    ladder = torch.where(past >= 0, torch.tensor(0.9, dtype=torch.float64) ** past, 0) * torch.tensor(
        [1, *[math.sqrt(0.19)] * 3], dtype=torch.float64
    )
    *_, turn = torch.linalg.svd(ladder[:3])
    weights = ladder @ turn.T
    weights[:3, 3] = 0  # but for rounding
    return weights


class PathEncoder(nn.Module):
    """The exact posterior of the path from its first three steps, as an expert beside N(0, I)."""

    latent = T
    writes = "frames"

    def forward(self, x: Sequence) -> Gaussian:
        assert x.steps == 3, "an encoder reads the prefix alone"
        weights = path()[:3]
        precision = ((weights**2).sum(0) / 0.5).clamp(min=1e-30)
        mean = x.values[:, :, 0] @ weights / 0.5 / precision
        return Gaussian(mean, -precision.log().expand_as(mean))


class PathDecoder(nn.Module):
    latent = T
    writes = "frames"

    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        mean = z @ path()[: x.steps].T
        return -0.5 * ((x.values[..., 0] - mean) ** 2 / 0.5 + math.log(math.pi))

    def complete(self, z: Tensor, x: Sequence, how: FrameSampling, generator: Any = None) -> Tensor:
        mean = z @ path()[: x.steps].T
        drawn = mean + how.noise * math.sqrt(0.5) * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        return torch.where(x.mask, x.values[..., 0], drawn)[..., None]


def state_space(encoder: nn.Module) -> MultimodalVAE:
    return MultimodalVAE({"x": Modality(encoder, PathDecoder())}).double()  # type: ignore[arg-type]


def prefix(rows: int = 1) -> dict[str, Sequence]:
    return {"x": Sequence(X[None, :, None].expand(rows, 3, 1), torch.full((rows,), 3))}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_the_posterior_of_a_prefix_is_exact() -> None:
    found = state_space(PathEncoder()).log_prob(prefix(2), draws=3)
    torch.testing.assert_close(found, torch.full((2,), LOG_P, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_forecast_is_the_kalman_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, weights = gauss_hermite(3, T)
    nodes_instead_of_noise(monkeypatch, nodes[:, None])
    (draws,) = state_space(PathEncoder()).forecast(prefix(), 1, len(nodes), decode={"x": FrameSampling(0)}).values()
    samples = draws.samples[:, 0, 0, 0]
    mean = (weights * samples).sum()
    assert mean.item() == pytest.approx(MEAN, abs=1e-12)
    assert (weights * (samples - mean) ** 2).sum().item() + 0.5 == pytest.approx(VARIANCE, abs=1e-12)


def test_draws_of_the_forecast_have_its_whole_law() -> None:
    """Frame noise and doubt about the state together, in moments and quantiles; 5 standard errors."""
    n = 200_000
    draws = state_space(PathEncoder()).forecast(prefix(), 1, n, generator=seeded())["x"]
    assert draws.samples.shape == (n, 1, 1, 1)
    assert draws.mean.item() == pytest.approx(MEAN, abs=5 * math.sqrt(VARIANCE / n))
    assert draws.samples.var().item() == pytest.approx(VARIANCE, abs=5 * VARIANCE * math.sqrt(2 / n))
    levels = [0.1, 0.5, 0.9]
    exact = stats.norm.ppf(levels, MEAN, math.sqrt(VARIANCE))
    np.testing.assert_allclose(draws.quantiles(levels)[:, 0, 0, 0], exact, atol=0.02)


def test_weighed_proposals_mend_an_encoder_that_knows_nothing() -> None:
    """A posterior that is all but the prior forecasts mean 0; weighed by the decoder, draws become exact."""

    class Ignorant(FixedEncoder):
        latent = T

        def forward(self, x: Sequence) -> Gaussian:
            return Gaussian(x.values.new_zeros(len(x), T), x.values.new_full((len(x), T), 12.0))

    model, n = state_space(Ignorant(0, 1)), 20_000
    plain = model.forecast(prefix(2), 1, n, generator=seeded())["x"]
    assert plain.mean.abs().max() < 5 / math.sqrt(n) * math.sqrt(1.5)
    assert plain.effective is None
    weighed = model.forecast(prefix(2), 1, n, proposals=20, generator=seeded())["x"]
    assert weighed.effective is not None
    assert ((weighed.effective > 5000) & (weighed.effective < 20 * n)).all()
    torch.testing.assert_close(weighed.mean.flatten(), torch.full((2,), MEAN).double(), atol=0.04, rtol=0)
    torch.testing.assert_close(weighed.samples.var(0).flatten(), torch.full((2,), VARIANCE).double(), atol=0.04, rtol=0)


def test_quantiles_are_those_of_numpy() -> None:
    samples = torch.randn(37, 2, 3, 1)
    levels = [0.0, 0.13, 0.5, 1.0]
    np.testing.assert_allclose(Draws(samples).quantiles(levels), np.quantile(samples, levels, 0), atol=1e-6)
    np.testing.assert_allclose(Draws(samples).quantiles(0.3), np.quantile(samples, 0.3, 0), atol=1e-6)
    assert torch.equal(Draws(samples[:1]).quantiles(0.7), samples[0])
    with pytest.raises(ValueError, match=r"quantiles must lie in \[0, 1\]"):
        Draws(samples).quantiles([0.1, 10])
    with pytest.raises(ValueError, match="tokens have neither"):
        _ = Draws(torch.zeros(2, 1, 3).long()).mean


# ------------------------------------------------------------------------------------------- the library's decoders

D, C = 3, 2


def frames(r: int, likelihood: Any = None, kind: str = "gru") -> FrameDecoder:
    made = FrameDecoder(likelihood or Normal(C), D, max_steps=9, reduction=r, hidden=6, inputs=4, kind=kind)
    return spread(made)


def spread(module: Any) -> Any:
    for parameter in module.parameters():
        parameter.data = 1.5 * parameter.data + 0.3 * torch.randn_like(parameter)
    return module.double().eval()


def batch(rows: int = 3, steps: int = 7) -> Sequence:
    observed = torch.rand(rows, steps) < 0.5
    return Sequence(torch.randn(rows, steps, C).double(), torch.tensor([7, 4, 5][:rows]), observed)


reductions = pytest.mark.parametrize("r", [1, 2, 3])


@reductions
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_completed_frames_are_the_modes_that_teacher_forcing_finds(r: int, kind: str) -> None:
    """At noise 0 each step that was not observed is the location given the completed past; the others are kept."""
    decoder, x, z = frames(r, kind=kind), batch(), torch.randn(3, D).double()
    with torch.no_grad():
        made = decoder.complete(z, x, FrameSampling(0))
        whole = Sequence(made, x.lengths)
        parameters = decoder.to_frames(decoder.hidden(z, whole)).unflatten(2, (r, -1)).flatten(1, 2)[:, : x.steps]
    location, _ = decoder.likelihood.split(parameters)  # type: ignore[operator]
    torch.testing.assert_close(made[x.mask], x.values[x.mask])
    drawn = x.valid & ~x.mask
    torch.testing.assert_close(made[drawn], location[drawn])


@reductions
def test_completing_nothing_but_the_start_is_sampling(r: int) -> None:
    decoder, z = frames(r), torch.randn(4, D).double()
    sampled = decoder.sample(z, FrameSampling(0))
    nothing = Sequence(torch.full((4, 9, C), torch.nan).double(), torch.full((4,), 9), torch.zeros(4, 9).bool())
    made = decoder.complete(z, nothing, FrameSampling(0))[:, : sampled.steps]
    torch.testing.assert_close(made[sampled.valid], sampled.values[sampled.valid])


@pytest.mark.parametrize("likelihood", [Laplace(C, "predicted"), Bernoulli(C)], ids=["laplace", "bernoulli"])
def test_alone_and_with_more_padding_it_is_the_same(likelihood: Any) -> None:
    decoder, x, z = frames(2, likelihood), batch(), torch.randn(3, D).double()
    together = decoder.complete(z, x, FrameSampling(0))
    longer = Sequence(
        torch.cat([x.values.masked_fill(~x.mask[..., None], torch.nan), torch.full((3, 2, C), torch.nan)], 1),
        x.lengths,
        torch.cat([x.mask, torch.ones(3, 2).bool()], 1),
    )
    padded = decoder.complete(z, longer, FrameSampling(0))
    for row, length in enumerate(x.lengths.tolist()):
        alone = decoder.complete(z[row : row + 1], x[row : row + 1], FrameSampling(0))
        torch.testing.assert_close(alone[0, :length], together[row, :length])
        torch.testing.assert_close(padded[row, :length], together[row, :length])


def tokens() -> TokenDecoder:
    return spread(TokenDecoder(4, D, end=0, max_steps=8, embedding=3, hidden=6))


def test_tokens_go_on_by_the_law_of_the_decoder() -> None:
    """All continuations of two tokens, counted in 100,000 draws; what ends stays ended."""
    decoder, z, n = tokens(), torch.randn(1, D).double(), 100_000
    start = Sequence(torch.tensor([[2, 3]]), torch.tensor([2]))
    ahead = start.extended(2)
    many = Sequence(ahead.values.expand(n, -1), ahead.lengths.expand(n), ahead.mask.expand(n, -1))
    made = decoder.complete(z.expand(n, -1), many, TokenSampling(temperature=1.0), seeded())
    assert (made[:, :2] == start.values).all()
    assert (made[made[:, 2] == 0][:, 3] == 0).all()
    counts = torch.bincount(4 * made[:, 2] + made[:, 3], minlength=16).double() / n
    with torch.no_grad():
        for a in range(4):
            for b in range(4):
                x = Sequence(torch.tensor([[2, 3, a, b]]), torch.tensor([3 if a == 0 else 4]))
                p = float(x.sum_steps(decoder.log_prob(z, x)) - start.sum_steps(decoder.log_prob(z, start)))
                p = math.exp(p) if a or not b else 0.0
                assert float(counts[4 * a + b]) == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n) + 1e-9)


def test_no_text_ends_before_what_is_known_of_it() -> None:
    decoder = tokens()
    decoder.to_logits.bias.data[0] += 9  # it would end at once
    x = Sequence(torch.tensor([[1, 0, 3, 0]]), torch.tensor([4]), torch.tensor([[True, False, True, False]]))
    many = Sequence(x.values.expand(500, -1), x.lengths.expand(500), x.mask.expand(500, -1))
    made = decoder.complete(torch.randn(500, D).double(), many, TokenSampling(temperature=1.0), seeded())
    assert (made[:, 1] != 0).all()
    assert (made[:, 2] == 3).all()
    assert (made[:, 3] == 0).double().mean() > 0.9


# --------------------------------------------------------------------------------------------------------- the model


def model() -> MultimodalVAE:
    one = Modality(FrameEncoder(C, D, hidden=5, reduction=2), frames(2))
    two = Modality(TokenEncoder(4, D, embedding=3, hidden=5), tokens())
    return spread(MultimodalVAE({"motion": one, "notes": two}))


def seen(rows: int = 3) -> dict[str, Sequence]:
    return {
        "motion": Sequence(torch.randn(rows, 5, C).double(), torch.tensor([5, 3, 0][:rows])),
        "notes": Sequence(torch.randint(1, 4, (rows, 3)), torch.tensor([2, 0, 3][:rows])),
    }


def test_holes_behind_a_prefix_tell_an_encoder_nothing() -> None:
    vae, x = model(), seen()
    ahead = {name: sequence.extended(4) for name, sequence in x.items()}
    torch.testing.assert_close(vae.posterior(ahead).mean, vae.posterior(x).mean)
    assert not torch.equal(
        vae.posterior(x).mean[0], vae.posterior({**x, "motion": x["motion"].where(x["motion"].lengths < 5)}).mean[0]
    )


def test_a_forecast_is_as_long_as_asked_and_its_beginning_does_not_depend_on_that() -> None:
    vae, x = model(), seen()
    calm = {"motion": FrameSampling(0), "notes": TokenSampling()}
    short = vae.forecast(x, 2, 5, ["motion", "notes"], decode=calm, generator=seeded())
    long = vae.forecast(x, 20, 5, ["motion", "notes"], decode=calm, generator=seeded())  # beyond max_steps
    assert long["motion"].samples.shape == (5, 3, 20, C)
    assert long["notes"].samples.shape == (5, 3, 20)
    for name in short:
        torch.testing.assert_close(long[name].samples[:, :, :2], short[name].samples)
    assert not long["motion"].samples[0].equal(long["motion"].samples[1])  # the latents differ


def test_filling_keeps_what_is_known_and_a_forecast_is_a_filled_end() -> None:
    vae, x = model(), seen(2)
    filled = vae.fill({**x, "motion": x["motion"].extended(3)}, 4, generator=seeded())
    assert filled.keys() == {"motion"}
    made = filled["motion"].samples
    ahead = vae.forecast(x, 3, 4, generator=seeded())["motion"].samples
    for row, length in enumerate([5, 3]):
        assert (made[:, row, :length] == x["motion"].values[row, :length]).all()
        torch.testing.assert_close(made[:, row, length : length + 3], ahead[:, row])


def test_proposals_are_weighed_by_a_prefix_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are p(x, goes on | z) p(z) / q(z): with one draw a row they are what log_weights says."""
    vae, x = model(), seen(2)
    x = {"motion": x["motion"]}
    scored = {"motion": _goes_on(vae, "motion", x)}
    assert scored["motion"].lengths.tolist() == [7, 5]
    found: list[Tensor] = []
    monkeypatch.setattr("mmseqvae.inference.forecasting.effective_draws", lambda w: found.append(w) or w[0])
    vae.forecast(x, 1, 2, proposals=3, generator=seeded())
    torch.testing.assert_close(found[0], vae.log_weights(scored, ["motion"], 6, generator=seeded()))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"samples": 0}, r"samples \(0\) and proposals"),
        ({"proposals": 0}, "proposals"),
        ({"want": ["sound"]}, "want names"),
        ({"decode": {"notes": TokenSampling()}}, "not among the wanted"),
        ({"decode": {"motion": TokenSampling()}}, "drawn with FrameSampling, got TokenSampling"),
    ],
)
def test_what_cannot_be_asked_for(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model().forecast(seen(), **{"steps": 1, **how})


def test_what_is_wanted_must_be_in_the_batch() -> None:
    with pytest.raises(ValueError, match="must hold what is wanted"):
        model().forecast({"notes": seen()["notes"]}, 1, want=["motion"])


def test_in_user_units() -> None:
    """Arrays come back in their own units; a text loses its end, and a hole is a frame of NaN."""
    trained = untrained()
    array = np.arange(8.0).reshape(4, 2)
    made = trained.forecast([{"motion": array, "text": "one"}], 3, 6, seed=1)
    assert made.keys() == {"motion"}
    batch = trained.encode([{"motion": array, "text": "one"}])
    plain = trained.model.forecast(batch, 3, 6, ["motion"], ["text", "motion"], generator=trained.model.generator(1))
    front_end = trained.front_ends["motion"]
    torch.testing.assert_close(made["motion"].samples, front_end.destandardise(plain["motion"].samples))  # type: ignore[union-attr]
    words = trained.forecast([{"text": "on"}], 2, 6, "text", seed=1)["text"].samples
    assert (words[:, 0, 0] != trained.front_ends["text"].end_id).any()  # type: ignore[union-attr]

    array[1] = np.nan
    filled = trained.fill([{"motion": array}], 5, seed=1)["motion"].samples
    assert filled.shape == (5, 1, 4, 2)
    assert filled[:, 0, 1].std(0).min() > 0
    np.testing.assert_allclose(filled[:, 0, [0, 2, 3]], np.broadcast_to(array[[0, 2, 3]], (5, 3, 2)), rtol=1e-5)
