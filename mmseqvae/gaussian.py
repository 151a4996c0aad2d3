"""Diagonal Gaussians over the latent, any leading dimensions. The only file with 0.5 * logvar."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


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

    def rsample(self, n: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Reparameterised draws, mean + std * eps (Kingma & Welling 2014, section 2.4).

        Returns [..., D] when `n` is None, else [n, ..., D].
        """
        shape = self.mean.shape if n is None else (n, *self.mean.shape)
        eps = torch.randn(shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.std * eps

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
