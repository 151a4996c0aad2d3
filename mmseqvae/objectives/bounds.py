"""Evidence lower bounds of the joint observation and of parts of it: elbo, mvae, telbo."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mmseqvae.fusion import Encoded
from mmseqvae.model import Batch, MultimodalVAE
from mmseqvae.objectives.base import Terms, Weights, check_weights, diagnostics, rate, register, weighted
from mmseqvae.sequence import constant


@register
def elbo(
    model: MultimodalVAE,
    batch: Batch,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    free_bits_item: float = 0.0,
    weights: Weights = None,
) -> Terms:
    """The joint evidence lower bound, sum_m E_q log p(x_m | z) - beta KL(q(z | x) || p(z)).

    A bound on log p(x) when beta >= 1, no free bits and weights of 1 (Kingma & Welling 2014, eq. 3; Wu & Goodman 2018,
    eq. 2), whatever the fusion. Trained on it alone, a product of experts does not learn to generate one modality from
    another.
    """
    check_weights(model, weights)
    encoded = model.encode(batch)
    q = encoded.posterior()
    z = q.rsample()
    scores = model.log_likelihood(z, batch)
    joint = rate(q, model.training_prior, z, free_bits, free_bits_item)
    objective = weighted(scores, weights) - beta * joint.cost
    return Terms(objective, sum(scores.values(), -joint.kl), scores, joint.kl, **diagnostics(model, encoded, q))


@register
def mvae(
    model: MultimodalVAE,
    batch: Batch,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    free_bits_item: float = 0.0,
    weights: Weights = None,
    subsets: int = 1,
) -> Terms:
    """The sub-sampled ELBO of Wu & Goodman 2018, eq. 5: the joint one, that of every modality, of random subsets.

        ELBO(x) + sum_m ELBO(x_m) + sum_{i <= subsets} ELBO(x_{S_i}),
        ELBO(x_S) = sum_{m in S} E_{q(z | x_S)} log p(x_m | z) - beta KL(q(z | x_S) || p(z))

    S_i: subsets of at least two and not all readable modalities, drawn anew each step without replacement; where there
    are no more than `subsets` of them, all are taken. A subset of which something is missing in a row is dropped for
    that row, and so is one that holds all that the row has, which the joint bound counts already. A sum of bounds,
    each under the conditions of `elbo`; not a bound on log p(x) itself.
    """
    check_weights(model, weights)
    encoded = model.encode(batch)
    chosen = [(name,) for name in encoded.names] + _some(_between(encoded.names), subsets)
    q, parts = encoded.posterior(), [encoded.posterior(names) for names in chosen]
    z = torch.stack([q.rsample(), *(part.rsample() for part in parts)])
    scores: dict[str, Tensor] = {}
    places: dict[str, list[int]] = {}
    for name in model.writable:
        places[name] = [place for place, names in enumerate(chosen, start=1) if name in names]
        own = z.index_select(0, constant((0, *places[name]), torch.long, z.device))
        scores |= model.log_likelihood(own, batch, [name])  # one call a decoder
    joint = rate(q, model.training_prior, z[0], free_bits, free_bits_item)
    reconstruction = {name: score[0] for name, score in scores.items()}
    objective = weighted(reconstruction, weights) - beta * joint.cost
    for place, (names, part) in enumerate(zip(chosen, parts, strict=True), start=1):
        inside = {name: scores[name][1 + places[name].index(place)] for name in names if name in scores}
        cost = rate(part, model.training_prior, z[place], free_bits, free_bits_item).cost
        objective = objective + torch.where(_adds(encoded, names), weighted(inside, weights) - beta * cost, 0)
    singles = dict(zip(encoded.names, parts, strict=False))
    bound = sum(reconstruction.values(), -joint.kl)
    return Terms(objective, bound, reconstruction, joint.kl, **diagnostics(model, encoded, q, singles))


@register
def telbo(
    model: MultimodalVAE,
    batch: Batch,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    free_bits_item: float = 0.0,
    weights: Weights = None,
    single: float = 1.0,
    frozen: bool = True,
) -> Terms:
    """The triple ELBO of Vedantam et al. 2018, section 3.1, for any number of modalities.

        ELBO(x) + sum_m { single * w_m E_{q(z | x_m)} log p(x_m | z) - beta KL(q(z | x_m) || p(z)) }

    As published the fusion is a joint encoder, and the decoders learn from the joint bound alone (`frozen`): the
    single-modality encoders are fitted to a generative model that they do not shape. Terms are dropped as in `mvae`.
    A sum of bounds where `single` and the weights are 1, each under the conditions of `elbo`.
    """
    check_weights(model, weights)
    encoded = model.encode(batch)
    q, singles = encoded.posterior(), {name: encoded.posterior([name]) for name in encoded.names}
    z = q.rsample()
    reconstruction = model.log_likelihood(z, batch)
    joint = rate(q, model.training_prior, z, free_bits, free_bits_item)
    objective = weighted(reconstruction, weights) - beta * joint.cost
    for name, part in singles.items():
        z = part.rsample()
        cost = rate(part, model.training_prior, z, free_bits, free_bits_item).cost
        alone = torch.zeros_like(cost)
        if name in reconstruction:
            with _frozen_decoder(model, name, frozen):
                alone = weighted(model.log_likelihood(z, batch, [name]), weights)
        objective = objective + torch.where(_adds(encoded, (name,)), single * alone - beta * cost, 0)
    bound = sum(reconstruction.values(), -joint.kl)
    return Terms(objective, bound, reconstruction, joint.kl, **diagnostics(model, encoded, q, singles))


def _between(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """All subsets of at least two and not all."""
    return [subset for size in range(2, len(names)) for subset in itertools.combinations(names, size)]


def _some(choices: list[tuple[str, ...]], count: int) -> list[tuple[str, ...]]:
    """`count` of them at random, or all where there are no more."""
    if count < 0:
        raise ValueError(f"subsets must be at least 0, got {count}")
    if len(choices) <= count:
        return choices
    return [choices[place] for place in torch.randperm(len(choices))[:count].tolist()]


def _adds(encoded: Encoded, names: tuple[str, ...]) -> Tensor:
    """[B]: all of `names` are there, and they are not all that is."""
    inside = torch.stack([encoded.here(name) for name in names])
    return inside.all(0) & (encoded.present.sum(0) > len(names))


@contextmanager
def _frozen_decoder(model: MultimodalVAE, name: str, frozen: bool) -> Iterator[None]:
    """What is computed inside has no gradient in the decoder's weights."""
    decoder = model.modality(name).decoder if frozen else None
    held = [] if decoder is None else [p for p in decoder.parameters() if p.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
