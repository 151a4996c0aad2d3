"""What a model says of data in nats: importance-weighted estimates of log p(x), by draws from its own posterior."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from mmseqvae.gaussian import Law
from mmseqvae.modalities import Batch, Modalities
from mmseqvae.priors import Prior

ROWS = 1024  # latent draws that go through a decoder at once when scoring
DENSITIES = 2**18  # of one draw under one posterior that are computed at once


class Scored(nn.Module):
    """The part of a model that scores data; `MultimodalVAE` is the rest: posterior, likelihood and prior."""

    modalities: Modalities

    @property
    def prior(self) -> Prior:
        raise TypeError(f"{type(self).__name__} must define prior")

    def posterior(self, batch: Batch, given: Iterable[str] | None = None) -> Law:
        raise TypeError(f"{type(self).__name__} must define posterior")

    def log_likelihood(self, z: Tensor, batch: Batch, want: Iterable[str] | None = None) -> dict[str, Tensor]:
        raise TypeError(f"{type(self).__name__} must define log_likelihood")

    @property
    def readable(self) -> list[str]:
        """Modalities with an encoder."""
        return self.modalities.readable

    @property
    def writable(self) -> list[str]:
        """Modalities with a decoder."""
        return self.modalities.writable

    def log_prob(
        self,
        batch: Batch,
        want: Iterable[str] | None = None,
        given: Iterable[str] | None = None,
        draws: int = 100,
        prior: Prior | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Importance-weighted log p(x_want) or log p(x_want | x_given) in nats, [B].

        Under `prior`, by default the model's own as `sample` draws from it: the one fitted after training, else the one
        learnt with the model, else N(0, I). Without `given`: a lower bound on the joint or marginal log-likelihood that
        rises with `draws` (Burda et al. 2016, eq. 8); `effective_draws` of `log_weights` says how many of them count.
        With `given`: `bound_difference`, an estimate, no bound.
        """
        if given is not None:
            return self.bound_difference(batch, want, given, draws, prior, generator)
        return log_mean_exp(self.log_weights(batch, want, draws, prior, generator))

    def bound_difference(
        self,
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
        given = self.modalities.check(given, self.writable, "given")
        want = [name for name in self.modalities.check(want, self.writable, "want") if name not in given]
        if not want:
            raise ValueError("want and given name the same modalities: nothing is left to score")
        joint = self.log_weights(batch, [*want, *given], draws, prior, generator)
        return log_mean_exp(joint) - log_mean_exp(self.log_weights(batch, given, draws, prior, generator))

    def log_weights(
        self,
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
        names = self.modalities.check(want, self.writable, "want")
        prior = prior or self.prior
        readable = [name for name in names if name in self.readable and self.modalities.reads(name) in batch]
        q = self.posterior(batch, readable)
        weights = torch.cat(
            [
                sum(scores.values(), prior.log_prob(z) - q.log_prob(z))
                for z, scores in self.scored_draws(q, batch, names, draws, generator)
            ]
        )
        there = [batch[view].present for view in map(self.modalities.writes, names) if view in batch]
        return torch.where(torch.stack(there).any(0), weights, 0) if there else torch.zeros_like(weights)

    def scored_draws(
        self,
        q: Law,
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
            yield z, self.log_likelihood(z, batch, want)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """ln of the mean over the first dimension: [K, ...] -> [...]."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def effective_draws(log_weights: Tensor) -> Tensor:
    """Kish's effective sample size (sum w)^2 / sum w^2 over the first dimension: [K, B] -> [B], from 1 to K."""
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()


def mutual_information(q: Law, generator: torch.Generator | None = None, draws: int = 1) -> float:
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
