"""What a model says of data in nats: importance-weighted estimates of log p(x), by draws from its own posterior."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from mmseqvae.distributions.gaussian import Distribution
from mmseqvae.modality import Batch, Modalities
from mmseqvae.priors.base import Prior

ROWS = 1024  # latent draws that go through a decoder at once when scoring
DENSITIES = 2**18  # of one draw under one posterior that are computed at once


class Scorable(Protocol):
    """What is asked of a model here, which `MultimodalVAE` offers."""

    @property
    def modalities(self) -> Modalities: ...
    @property
    def prior(self) -> Prior: ...
    def posterior(self, batch: Batch, given: Iterable[str] | None = None) -> Distribution: ...
    def log_likelihood(self, z: Tensor, batch: Batch, want: Iterable[str] | None = None) -> dict[str, Tensor]: ...


def log_prob(
    model: Scorable,
    batch: Batch,
    want: Iterable[str] | None = None,
    given: Iterable[str] | None = None,
    draws: int = 100,
    prior: Prior | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Importance-weighted log p(x_want) or log p(x_want | x_given) in nats, [B].

    Under `prior`, by default the model's own as `sample` draws from it. Without `given`: a lower bound on the joint
    or marginal log-likelihood that rises with `draws` (Burda et al. 2016, eq. 8); `effective_draws` of
    `log_weights` says how many of them count. With `given`:
    `bound_difference`, an estimate, no bound.
    """
    if given is not None:
        return bound_difference(model, batch, want, given, draws, prior, generator)
    return log_mean_exp(log_weights(model, batch, want, draws, prior, generator))


def bound_difference(
    model: Scorable,
    batch: Batch,
    want: Iterable[str] | None,
    given: Iterable[str],
    draws: int = 100,
    prior: Prior | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """bound on log p(x_want, x_given) minus bound on log p(x_given): an *estimate* of log p(x_want | x_given), [B].

    The difference of two lower bounds bounds nothing; both gaps shrink as `draws` rises.
    """
    writable = model.modalities.writable
    given = model.modalities.check(given, writable, "given")
    want = [name for name in model.modalities.check(want, writable, "want") if name not in given]
    if not want:
        raise ValueError("want and given name the same modalities: nothing is left to score")
    joint = log_weights(model, batch, [*want, *given], draws, prior, generator)
    return log_mean_exp(joint) - log_mean_exp(log_weights(model, batch, given, draws, prior, generator))


def log_weights(
    model: Scorable,
    batch: Batch,
    want: Iterable[str] | None = None,
    draws: int = 100,
    prior: Prior | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """log p(x_want, z_k) - log q(z_k | x_want) of draws z_k ~ q, [K, B] nats.

    The proposal reads the wanted modalities that have an encoder; where none has, it is N(0, I). A row in which
    nothing that is wanted is there has weight 1 for every draw, p() = 1.
    """
    parts = model.modalities
    names = parts.check(want, parts.writable, "want")
    prior = prior or model.prior
    q = model.posterior(batch, [name for name in names if name in parts.readable and parts.reads(name) in batch])
    weights = torch.cat(
        [
            sum(scores.values(), prior.log_prob(z) - q.log_prob(z))
            for z, scores in scored_draws(model, q, batch, names, draws, generator)
        ]
    )
    there = [batch[view].present for view in map(parts.writes, names) if view in batch]
    return torch.where(torch.stack(there).any(0), weights, 0) if there else torch.zeros_like(weights)


def scored_draws(
    model: Scorable,
    q: Distribution,
    batch: Batch,
    want: Iterable[str] | None = None,
    draws: int = 100,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Draws z ~ q [B, D] and their `log_likelihood`, as many at a time as go through a decoder well.

    Yields z [k, B, D] and {name: [k, B]} nats, `draws` in all.
    """
    for size in _split(draws, max(1, ROWS // max(1, len(q.mean)))):
        z = q.rsample(size, generator)
        yield z, model.log_likelihood(z, batch, want)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """ln of the mean over the first dimension: [K, ...] -> [...]."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def effective_draws(log_weights: Tensor) -> Tensor:
    """Kish's effective sample size (sum w)^2 / sum w^2 over the first dimension: [K, B] -> [B], from 1 to K."""
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()


def mutual_information(q: Distribution, generator: torch.Generator | None = None, draws: int = 1) -> float:
    """I(x; z) in nats under q(z) = mean_n q(z | x_n), of the N items of q [N, D]: at most ln N, so say N with it.

    E_n E_{q(z | x_n)} [log q(z | x_n) - log q(z)], by `draws` draws an item (Hoffman & Johnson 2016, eq. 6): what the
    latent says of the data. 0 where the posterior has collapsed, whatever its KL. Raises ValueError where q is empty.
    """
    total = len(q.mean)
    if not total:
        raise ValueError("mutual information of no item is undefined")
    found = []
    for _ in range(draws):
        z = q.rsample(generator=generator)
        own = q.log_prob(z)
        for rows in torch.arange(total, device=z.device).split(max(1, DENSITIES // total)):
            each = q.log_prob(z[rows, None])  # [R, N]: every item's density at the draws of R of them
            found.append((own[rows] - log_mean_exp(each.T)).double())
    return float(torch.cat(found).mean())


def _split(total: int, size: int) -> list[int]:
    if total < 1:
        raise ValueError(f"draws must be at least 1, got {total}")
    return [min(size, total - start) for start in range(0, total, size)]
