"""What every prior over the latent offers, and N(0, I)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mmseqvae.distributions.gaussian import Distribution, Gaussian
from mmseqvae.fusion import Encoded
from mmseqvae.sequence import Sequence


class Prior(nn.Module):
    """What every prior over `latent` dimensions offers; str() says which it is.

    A prior of your own defines `log_prob` and `sample`. `attach`, `start` and `refresh` are for those that are learnt
    with a model and need its encoders, training items or care; by default they do nothing.
    """

    latent: int
    items_needed: int = 0  # how many training items `start` wants

    def attach(self, encode: Callable[[Mapping[str, Sequence]], Encoded]) -> None:
        """Called once, by the model that it becomes the learnt prior of: `encode` is the model's."""

    def start(self, items: Mapping[str, Sequence]) -> None:
        """Called before training with `items_needed` training items, {view: Sequence}, where these are not 0."""

    def refresh(self) -> int:
        """Called every 100 steps of training; returns how many parts were changed. The same in every process."""
        return 0

    def log_prob(self, z: Tensor) -> Tensor:
        """Nats, [..., D] -> [...]."""
        raise TypeError(f"{type(self).__name__} must define log_prob")

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws [n, D]."""
        raise TypeError(f"{type(self).__name__} must define sample")

    def complete(self, z: Tensor, known: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """z [N, D] with the dimensions that are not `known` [N, D] drawn: here, from the prior of those alone."""
        return torch.where(known, z, self.sample(len(z), generator))


class StandardNormal(Prior):
    """N(0, I) over `latent` dimensions."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.register_buffer("zero", torch.zeros(latent), persistent=False)
        self.zero: Tensor

    def __str__(self) -> str:
        return "N(0, I)"

    def log_prob(self, z: Tensor) -> Tensor:
        return Gaussian.standard_like(z).log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return Gaussian.standard_like(self.zero).rsample(n, generator)


def divergence(q: Distribution, prior: Prior | Distribution, z: Tensor) -> Tensor:
    """KL(q || prior) in nats, summed over D: [B].

    Exact for a Gaussian q beside N(0, I) or another Gaussian; else the Monte-Carlo mean of log q(z) - log p(z) over
    the draws z [..., B, D], which must come from q. `prior` may also be another posterior of the same rows.
    """
    if isinstance(q, Gaussian) and isinstance(prior, Gaussian):
        return q.kl(prior).sum(-1)
    if isinstance(q, Gaussian) and isinstance(prior, StandardNormal):
        return q.kl().sum(-1)
    ratio, draws = q.log_prob(z) - prior.log_prob(z), z.ndim - q.mean.ndim
    return ratio.mean(tuple(range(draws))) if draws else ratio
