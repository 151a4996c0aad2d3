"""MultimodalVAE: modalities that share one latent. Posterior, generation, sampling and likelihood; no loss inside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mmseqvae.decoding import FrameSampling, Sampling, TokenSampling
from mmseqvae.distributions.gaussian import Distribution
from mmseqvae.fusion import Encoded, Fusion, poe
from mmseqvae.inference import forecasting, importance_sampling
from mmseqvae.inference.unimodal_posteriors import answer, fit_conditional
from mmseqvae.modality import Batch as Batch
from mmseqvae.modality import Covariate, Modalities, Modality
from mmseqvae.priors.base import Prior, StandardNormal
from mmseqvae.priors.registry import FITTED
from mmseqvae.sequence import Sequence, constant


class MultimodalVAE(nn.Module):
    """Several sequence modalities, one latent z, and a posterior that fuses what their encoders say.

        p(z) prod_m p(x_m | z, c)        q(z | x_S) = fusion of the experts q(z | x_m), m in S

    modalities: {name: Modality}; a batch is {view: Sequence of B}. An absent view, or a row of length 0, is missing.
    fusion: see `mmseqvae.fusion`; by default the product of experts. covariates: {view: Covariate}, what is known and
    not modelled; where it is missing, it is unknown. Raises ValueError where sizes do not fit together or no modality
    has an encoder.

    The latent is [shared | private of the first modality | ...], `latent` dimensions in all.

    Three priors: `standard` is N(0, I); `learnt`, if there is one, is trained with the model; `fitted` is set after
    training. `training_prior` is learnt or standard; `prior`, which `sample` and `log_prob` use unless told otherwise,
    is fitted or learnt or standard.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        fusion: Fusion = poe,
        prior: Prior | None = None,
        covariates: Mapping[str, Covariate] | None = None,
    ) -> None:
        super().__init__()
        self.modalities = Modalities(modalities)
        self.latent = self.modalities.latent
        self.covariates = nn.ModuleDict(covariates or {})
        width = sum(covariate.width for covariate in (covariates or {}).values())
        wrong = [name for name in self.writable if self.modality(name).conditions != width]
        if wrong:
            raise ValueError(f"the covariates are {width} wide in all: so must be `conditions` of {wrong}")
        self.fusion = fusion
        self.standard = StandardNormal(self.latent)
        self.learnt = prior
        if prior is not None:
            prior.attach(self.encode)
        self.fitted: Prior | None = None
        self.conditionals = nn.ModuleDict()

    @property
    def readable(self) -> list[str]:
        """Modalities with an encoder."""
        return self.modalities.readable

    @property
    def writable(self) -> list[str]:
        """Modalities with a decoder."""
        return self.modalities.writable

    @property
    def training_prior(self) -> Prior:
        return self.standard if self.learnt is None else self.learnt

    @property
    def prior(self) -> Prior:
        return self.training_prior if self.fitted is None else self.fitted

    @property
    def device(self) -> torch.device:
        return self.standard.zero.device

    def generator(self, seed: int) -> torch.Generator:
        """A seeded source of noise where the model is."""
        return torch.Generator(self.device).manual_seed(seed)

    @property
    def shared(self) -> slice:
        """The dimensions of the latent that all modalities share."""
        return slice(0, self.modalities.shared)

    def columns(self, name: str) -> Tensor:
        """The dimensions of the latent that one modality reads and writes, the shared ones first: indices."""
        return constant(tuple(self.modalities.columns(name)), torch.long, self.device)

    def encode(self, batch: Batch, given: Iterable[str] | None = None) -> Encoded:
        """Run the encoder of every modality in `given` (default: all readable) that the batch holds, once.

        It runs on the rows that are there only. What is not in `given`, or not in the batch, is there as absent. Where
        the batch holds a view `as_read` beside a view, that one is read.
        """
        names = self.modalities.check(given, self.readable, "given")
        like = self.standard.zero.expand(_rows(batch), -1)
        self.modalities.check_views(batch, names if given is not None else [], self.covariates)
        experts, present = self.modalities.read_all(batch, names, like)
        speaks = self.modalities.speaks(like.device)
        return Encoded(experts, present, tuple(self.readable), self.fusion, like, speaks)

    def context(self, batch: Batch, rows: int) -> Tensor | None:
        """What the covariates in a batch of `rows` items say to the decoders, [rows, W]; None in a model without."""
        if not len(self.covariates):
            return None
        return torch.cat([covariate(batch.get(view), rows) for view, covariate in self.covariates.items()], -1)

    def posterior(self, batch: Batch, given: Iterable[str] | None = None) -> Distribution:
        """q(z | x_given), one distribution a row [B, D]: rsample(n), log_prob(z), mean, variance.

        A row in which a single modality is there is answered by its conditional, if one was fitted. A row with nothing
        observed gets N(0, I); `generate` draws such rows from `prior` instead.
        """
        return self.answer(self.encode(batch, given))

    def answer(self, encoded: Encoded) -> Distribution:
        """The posterior of what was encoded, by conditionals where they apply; `encoded.posterior()` uses none."""
        return answer(encoded, self.conditionals)

    def log_likelihood(self, z: Tensor, batch: Batch, want: Iterable[str] | None = None) -> dict[str, Tensor]:
        """log p(x_m | z, c) in nats an item, each wanted decoder called once: z [..., B, D] -> {name: [..., B]}.

        0 for missing rows, on which no decoder runs. `want` defaults to every writable modality that the batch holds.
        """
        scores: dict[str, Tensor] = {}
        context = self.context(batch, z.shape[-2])
        for name in self.modalities.check(want, self.writable, "want"):
            view = self.modalities.writes(name)
            if view in batch:
                scores[name] = self.modalities.score(name, z, batch[view], context)
        return scores

    log_prob, log_weights = importance_sampling.log_prob, importance_sampling.log_weights
    bound_difference = importance_sampling.bound_difference
    forecast, fill = forecasting.forecast, forecasting.fill

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        want: Iterable[str] | None = None,
        given: Iterable[str] | None = None,
        samples: int = 1,
        decode: Mapping[str, Sampling] | None = None,
        generator: torch.Generator | None = None,
        latent_noise: float = 1.0,
    ) -> dict[str, Sequence]:
        """Draw z ~ q(z | x_given), then every modality in `want`: {name: Sequence of B * samples}.

        The draws of a row stand together: row b * samples + s. Dimensions of z of which nothing given speaks (all of
        them in a row with nothing observed, private ones of what is missing) are drawn from `prior`, given the others.
        latent_noise: how far z lies from the middle of its posterior (of the part that is drawn, where that is a
        mixture), 1 as far as the posterior says, 0 there: what is likeliest is clearest, and varies least. Raises
        ValueError for less than 0, and for less than 1 of `samples`.
        """
        z = self.latents(batch, given, samples, generator, latent_noise)
        context = self.context(batch, z.shape[1])
        if context is not None:
            context = context.repeat_interleave(samples, 0)
        return self.decode(rearrange(z, "s b d -> (b s) d"), want, decode, generator, context)

    def latents(
        self,
        batch: Batch,
        given: Iterable[str] | None = None,
        samples: int = 1,
        generator: torch.Generator | None = None,
        latent_noise: float = 1.0,
    ) -> Tensor:
        """Draws z ~ q(z | x_given), [samples, B, D]; what nothing given speaks of is drawn as `generate` says."""
        _check_count("samples", samples)
        if not 0 <= latent_noise < math.inf:
            raise ValueError(f"latent_noise must be at least 0 and finite, got {latent_noise}")
        encoded = self.encode(batch, given)
        z = self.answer(encoded).rsample(samples, generator, latent_noise)
        known = self.known(encoded).expand(z.shape)
        if not known.all():
            z = self.prior.complete(z.flatten(0, 1), known.flatten(0, 1), generator).reshape(z.shape)
        return z

    @torch.no_grad()
    def sample(
        self,
        n: int,
        want: Iterable[str] | None = None,
        prior: Prior | None = None,
        decode: Mapping[str, Sampling] | None = None,
        generator: torch.Generator | None = None,
        covariates: Batch | None = None,
    ) -> dict[str, Sequence]:
        """Draw n latents from `prior` and decode them; by default from what str(model.prior) names, see above.

        covariates: {view: Sequence of n}; what is missing is unknown. Raises ValueError for n below 1.
        """
        _check_count("n", n)
        z = (prior or self.prior).sample(n, generator)
        return self.decode(z, want, decode, generator, self.context(covariates or {}, n))

    @torch.no_grad()
    def interpolate(
        self,
        a: Batch,
        b: Batch,
        steps: int,
        want: Iterable[str] | None = None,
        decode: Mapping[str, Sampling] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Sequence]:
        """Decode `steps` points on the straight line between the posterior means of a and b, both ends included.

        What covariates say lies on the same line. The points of a row stand together: row i * steps + s. Raises
        ValueError for fewer than 2 steps.
        """
        if steps < 2:
            raise ValueError(f"steps must be at least 2 (both ends are included), got {steps}")
        start, end = self.posterior(a).mean, self.posterior(b).mean
        if start.shape != end.shape:
            raise ValueError(f"a has {len(start)} rows and b has {len(end)}")
        share = torch.linspace(0, 1, steps, device=start.device, dtype=start.dtype)
        z = torch.lerp(start[:, None], end[:, None], share[:, None])
        ends = [self.context(side, len(start)) for side in (a, b)]
        between = None
        if ends[0] is not None and ends[1] is not None:
            between = rearrange(torch.lerp(ends[0][:, None], ends[1][:, None], share[:, None]), "b s w -> (b s) w")
        return self.decode(rearrange(z, "b s d -> (b s) d"), want, decode, generator, between)

    @torch.no_grad()
    def decode(
        self,
        z: Tensor,
        want: Iterable[str] | None = None,
        decode: Mapping[str, Sampling] | None = None,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> dict[str, Sequence]:
        """Free-running draws from latents z [N, D]: {name: Sequence of N}.

        `decode` gives a TokenSampling or FrameSampling a modality; by default tokens are greedy, frames at noise 0.5.
        context: [N, W] as `context()` makes it; without, all covariates are unknown.
        """
        names = self.modalities.check(want, self.writable, "want")
        ways = self.modalities.how(names, decode, FrameSampling(), TokenSampling())
        context = self.context({}, len(z)) if context is None else context
        return {
            name: self.modalities.decoder(name).sample(self.modalities.decoded(name, z, context), how, generator)
            for name, how in ways.items()
        }

    def known(self, encoded: Encoded) -> Tensor:
        """[B, D] bool: dimensions that `answer` knows something of; a conditional speaks of all."""
        known = encoded.known
        for name in self.conditionals:
            known = known | (encoded.here(name) & ~encoded.several)[:, None]
        return known

    def fit_prior(
        self,
        z: Tensor,
        components: int,
        seed: int = 0,
        progress: bool = False,
        valid: Tensor | None = None,
        kind: str = "mixture",
    ) -> Prior:
        """Set `fitted` to a "mixture" or a "flow" fitted to draws z [N, D] from training posteriors, and return it.

        z may be [S, N, D]. See `fit_mixture`, to which a prior learnt with the model goes too, and `fit_flow`.
        """
        if kind not in FITTED:
            raise ValueError(f"kind must be one of {', '.join(FITTED)}, got {kind!r}")
        self.fitted = FITTED[kind](z, components, seed, progress, valid, self.learnt)
        return self.fitted

    def fit_conditional(self, name: str, train: Encoded, valid: Encoded | None = None, **how: Any) -> float:
        """Fit q(z | x_name), which answers from now on where `name` is alone; see `conditionals.fit_conditional`."""
        self.conditionals[name], reached = fit_conditional(name, train, valid, **how)
        return reached

    def modality(self, name: str) -> Modality:
        """The modality of that name."""
        return self.modalities.modality(name)


def _check_count(name: str, number: int) -> None:
    if not isinstance(number, Integral) or number < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {number}")


def _rows(batch: Batch) -> int:
    sizes = {view: len(sequence) for view, sequence in batch.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"all views of a batch must have the same number of rows, got {sizes or 'an empty batch'}")
    return next(iter(sizes.values()))
