"""Priors over the latent: learnt with the model, or fitted to its posteriors after training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmseqvae import lazy

if TYPE_CHECKING:
    from mmseqvae.priors.base import Prior as Prior
    from mmseqvae.priors.base import StandardNormal as StandardNormal
    from mmseqvae.priors.base import divergence as divergence
    from mmseqvae.priors.flows import Flow as Flow
    from mmseqvae.priors.flows import fit_flow as fit_flow
    from mmseqvae.priors.mixtures import LearntMixture as LearntMixture
    from mmseqvae.priors.mixtures import Mixture as Mixture
    from mmseqvae.priors.mixtures import MixturePrior as MixturePrior
    from mmseqvae.priors.mixtures import fit_mixture as fit_mixture
    from mmseqvae.priors.mixtures import merged as merged
    from mmseqvae.priors.registry import FITTED as FITTED
    from mmseqvae.priors.registry import PRIORS as PRIORS
    from mmseqvae.priors.resampling_baselines import Resampled as Resampled
    from mmseqvae.priors.resampling_baselines import WordThenPosterior as WordThenPosterior
    from mmseqvae.priors.vamp import VampPrior as VampPrior

_HOME = {
    "Prior": "base",
    "StandardNormal": "base",
    "divergence": "base",
    "LearntMixture": "mixtures",
    "Mixture": "mixtures",
    "MixturePrior": "mixtures",
    "fit_mixture": "mixtures",
    "VampPrior": "vamp",
    "Resampled": "resampling_baselines",
    "WordThenPosterior": "resampling_baselines",
    "Flow": "flows",
    "fit_flow": "flows",
    "PRIORS": "registry",
    "FITTED": "registry",
    "merged": "mixtures",
}
__all__ = sorted(_HOME)
if not TYPE_CHECKING:
    __getattr__ = lazy(__name__, _HOME)
