"""What follows a prefix and what a hole held: draws from a model's predictive distribution, and their quantiles.

    draws = model.forecast({"x": prefix}, steps=24, samples=200)["x"]
    low, middle, high = draws.quantiles([0.1, 0.5, 0.9])                 # [B, steps, C] each

    p(x_{t+1:} | x_{1:t}) = integral of q(z | x_{1:t}) p(x_{t+1:} | x_{1:t}, z) dz

A decoder is run over what is known with the truth as its past, and then on its own: whatever z says, a forecast goes on
from the prefix. What z says comes from an encoder that was trained on whole sequences, and a prefix is not one. Two
remedies: train with `TrainingConfig.span_masking`, so that encoders see prefixes and series with holes too and learn
*their* posterior (the bound is then that of the observed steps, holes being neither read nor scored); and
`proposals`, which weighs several z by how well the decoder explains what is known. With many proposals the distribution
is the decoder's own whatever the encoder believes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mmseqvae.decoding import FrameSampling, Sampling, TokenSampling
from mmseqvae.inference.importance_sampling import Scorable, effective_draws, scored_draws
from mmseqvae.modality import Batch
from mmseqvae.sequence import Sequence

TOGETHER = 4096  # rows that go through a decoder at once


@dataclass(frozen=True)
class Draws:
    """Draws of one modality. samples: [S, B, T, C] frames, or [S, B, T] tokens, which have no quantiles and no mean.

    effective: [B], how many of the proposed latents spoke (Kish), None where none were weighed.
    """

    samples: Tensor
    effective: Tensor | None = None

    def quantiles(self, q: float | Iterable[float]) -> Tensor:
        """The quantiles `q` of every number over the draws: [B, T, C] of one, [Q, B, T, C] of several."""
        levels = torch.tensor(
            q if isinstance(q, float) else list(q), device=self.frames.device, dtype=self.frames.dtype
        )
        if bool(((levels < 0) | (levels > 1)).any()):
            raise ValueError(f"quantiles must lie in [0, 1], got {levels.tolist()}")
        ordered = self.frames.sort(0).values  # torch.quantile takes at most 16 million numbers
        place = levels * (len(ordered) - 1)
        low = place.long().clamp(max=max(0, len(ordered) - 2))
        high = (low + 1).clamp(max=len(ordered) - 1)
        share = (place - low).reshape(*levels.shape, *[1] * (ordered.ndim - 1))
        return torch.lerp(ordered[low], ordered[high], share)

    @property
    def mean(self) -> Tensor:
        """[B, T, C]."""
        return self.frames.mean(0)

    @property
    def frames(self) -> Tensor:
        """The samples. Raises ValueError where they are tokens."""
        if not self.samples.is_floating_point():
            raise ValueError("tokens have neither quantiles nor a mean: count the samples")
        return self.samples


class Generative(Scorable, Protocol):
    """What is asked of a model here, which `MultimodalVAE` offers."""

    def context(self, batch: Batch, rows: int) -> Tensor | None: ...
    def latents(
        self,
        batch: Batch,
        given: Iterable[str] | None = None,
        samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor: ...


@torch.no_grad()
def forecast(
    model: Generative,
    prefix: Batch,
    steps: int,
    samples: int = 100,
    want: Iterable[str] | None = None,
    given: Iterable[str] | None = None,
    decode: Mapping[str, Sampling] | None = None,
    proposals: int = 1,
    generator: torch.Generator | None = None,
) -> dict[str, Draws]:
    """Draws of the next `steps` steps of every wanted modality: {name: Draws of [S, B, steps, C]}.

    prefix: {view: Sequence of B}; a wanted modality that is missing in a row begins at its first step. want: by
    default the modalities of frames in the batch, else those of tokens. given: what encoders read, by default all.
    decode: by default frames at noise 1, the predictive distribution, and tokens at temperature 1. Frames go on for
    `steps` steps, whatever the decoder says of their length; tokens may end, and are `end` from there on. A prefix
    of tokens has no end token. proposals: latents from which each that is used is drawn, by importance. Raises
    ValueError for steps, samples or proposals below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    names = _wanted(model, prefix, want)
    writes = model.modalities.writes
    scored = {**prefix, **{writes(n): _goes_on(model, n, prefix) for n in names}}
    whole = {**prefix, **{writes(n): prefix[writes(n)].extended(steps) for n in names}}
    drawn = _filled(model, prefix, scored, whole, names, samples, given, decode, proposals, generator)
    return {name: _behind(drawn[name], prefix[writes(name)].lengths, steps) for name in names}


@torch.no_grad()
def fill(
    model: Generative,
    batch: Batch,
    samples: int = 100,
    want: Iterable[str] | None = None,
    given: Iterable[str] | None = None,
    decode: Mapping[str, Sampling] | None = None,
    proposals: int = 1,
    generator: torch.Generator | None = None,
) -> dict[str, Draws]:
    """Whole sequences with every unobserved step drawn: {name: Draws of [S, B, T, C]}, observed steps as they are.

    A step in a hole is drawn given z, which knows of what stands behind the hole, and all steps before it. A
    modality that is missing but as long as another can be written step by step: give it that length and observe
    nothing. The rest as in `forecast`.
    """
    names = _wanted(model, batch, want)
    return _filled(model, batch, batch, batch, names, samples, given, decode, proposals, generator)


def _filled(
    model: Generative,
    read: Batch,
    scored: Batch,
    whole: Batch,
    names: list[str],
    samples: int,
    given: Iterable[str] | None,
    decode: Mapping[str, Sampling] | None,
    proposals: int,
    generator: torch.Generator | None,
) -> dict[str, Draws]:
    if min(samples, proposals) < 1:
        raise ValueError(f"samples ({samples}) and proposals ({proposals}) must be at least 1")
    ways = model.modalities.how(names, decode, FrameSampling(noise=1.0), TokenSampling(temperature=1.0))
    effective = None
    if proposals == 1:
        z = model.latents(read, given, samples, generator)
    else:
        z, effective = _weighed(model, read, scored, given, samples, proposals, generator)
    rows = z.shape[1]
    context = model.context(read, rows)
    size = max(1, TOGETHER // max(1, rows))
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for some in z.split(size):
        for name in names:
            x = whole[model.modalities.writes(name)]
            latent = model.modalities.decoded(name, some, context).flatten(0, 1)
            many = Sequence(*(part.repeat(len(some), *[1] * (part.ndim - 1)) for part in (x.values, x.lengths, x.mask)))
            values = model.modalities.complete(name, latent, many, ways[name], generator)
            found[name].append(values.unflatten(0, (len(some), rows)))
    return {name: Draws(torch.cat(pieces), effective) for name, pieces in found.items()}


def _weighed(
    model: Generative,
    read: Batch,
    scored: Batch,
    given: Iterable[str] | None,
    samples: int,
    proposals: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """`samples` of `samples * proposals` latents z ~ q, [S, B, D], by the weight p(x, z) / q(z | x), and [B].

    Sampling importance resampling (Rubin 1988), x being all of `scored` that is given and has a decoder, with
    systematic resampling (Kitagawa 1996): as proposals grow these are draws from p(z | x) of the decoders.
    """
    parts = model.modalities
    names = [name for name in parts.check(given, parts.readable, "given") if parts.reads(name) in read]
    q = model.posterior(read, names)
    latents, weights = [], []
    told = [name for name in names if name in parts.writable]
    for z, scores in scored_draws(model, q, scored, told, samples * proposals, generator):
        latents.append(z)
        weights.append(sum(scores.values(), model.prior.log_prob(z) - q.log_prob(z)))
    z, log_weights = torch.cat(latents), torch.cat(weights)
    start = torch.rand(z.shape[1], generator=generator, device=z.device, dtype=torch.float64)
    points = (torch.arange(samples, device=z.device) + start[:, None]) / samples
    ladder = log_weights.double().softmax(0).cumsum(0).T.contiguous()
    which = torch.searchsorted(ladder, points).clamp(max=len(z) - 1).T  # [S, B]
    return z.gather(0, which[..., None].expand(-1, -1, z.shape[-1])), effective_draws(log_weights)


def _wanted(model: Generative, batch: Batch, want: Iterable[str] | None) -> list[str]:
    """The wanted modalities, all of which the batch must hold."""
    parts = model.modalities
    here = [name for name in parts.writable if parts.writes(name) in batch]
    if want is None:
        want = [name for name in here if not parts.writes_tokens(name)] or here
    names = parts.check(want, parts.writable, "want")
    absent = [name for name in names if name not in here]
    if absent or not names:
        raise ValueError(f"the batch must hold what is wanted, {absent or parts.writable}; it holds {sorted(batch)}")
    return names


def _goes_on(model: Generative, name: str, prefix: Batch) -> Sequence:
    """A prefix that is scored as going on: longer than it is by what one step of the decoder writes."""
    x, decoder = prefix[model.modalities.writes(name)], model.modalities.decoder(name)
    longer = x.extended(getattr(decoder, "reduction", 1))
    limit = getattr(decoder, "max_steps", None)
    lengths = longer.lengths if limit is None else torch.maximum(x.lengths, longer.lengths.clamp(max=limit))
    return Sequence(longer.values, lengths, longer.observed)


def _behind(draws: Draws, lengths: Tensor, steps: int) -> Draws:
    """The `steps` steps behind the first `lengths` [B] ones."""
    x = draws.samples
    which = lengths[:, None] + torch.arange(steps, device=x.device)
    which = which.reshape(1, *which.shape, *[1] * (x.ndim - 3)).expand(len(x), -1, -1, *x.shape[3:])
    return Draws(x.gather(2, which), draws.effective)
