"""Baselines that replay posteriors of training items, which a fitted prior should beat."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mmseqvae.distributions.gaussian import draw
from mmseqvae.priors.base import Prior


class Resampled(Prior):
    """A baseline: a training item, each as likely, then a draw from its posterior (the aggregate posterior itself).

    What a fitted prior samples should be as coherent, yet no replay of the training set. posteriors: any distribution
    [N, D].
    """

    about = "resampled posteriors of training items"

    def __init__(self, posteriors: Any) -> None:
        super().__init__()
        self.posteriors = posteriors
        self.latent = posteriors.mean.shape[-1]

    def __str__(self) -> str:
        return f"{self.about} ({len(self.posteriors.mean)})"

    def log_prob(self, z: Tensor) -> Tensor:
        rows = range(len(self.posteriors.mean))
        pieces = [self.posteriors[i : i + 256].log_prob(z[..., None, :]).logsumexp(-1) for i in rows[::256]]
        return torch.stack(pieces).logsumexp(0) - math.log(len(rows))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        mean: Tensor = self.posteriors.mean
        which = draw(mean.new_ones(1, len(mean)).expand(n, -1), generator)
        return self.posteriors[which].rsample(generator=generator)


class WordThenPosterior(Resampled):
    """A baseline: a word, each as likely, then a draw from q(z | word). posteriors: that of every word [V, D]."""

    about = "a word, then its posterior"
