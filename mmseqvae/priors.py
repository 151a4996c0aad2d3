"""Priors over the latent: N(0, I), those learnt with the model, and those fitted to training posteriors afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mmseqvae.fusion import Encoded
from mmseqvae.gaussian import LOG_2PI, Gaussian, GaussianMixture, Law, draw, parts
from mmseqvae.sequence import Sequence

IDLE = 0.1  # of the mean weight: a part of a learnt mixture below it is put elsewhere


class Prior(nn.Module):
    """What every prior over `latent` dimensions offers; str() says which it is."""

    latent: int

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
        law, here = self.mixture(), known[:, None]
        # an unknown dimension weighs exp(0): its value is the mean and its log-variance -ln(2 pi)
        weighed = Gaussian(torch.where(here, law.parts.mean, z[:, None]), torch.where(here, law.parts.logvar, -LOG_2PI))
        log_weights = law.log_weights + weighed.log_prob(z[:, None])
        which = draw(log_weights.double().softmax(-1), generator)
        return torch.where(known, z, law.parts[which].rsample(generator=generator))


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


class VampPrior(MixturePrior):
    """The mean of the posteriors of `components` pseudo-inputs, encoded anew at every step (Tomczak & Welling 2018).

    The pseudo-inputs are items of the training set, handed over by `start`: their frames are trained with the model,
    their tokens stay. Raises ValueError below one component, RuntimeError where it is used before `start`.
    """

    def __init__(self, components: int, latent: int) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"a VampPrior needs at least 1 component, got {components}")
        self.components, self.latent = components, latent
        self.views = nn.ModuleDict()
        self.encode: Callable[[Mapping[str, Sequence]], Encoded] | None = None  # the model's, which sets it

    def __str__(self) -> str:
        return f"VampPrior of {self.components} pseudo-inputs learnt with the model"

    def start(self, items: Mapping[str, Sequence]) -> None:
        """Take these `components` items as pseudo-inputs: {view: Sequence}."""
        wrong = {view: len(x) for view, x in items.items() if len(x) != self.components}
        if wrong or not items:
            raise ValueError(f"this VampPrior needs {self.components} items of every view, got {wrong or 'no view'}")
        self.views = nn.ModuleDict({view: _PseudoInput(items[view]) for view in sorted(items)})

    def mixture(self) -> GaussianMixture:
        if self.encode is None or not len(self.views):
            raise RuntimeError("a VampPrior must be part of a model and be given its pseudo-inputs (start) before use")
        q = self.encode({view: x() for view, x in self.views.items()}).posterior()
        log_weights, each = parts(q)  # [S, K], [S, K, D]
        return GaussianMixture(log_weights.flatten(), Gaussian(each.mean.flatten(0, 1), each.logvar.flatten(0, 1)))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Make room for the pseudo-inputs that the state holds, whichever their number of steps, then load."""
        start = f"{prefix}views."
        views = {key.removeprefix(start).split(".")[0] for key in state_dict if key.startswith(start)}
        for view in sorted(views):
            values, lengths, observed = (state_dict.get(f"{start}{view}.{part}") for part in _PseudoInput.parts)
            if values is not None and lengths is not None:
                room = None if observed is None else torch.zeros_like(observed)
                self.views[view] = _PseudoInput(Sequence(torch.zeros_like(values), torch.zeros_like(lengths), room))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _PseudoInput(nn.Module):
    """One view of the pseudo-inputs: frames are parameters, tokens are not."""

    parts = ("values", "lengths", "observed")

    def __init__(self, x: Sequence) -> None:
        super().__init__()
        values = x.filled()
        if values.is_floating_point():
            self.values = nn.Parameter(values.clone())
        else:
            self.register_buffer("values", values.clone())
        self.register_buffer("lengths", x.lengths.clone())
        self.register_buffer("observed", None if x.observed is None else x.observed.clone())
        self.lengths: Tensor
        self.observed: Tensor | None

    def forward(self) -> Sequence:
        return Sequence(self.values, self.lengths, self.observed)


class Resampled(Prior):
    """A baseline: a training item, each as likely, then a draw from its posterior (the aggregate posterior itself).

    What a fitted prior samples should be as coherent, yet no replay of the training set. posteriors: any law [N, D].
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


def fit_mixture(
    z: Tensor, components: int, seed: int = 0, progress: bool = False, valid: Tensor | None = None,
    learnt: Prior | None = None,
) -> Mixture:  # fmt: skip
    """Fit a diagonal Gaussian mixture to draws z [N, D] by expectation maximisation (scikit-learn).

    z may be [S, N, D], several draws from each posterior. With draws `valid` [..., N', D] from posteriors of other
    items, `components` is the most that is tried: it is halved until 1, and the size of the highest mean log-density of
    `valid` is kept. The better of two starts each, and where a mixture was `learnt` with the model a third from its
    parts, `merged`; at most one component for every ten items. Raises ValueError below two items or one component.
    """
    from sklearn import mixture

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
    with tqdm(total=total, desc="fitting the prior", unit="start", disable=not progress) as bar:
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


PRIORS: dict[str, Callable[[int, int], Prior | None]] = {  # learnt with the model: (components, latent) -> prior
    "standard": lambda components, latent: None,
    "mixture": LearntMixture,
    "vamp": VampPrior,
}
