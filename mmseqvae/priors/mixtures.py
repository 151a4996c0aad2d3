"""Mixtures of Gaussians as priors: learnt with the model, or fitted to training posteriors afterwards."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mmseqvae.distributions.gaussian import LOG_2PI, Gaussian, GaussianMixture, draw
from mmseqvae.priors.base import Prior

IDLE = 0.1  # of the mean weight: a part of a learnt mixture below it is put elsewhere


class MixturePrior(Prior):
    """A prior that is a mixture of Gaussians, whichever way its parts come about."""

    def mixture(self) -> GaussianMixture:
        """Its parts: log-weights [K], Gaussians [K, D]."""
        raise TypeError(f"{type(self).__name__} must define mixture")

    def log_prob(self, z: Tensor) -> Tensor:
        return self.mixture().log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.mixture().rsample(n, generator)

    def complete(self, z: Tensor, known: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """z [N, D] with the dimensions that are not `known` [N, D] drawn given those that are: a part, then a point."""
        distribution, here = self.mixture(), known[:, None]
        # an unknown dimension weighs exp(0): its value is the mean and its log-variance -ln(2 pi)
        weighed = Gaussian(
            torch.where(here, distribution.parts.mean, z[:, None]),
            torch.where(here, distribution.parts.logvar, -LOG_2PI),
        )
        log_weights = distribution.log_weights + weighed.log_prob(z[:, None])
        which = draw(log_weights.double().softmax(-1), generator)
        return torch.where(known, z, distribution.parts[which].rsample(generator=generator))


class LearntMixture(MixturePrior):
    """A mixture of `components` diagonal Gaussians whose weights, means and variances are trained with the model.

    Its parts start as draws of N(0, I / 2) with variance 1 / 2, so that the whole starts near N(0, I). Those that the
    posteriors leave behind are put to use again by `split`. Raises ValueError below one component.
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

    @torch.no_grad()
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights [K], means and variances [K, D] in double precision."""
        weights = self.logits.double().softmax(-1).cpu().numpy()
        parts = Gaussian(self.means.double(), self.logvars.double())
        return weights / weights.sum(), parts.mean.cpu().numpy(), parts.variance.cpu().numpy()

    def refresh(self) -> int:
        return self.split()

    @torch.no_grad()
    def split(self, idle: float = IDLE) -> int:
        """Put every part whose weight is below `idle` of the mean weight beside the heaviest one, with half its weight.

        Nothing would train it where it is: its gradient goes with its weight. The two lie half a standard deviation to
        both sides of where the heavy part was, in its widest dimension, as in Linde et al. 1980 ("An algorithm for
        vector quantizer design"), narrower there so that means and variances of the whole remain what they were.
        Returns how many parts were moved. Without noise, so that all processes do the same.
        """
        weights, means, variances = self.arrays()
        moved = (weights < idle / len(weights)).nonzero()[0]
        for place in moved:
            heavy = weights.argmax()
            widest = variances[heavy].argmax()
            offset = 0.5 * variances[heavy, widest] ** 0.5
            variances[heavy, widest] -= offset**2
            means[place], variances[place] = means[heavy], variances[heavy]
            means[heavy, widest] -= offset
            means[place, widest] += offset
            weights[heavy] = (weights[heavy] + weights[place]) / 2
            weights[place] = weights[heavy]
        if len(moved):
            self.logits.copy_(torch.from_numpy(np.log(weights)))
            self.means.copy_(torch.from_numpy(means))
            self.logvars.copy_(torch.from_numpy(np.log(variances)))
        return len(moved)


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


def fit_mixture(
    z: Tensor, components: int, seed: int = 0, progress: bool = False, valid: Tensor | None = None,
    learnt: Prior | None = None,
) -> Mixture:  # fmt: skip
    """Fit a diagonal Gaussian mixture to draws z [N, D] by expectation maximisation.

    scikit-learn does it, on as many threads as torch has. z may be [S, N, D], several draws from each posterior. With
    draws `valid` [..., N', D] from posteriors of other items, `components` is the most that is tried: it is halved
    until 1, and the size of the highest mean log-density of `valid` is kept. The better of two starts each, and where a
    mixture was `learnt` with the model a third from its parts, `merged`; at most one component for every ten items.
    Raises ValueError below two items or one component.
    """
    from sklearn import mixture
    from threadpoolctl import threadpool_limits

    items = z.shape[-2]
    if components < 1 or items < 2:
        raise ValueError(f"need at least 1 component and 2 draws, got {components} and {items}")
    largest = max(1, min(components, items // 10))
    sizes = [largest] if valid is None else [largest >> halved for halved in range(largest.bit_length())]
    points, random = z.flatten(0, -2).double().cpu().numpy(), np.random.RandomState(seed)
    starts: dict[int, list[dict[str, np.ndarray]]] = {size: [{}, {}] for size in sizes}  # twice k-means finds clusters
    if isinstance(learnt, LearntMixture):
        weights, means, variances = learnt.arrays()
        for size in sizes:  # from the largest down
            if size <= len(weights):
                weights, means, variances = merged(weights, means, variances, size)
                starts[size].append({
                    "weights_init": weights / weights.sum(),  # scikit-learn takes no 1 + 1e-16
                    "means_init": means, "precisions_init": 1 / variances,
                })  # fmt: skip

    def tensor(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=z.dtype, device=z.device)

    def fitted(size: int) -> Mixture:
        fits = []
        for first in starts[size]:
            fit = mixture.GaussianMixture(size, covariance_type="diag", reg_covar=1e-3, max_iter=300,
                                          random_state=random, **first)  # fmt: skip
            fits.append(fit.fit(points))
            bar.update()
        best = max(fits, key=lambda fit: fit.lower_bound_)
        return Mixture(tensor(best.weights_).log(), tensor(best.means_), tensor(best.covariances_).log())

    total = sum(map(len, starts.values()))
    bar = tqdm(total=total, desc="fitting the prior", unit="start", disable=not progress)
    with bar, threadpool_limits(torch.get_num_threads()):  # scikit-learn's threads wait for one another, too
        found = [fitted(size) for size in sizes]
    return found[0] if valid is None else max(found, key=lambda prior: float(prior.log_prob(valid).mean()))


def merged(
    weights: np.ndarray, means: np.ndarray, variances: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A mixture of diagonal Gaussians, weights [K], means and variances [K, D], reduced to `size` parts.

    Again and again two become one of their common mean and variance: those for which a bound on what the mixture loses,
    in nats, is least (Runnalls 2007, "Kullback-Leibler approach to Gaussian mixture reduction", eq. 21).
    """
    weights, means, variances = weights.copy(), means.copy(), variances.copy()
    while len(weights) > size:
        pair = weights[:, None] + weights  # [K, K]
        share = (weights[:, None] / pair)[..., None]
        apart = (means[:, None] - means) ** 2
        common = share * variances[:, None] + (1 - share) * variances + share * (1 - share) * apart
        volume = np.log(variances).sum(-1)
        lost = pair * np.log(common).sum(-1) - weights[:, None] * volume[:, None] - weights * volume
        np.fill_diagonal(lost, np.inf)
        one, two = np.unravel_index(lost.argmin(), lost.shape)
        means[one] = share[one, two] * means[one] + (1 - share[one, two]) * means[two]
        variances[one], weights[one] = common[one, two], pair[one, two]
        weights, means, variances = (np.delete(a, two, axis=0) for a in (weights, means, variances))
    return weights, means, variances
