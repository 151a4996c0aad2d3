"""Priors over the latent: N(0, I), those learnt with the model, and those fitted to training posteriors afterwards."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mmseqvae.gaussian import Gaussian, GaussianMixture, Law


class Prior(nn.Module):
    """What every prior over `latent` dimensions offers; str() says which it is."""

    latent: int

    def log_prob(self, z: Tensor) -> Tensor:
        """Nats, [..., D] -> [...]."""
        raise TypeError(f"{type(self).__name__} must define log_prob")

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws [n, D]."""
        raise TypeError(f"{type(self).__name__} must define sample")


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


class MixturePrior(Prior):
    """A prior that is a mixture of Gaussians, whichever way its parts come about."""

    def mixture(self) -> GaussianMixture:
        """Its parts: log-weights [K], Gaussians [K, D]."""
        raise TypeError(f"{type(self).__name__} must define mixture")

    def log_prob(self, z: Tensor) -> Tensor:
        return self.mixture().log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.mixture().rsample(n, generator)


class LearntMixture(MixturePrior):
    """A mixture of `components` diagonal Gaussians whose weights, means and variances are trained with the model.

    Its parts start as draws of N(0, I / 2) with variance 1 / 2, so that the whole starts near N(0, I).
    Raises ValueError below one component.
    """

    def __init__(self, components: int, latent: int) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"a mixture prior needs at least 1 component, got {components}")
        self.latent = latent
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, latent) * math.sqrt(0.5))
        self.logvars = nn.Parameter(torch.full((components, latent), math.log(0.5)))

    def __str__(self) -> str:
        return f"mixture of {len(self.logits)} learnt with the model"

    def mixture(self) -> GaussianMixture:
        return GaussianMixture(self.logits, Gaussian(self.means, self.logvars))


class Mixture(MixturePrior):
    """sum_k weight_k N(mean_k, diag(exp(logvar_k))): log_weights [K], means and logvars [K, D].

    Fitted to draws from training posteriors it stands for the aggregate posterior, which N(0, I) does not match
    (Ghosh et al. 2020, "From variational to deterministic autoencoders", section 4).
    """

    def __init__(self, log_weights: Tensor, means: Tensor, logvars: Tensor) -> None:
        super().__init__()
        if means.shape != logvars.shape or log_weights.shape != means.shape[:1]:
            raise ValueError(
                f"need log_weights [K], means and logvars [K, D], got {tuple(log_weights.shape)}, "
                f"{tuple(means.shape)}, {tuple(logvars.shape)}"
            )
        self.latent = means.shape[-1]
        self.register_buffer("log_weights", log_weights.log_softmax(0))
        self.register_buffer("means", means)
        self.register_buffer("logvars", logvars)
        self.log_weights: Tensor
        self.means: Tensor
        self.logvars: Tensor

    def __str__(self) -> str:
        return f"mixture of {len(self.log_weights)} fitted to training posteriors"

    def mixture(self) -> GaussianMixture:
        return GaussianMixture(self.log_weights, Gaussian(self.means, self.logvars))


def divergence(q: Law, prior: Prior | Law, z: Tensor) -> Tensor:
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


def fit_mixture(z: Tensor, components: int, seed: int = 0, progress: bool = False) -> Mixture:
    """Fit a diagonal Gaussian mixture to draws z [N, D] by expectation maximisation (scikit-learn).

    The better of two starts; at most one component for every ten draws. Raises ValueError below two draws or one
    component.
    """
    from sklearn import mixture

    if components < 1 or len(z) < 2:
        raise ValueError(f"need at least 1 component and 2 draws, got {components} and {len(z)}")
    components = max(1, min(components, len(z) // 10))
    points, random = z.double().cpu().numpy(), np.random.RandomState(seed)
    starts = [
        mixture.GaussianMixture(
            components, covariance_type="diag", reg_covar=1e-3, max_iter=300, random_state=random
        ).fit(points)
        for _ in tqdm(range(2), desc="fitting the prior", unit="start", disable=not progress)
    ]
    fitted = max(starts, key=lambda start: start.lower_bound_)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=z.dtype, device=z.device)

    return Mixture(tensor(fitted.weights_).log(), tensor(fitted.means_), tensor(fitted.covariances_).log())
