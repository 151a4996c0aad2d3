"""Priors by the names that configurations give them."""

from __future__ import annotations

from collections.abc import Callable

from mmseqvae.priors.base import Prior
from mmseqvae.priors.flows import fit_flow
from mmseqvae.priors.mixtures import LearntMixture, fit_mixture
from mmseqvae.priors.vamp import VampPrior

PRIORS: dict[str, Callable[[int, int], Prior | None]] = {  # learnt with the model: (components, latent) -> prior
    "standard": lambda components, latent: None,
    "mixture": LearntMixture,
    "vamp": VampPrior,
}

FITTED: dict[str, Callable[..., Prior]] = {"mixture": fit_mixture, "flow": fit_flow}  # to posteriors, after training
