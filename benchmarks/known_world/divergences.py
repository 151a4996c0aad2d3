"""The nats that a trained model loses against the world of `benchmarks.known_world.world`, on items it has not seen.

    pair            KL(p(t, a) || model(t, a)), by importance weighting under the named prior a | t, own      the same
    for model(a | t) = model(t, a) / model(t): what decoders and prior know a | t, written  the same for the
    distribution that `generate` draws from, integral q(z | t) p(a | z) dz. It differs from the
                    model's own where q(z | t) is not the model's posterior of z. A generator that speaks with one
                    average voice loses the voices here

log p estimates are logarithms of unbiased ones: gaps are too large by what more draws would still gain, never too
small on average (an "own" conditional is a difference of two such, which bounds nothing).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.known_world.world import Scores
from mmseqvae.inference.importance_sampling import effective_draws, log_mean_exp
from mmseqvae.model import MultimodalVAE
from mmseqvae.priors.base import Prior
from mmseqvae.sequence import Sequence

OTHER = {"text": "audio", "audio": "text"}
ROWS = 4000  # latent draws that go through a decoder at once
Figures = dict[str, Any]


def priors(model: MultimodalVAE) -> dict[str, Prior]:
    """The priors that a model has, by name: standard, learnt with it, fitted after."""
    every = {"standard": model.standard, "learnt": model.learnt, "fitted": model.fitted}
    return {name: prior for name, prior in every.items() if prior is not None}


def likelihoods(
    model: MultimodalVAE, batch: Mapping[str, Sequence], true: Scores, draws: int, generator: torch.Generator
) -> Figures:
    """Gaps of the pair under every prior, and of both conditionals, the model's own and as written."""
    both = model.posterior(batch)
    alone = {name: model.posterior(batch, [name]) for name in OTHER}
    pair = {
        name: weights(model, batch, ["text", "audio"], prior.log_prob, [both], draws, generator)
        for name, prior in priors(model).items()
    }
    found: Figures = {f"pair, {name}": gap(true.log_prob("text", "audio"), w) for name, w in pair.items()}
    trained = pair["standard" if model.learnt is None else "learnt"]
    for name, other in OTHER.items():
        marginal = weights(model, batch, [other], model.training_prior.log_prob, [alone[other], both], draws, generator)
        own = log_mean_exp(trained) - log_mean_exp(marginal)
        found[f"{name} given {other}, own"] = summary(true.conditional(name) - own)
        written = weights(model, batch, [name], alone[other].log_prob, [both, alone[other]], draws, generator)
        found[f"{name} given {other}, written"] = gap(true.conditional(name), written)
    return found


def weights(
    model: MultimodalVAE,
    batch: Mapping[str, Sequence],
    want: list[str],
    target: Callable[[Tensor], Tensor],
    proposals: list[Any],
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """log [target(z) p(x_want | z) / proposal(z)] of draws z, [K, B], whose mean weight estimates the integral over z.

    With several proposals as many draws come from each and all are weighted by their mixture, the balance heuristic
    (Veach & Guibas 1995): a proposal that misses where another looks can then do no harm.
    """
    found, rows = [], len(next(iter(batch.values())))
    size = max(1, ROWS // rows)
    for proposal in proposals:
        left = draws // len(proposals)
        while left > 0:
            z = proposal.rsample(min(size, left), generator)
            left -= len(z)
            mixed = torch.stack([distribution.log_prob(z) for distribution in proposals]).logsumexp(0) - math.log(
                len(proposals)
            )
            found.append(sum(model.log_likelihood(z, batch, want).values(), target(z) - mixed))
    return torch.cat(found).double()


def gap(true: Tensor, log_weights: Tensor) -> Figures:
    """Nats between exact log-probabilities [B] and estimates from weights [K, B], with the effective draws."""
    return summary(true - log_mean_exp(log_weights)) | {
        "draws": len(log_weights),
        "effective draws": float(effective_draws(log_weights).mean()),
    }


def summary(nats: Tensor) -> Figures:
    """Mean over the items and its standard error."""
    return {"nats": float(nats.mean()), "error": float(nats.std() / math.sqrt(len(nats)))}
