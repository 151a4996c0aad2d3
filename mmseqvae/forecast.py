"""What follows a prefix and what a hole held: draws from a model's predictive law, and their quantiles.

    draws = model.forecast({"x": prefix}, steps=24, samples=200)["x"]
    low, middle, high = draws.quantiles([0.1, 0.5, 0.9])                 # [B, steps, C] each

    p(x_{t+1:} | x_{1:t}) = integral of q(z | x_{1:t}) p(x_{t+1:} | x_{1:t}, z) dz

A decoder is run over what is known with the truth as its past, and then on its own: whatever z says, a forecast goes on
from the prefix. What z says comes from an encoder that was trained on whole sequences, and a prefix is not one. Two
remedies: train with `TrainingConfig.gaps`, so that encoders see prefixes and series with holes too and learn *their*
posterior (the bound is then that of the observed steps, holes being neither read nor scored); and `proposals`, which
weighs several z by how well the decoder explains what is known. With many proposals the law is the decoder's own
whatever the encoder believes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmseqvae.decoders import TokenDecoder
from mmseqvae.estimates import Scored, effective_draws
from mmseqvae.modalities import Batch
from mmseqvae.sampling import FrameSampling, Sampling, TokenSampling
from mmseqvae.sequence import Sequence

TOGETHER = 4096  # rows that go through a decoder at once
LAW = FrameSampling(noise=1.0)


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


class Forecasting(Scored):
    """The part of a model that goes on from what is known; see the head of this file."""

    def latents(
        self,
        batch: Batch,
        given: Iterable[str] | None = None,
        samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define latents")

    def context(self, batch: Batch, rows: int) -> Tensor | None:
        raise TypeError(f"{type(self).__name__} must define context")

    @torch.no_grad()
    def forecast(
        self,
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
        decode: by default frames at noise 1, the predictive law, and tokens at temperature 1. Frames go on for `steps`
        steps, whatever the law over their length says; tokens may end, and are `end` from there on. A prefix of tokens
        has no end token. proposals: latents from which each that is used is drawn, by importance (see `_weighed`).
        Raises ValueError for steps, samples or proposals below 1.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        names = self._wanted(prefix, want)
        scored = {**prefix, **{self.modalities.writes(n): self._goes_on(n, prefix) for n in names}}
        whole = {
            **prefix,
            **{self.modalities.writes(n): prefix[self.modalities.writes(n)].extended(steps) for n in names},
        }
        drawn = self._filled(prefix, scored, whole, names, samples, given, decode, proposals, generator)
        return {name: _behind(drawn[name], prefix[self.modalities.writes(name)].lengths, steps) for name in names}

    @torch.no_grad()
    def fill(
        self,
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
        names = self._wanted(batch, want)
        return self._filled(batch, batch, batch, names, samples, given, decode, proposals, generator)

    def _filled(
        self,
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
        ways = self._ways(names, decode)
        effective = None
        if proposals == 1:
            z = self.latents(read, given, samples, generator)
        else:
            z, effective = self._weighed(read, scored, given, samples, proposals, generator)
        rows = z.shape[1]
        context = self.context(read, rows)
        size = max(1, TOGETHER // max(1, rows))
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for some in z.split(size):
            for name in names:
                x = whole[self.modalities.writes(name)]
                latent = self.modalities.decoded(name, some, context).flatten(0, 1)
                many = Sequence(
                    *(part.repeat(len(some), *[1] * (part.ndim - 1)) for part in (x.values, x.lengths, x.mask))
                )
                values = self.modalities.decoder(name).complete(latent, many, ways[name], generator)  # type: ignore[arg-type]
                found[name].append(values.unflatten(0, (len(some), rows)))
        return {name: Draws(torch.cat(pieces), effective) for name, pieces in found.items()}

    def _weighed(
        self,
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
        names = self.modalities.check(given, self.readable, "given")
        names = [name for name in names if self.modalities.reads(name) in read]
        q = self.posterior(read, names)
        latents, weights = [], []
        told = [name for name in names if name in self.writable]
        for z, scores in self.scored_draws(q, scored, told, samples * proposals, generator):
            latents.append(z)
            weights.append(sum(scores.values(), self.prior.log_prob(z) - q.log_prob(z)))
        z, log_weights = torch.cat(latents), torch.cat(weights)
        start = torch.rand(z.shape[1], generator=generator, device=z.device, dtype=torch.float64)
        points = (torch.arange(samples, device=z.device) + start[:, None]) / samples
        ladder = log_weights.double().softmax(0).cumsum(0).T.contiguous()
        which = torch.searchsorted(ladder, points).clamp(max=len(z) - 1).T  # [S, B]
        return z.gather(0, which[..., None].expand(-1, -1, z.shape[-1])), effective_draws(log_weights)

    def _wanted(self, batch: Batch, want: Iterable[str] | None) -> list[str]:
        """The wanted modalities, all of which the batch must hold."""
        here = [name for name in self.writable if self.modalities.writes(name) in batch]
        if want is None:
            tokens = [name for name in here if isinstance(self.modalities.decoder(name), TokenDecoder)]
            want = [name for name in here if name not in tokens] or tokens
        names = self.modalities.check(want, self.writable, "want")
        absent = [name for name in names if name not in here]
        if absent or not names:
            raise ValueError(f"the batch must hold what is wanted, {absent or self.writable}; it holds {sorted(batch)}")
        return names

    def _ways(self, names: list[str], decode: Mapping[str, Sampling] | None) -> dict[str, Sampling]:
        unused = set(decode or ()) - set(names)
        if unused:
            raise ValueError(f"decode names {sorted(unused)}, which are not among the wanted modalities {names}")
        ways: dict[str, Sampling] = {}
        for name in names:
            tokens = isinstance(self.modalities.decoder(name), TokenDecoder)
            ways[name] = (decode or {}).get(name, TokenSampling(temperature=1.0) if tokens else LAW)
            if isinstance(ways[name], TokenSampling) != tokens:
                raise ValueError(f"{name} cannot be drawn with {type(ways[name]).__name__}")
        return ways

    def _goes_on(self, name: str, prefix: Batch) -> Sequence:
        """A prefix that is scored as going on: longer than it is by what one step of the decoder writes."""
        x, decoder = prefix[self.modalities.writes(name)], self.modalities.decoder(name)
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
