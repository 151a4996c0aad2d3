"""Distributions over the latent, and likelihoods of what decoders write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmseqvae import lazy

if TYPE_CHECKING:
    from mmseqvae.distributions.gaussian import Gaussian as Gaussian
    from mmseqvae.distributions.gaussian import GaussianMixture as GaussianMixture
    from mmseqvae.distributions.likelihoods import Bernoulli as Bernoulli
    from mmseqvae.distributions.likelihoods import Laplace as Laplace
    from mmseqvae.distributions.likelihoods import Normal as Normal

_HOME = {
    "Gaussian": "gaussian",
    "GaussianMixture": "gaussian",
    "Normal": "likelihoods",
    "Laplace": "likelihoods",
    "Bernoulli": "likelihoods",
}
__all__ = sorted(_HOME)
if not TYPE_CHECKING:
    __getattr__ = lazy(__name__, _HOME)
