"""Ways to combine what several encoders believe about one latent: (experts, present) -> posterior."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmseqvae.gaussian import Gaussian


def poe(experts: Gaussian, present: Tensor) -> Gaussian:
    """Product of Gaussian experts with N(0, I) as base expert (Wu & Goodman 2018, eq. 4; Cao & Fleet 2014).

    experts: [M, ..., D]; present: [M, ...] bool. Returns [..., D].

        1 / v = 1 + sum_m 1 / v_m        mean = v * sum_m mean_m / v_m

    computed as a softmax over log-precisions: the base expert has log-precision 0 and an absent expert minus infinity,
    so that with nothing present the answer is exactly N(0, I), whatever NaN the absent experts hold.
    """
    here = present[..., None]
    log_precision = torch.where(here, -experts.logvar, -torch.inf)
    mean = torch.where(here, experts.mean, 0)
    log_precision = torch.cat([torch.zeros_like(log_precision[:1]), log_precision])
    weight = log_precision.softmax(0)[1:]  # the base expert's mean is 0
    return Gaussian((weight * mean).sum(0), -log_precision.logsumexp(0))


@dataclass(frozen=True)
class Encoded:
    """What the encoders said about a batch, each having run once; every subset posterior is arithmetic on it.

    experts: {modality: Gaussian [B, D]}; present: {modality: [B] bool}; shape: (B, D) of the batch.
    """

    experts: dict[str, Gaussian]
    present: dict[str, Tensor]
    like: Tensor

    def posterior(self, given: Iterable[str] | None = None) -> Gaussian:
        """Product of the experts in `given` (default: all of them) with N(0, I) as base expert -> [B, D]."""
        chosen = set(self.experts if given is None else [given] if isinstance(given, str) else given)
        names = [name for name in self.experts if name in chosen]
        if not names:
            return Gaussian.standard_like(self.like)
        experts = Gaussian(
            torch.stack([self.experts[n].mean for n in names]), torch.stack([self.experts[n].logvar for n in names])
        )
        return poe(experts, torch.stack([self.present[n] for n in names]))
