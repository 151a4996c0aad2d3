"""Priors over the latent: the standard normal that training uses, and a mixture fitted to training posteriors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mmseqvae.gaussian import Gaussian
from mmseqvae.likelihoods import draw


class StandardNormal(nn.Module):
    """N(0, I) over `latent` dimensions."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.register_buffer("zero", torch.zeros(latent), persistent=False)
        self.zero: Tensor

    def __str__(self) -> str:
        return "N(0, I)"

    def log_prob(self, z: Tensor) -> Tensor:
        """Nats, [..., D] -> [...]."""
        return Gaussian.standard_like(z).log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws [n, D]."""
        return Gaussian.standard_like(self.zero).rsample(n, generator)


class Mixture(nn.Module):
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
        self.register_buffer("log_weights", log_weights.log_softmax(0))
        self.register_buffer("means", means)
        self.register_buffer("logvars", logvars)
        self.log_weights: Tensor
        self.means: Tensor
        self.logvars: Tensor

    def __str__(self) -> str:
        return f"mixture of {len(self.log_weights)} fitted to training posteriors"

    def log_prob(self, z: Tensor) -> Tensor:
        """Nats, [..., D] -> [...]."""
        parts = Gaussian(self.means, self.logvars).log_prob(z[..., None, :])
        return (self.log_weights + parts).logsumexp(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws [n, D]."""
        which = draw(self.log_weights.double().softmax(0).expand(n, -1), generator)
        return Gaussian(self.means, self.logvars)[which].rsample(generator=generator)


Prior = StandardNormal | Mixture


def fit_mixture(z: Tensor, components: int, seed: int = 0, progress: bool = False) -> Mixture:
    """Fit a diagonal Gaussian mixture to draws z [N, D] by expectation maximisation (scikit-learn).

    The better of two starts; at most one component for every ten draws. Raises ValueError below two draws or one
    component.
    """
    from sklearn.mixture import GaussianMixture

    if components < 1 or len(z) < 2:
        raise ValueError(f"need at least 1 component and 2 draws, got {components} and {len(z)}")
    components = max(1, min(components, len(z) // 10))
    points, random = z.double().cpu().numpy(), np.random.RandomState(seed)
    starts = [
        GaussianMixture(components, covariance_type="diag", reg_covar=1e-3, max_iter=300, random_state=random).fit(
            points
        )
        for _ in tqdm(range(2), desc="fitting the prior", unit="start", disable=not progress)
    ]
    fitted = max(starts, key=lambda start: start.lower_bound_)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=z.dtype, device=z.device)

    return Mixture(tensor(fitted.weights_).log(), tensor(fitted.means_), tensor(fitted.covariances_).log())
