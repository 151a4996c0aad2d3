"""Diagonal Gaussians over the latent and mixtures of them, any leading dimensions. The only file with 0.5 * logvar."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mmseqvae.sequence import register_pytree

LOG_2PI = math.log(2 * math.pi)


class Distribution(Protocol):
    """What every distribution over latents offers: Gaussians, mixtures, and what `mmseqvae.priors` fits."""

    @property
    def mean(self) -> Tensor: ...
    @property
    def variance(self) -> Tensor: ...
    def rsample(self, n: int | None = None, generator: torch.Generator | None = None, noise: float = 1.0) -> Tensor: ...
    def log_prob(self, z: Tensor) -> Tensor: ...
    def __getitem__(self, index: Any, /) -> Distribution: ...


@register_pytree
@dataclass(frozen=True)
class Gaussian:
    """N(mean, exp(logvar)), independent dimensions: `mean` and `logvar` are [..., D]."""

    mean: Tensor
    logvar: Tensor

    def __post_init__(self) -> None:
        if self.mean.shape != self.logvar.shape:
            raise ValueError(f"mean {tuple(self.mean.shape)} and logvar {tuple(self.logvar.shape)} differ in shape")

    @classmethod
    def standard_like(cls, other: Tensor) -> Gaussian:
        """N(0, I) in the shape, type and place of `other`."""
        return cls(torch.zeros_like(other), torch.zeros_like(other))

    @property
    def std(self) -> Tensor:
        return (0.5 * self.logvar).exp()

    @property
    def variance(self) -> Tensor:
        return self.logvar.exp()

    def rsample(self, n: int | None = None, generator: torch.Generator | None = None, noise: float = 1.0) -> Tensor:
        """Reparameterised draws, mean + noise * std * eps (Kingma & Welling 2014, section 2.4).

        noise: 1 for the distribution itself, 0 for its mean. Returns [..., D] when `n` is None, else [n, ..., D].
        """
        shape = self.mean.shape if n is None else (n, *self.mean.shape)
        eps = torch.randn(shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + (self.std if noise == 1 else noise * self.std) * eps

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(z; mean, exp(logvar)) in nats, summed over D: [..., D] -> [...]."""
        return -0.5 * (LOG_2PI + self.logvar + (z - self.mean).square() * (-self.logvar).exp()).sum(-1)

    def kl(self, other: Gaussian | None = None) -> Tensor:
        """KL(self || other) in nats, *per dimension* [..., D]; `other` None means N(0, I).

        0.5 [ln(v2 / v1) + (v1 + (m1 - m2)^2) / v2 - 1], Kingma & Welling 2014, appendix B.
        """
        if other is None:
            return 0.5 * (self.logvar.exp() + self.mean.square() - 1 - self.logvar)
        delta = self.logvar - other.logvar
        return 0.5 * (delta.exp() + (self.mean - other.mean).square() * (-other.logvar).exp() - 1 - delta)

    def entropy(self) -> Tensor:
        """Differential entropy in nats, summed over D: [...]."""
        return 0.5 * (1 + LOG_2PI + self.logvar).sum(-1)

    def detach(self) -> Gaussian:
        return Gaussian(self.mean.detach(), self.logvar.detach())

    def __getitem__(self, index: object) -> Gaussian:
        """Index the leading dimensions."""
        return Gaussian(self.mean[index], self.logvar[index])  # type: ignore[index]


@register_pytree
@dataclass(frozen=True)
class GaussianMixture:
    """sum_s weight_s N(mean_s, exp(logvar_s)): `log_weights` is [S, ...], `parts` a Gaussian [S, ..., D].

    The weights are normalised over S here. A part of log-weight minus infinity is absent: whatever it holds, NaN
    included, is replaced by N(0, I), so that nothing of it reaches a value or a gradient. At least one part must be
    there.
    """

    log_weights: Tensor
    parts: Gaussian

    def __post_init__(self) -> None:
        shape, weights = self.parts.mean.shape, self.log_weights.log_softmax(0)
        if weights.shape != shape[:-1]:
            raise ValueError(f"need log_weights [S, ...] for parts [S, ..., D], got {tuple(weights.shape)} and {shape}")
        here = (weights > -torch.inf)[..., None]
        parts = Gaussian(torch.where(here, self.parts.mean, 0), torch.where(here, self.parts.logvar, 0))
        object.__setattr__(self, "log_weights", weights)
        object.__setattr__(self, "parts", parts)

    @property
    def mean(self) -> Tensor:
        return (self.log_weights.exp()[..., None] * self.parts.mean).sum(0)

    @property
    def variance(self) -> Tensor:
        """Of the whole mixture: the mean of the variances plus the variance of the means."""
        spread = self.parts.variance + (self.parts.mean - self.mean).square()
        return (self.log_weights.exp()[..., None] * spread).sum(0)

    def rsample(self, n: int | None = None, generator: torch.Generator | None = None, noise: float = 1.0) -> Tensor:
        """Ancestral draws, a part and then a point of it: [..., D] when `n` is None, else [n, ..., D].

        noise: of the point, see `Gaussian.rsample`; with 0 it is the mean of the part. Gradients pass through the
        chosen part, none to the weights: an objective that trains those sums over `parts`.
        """
        weights, mean, logvar = self.log_weights.detach(), self.parts.mean, self.parts.logvar
        if n is not None:
            weights = weights[:, None].expand(-1, n, *weights.shape[1:])
            mean, logvar = (t[:, None].expand(-1, n, *t.shape[1:]) for t in (mean, logvar))
        rows = weights.shape[1:]
        which = (
            draw(weights.double().exp().flatten(1).T.contiguous(), generator)
            if rows.numel()
            else weights.new_zeros(0).long()
        )
        index = which.reshape(1, *rows, 1)
        chosen = Gaussian(mean.take_along_dim(index, 0)[0], logvar.take_along_dim(index, 0)[0])
        return chosen.rsample(generator=generator, noise=noise)

    def log_prob(self, z: Tensor) -> Tensor:
        """Nats, z [..., D] -> [...]; z may have further leading dimensions, as `rsample(n)` gives."""
        rows = self.log_weights.shape[1:]
        between = [1] * (z.ndim - 1 - len(rows))
        parts = Gaussian(*(t.reshape(len(t), *between, *t.shape[1:]) for t in (self.parts.mean, self.parts.logvar)))
        weights = self.log_weights.reshape(len(self.log_weights), *between, *rows)
        return (weights + parts.log_prob(z)).logsumexp(0)

    def detach(self) -> GaussianMixture:
        return GaussianMixture(self.log_weights.detach(), self.parts.detach())

    def __getitem__(self, index: object) -> GaussianMixture:
        """Index the leading dimensions; the parts stay."""
        every = (slice(None), *(index if isinstance(index, tuple) else (index,)))
        return GaussianMixture(self.log_weights[every], self.parts[every])


Posterior = Gaussian | GaussianMixture


def parts(q: Posterior) -> tuple[Tensor, Gaussian]:
    """Log-weights [S, ...] and the Gaussians [S, ..., D] that a posterior is a mixture of; S = 1 for a Gaussian.

    For stratified expectations: E_q f(z) = sum_s weight_s E_{part s} f(z). An absent part has weight 0 and is N(0, I);
    parts that are absent from all rows are left out, so that nobody decodes their draws; not on a GPU, which would be
    waited for.
    """
    if isinstance(q, GaussianMixture):
        if q.log_weights.device.type != "cpu":
            return q.log_weights, q.parts
        somewhere = (q.log_weights > -torch.inf).flatten(1).any(1)
        if somewhere.all() or not somewhere.any():
            return q.log_weights, q.parts
        return q.log_weights[somewhere], q.parts[somewhere]
    return q.mean.new_zeros(1, *q.mean.shape[:-1]), q[None]


def draw(probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One index a row from [N, V] probabilities, by inverse CDF (`torch.multinomial` is many times slower)."""
    u = torch.rand(len(probabilities), 1, generator=generator, device=probabilities.device, dtype=torch.float64)
    return invert(probabilities, u)


def invert(probabilities: Tensor, u: Tensor) -> Tensor:
    """Where the cumulative sums of [N, V] pass a share u [N, 1] in [0, 1) of the whole -> [N]."""
    cumulative = probabilities.double().cumsum(-1)
    # u < 1, so the scaled draw lies below the total and never falls on a trailing zero probability
    return torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).squeeze(-1)
