"""What is said of some modalities given others: cvae."""

from __future__ import annotations

import torch

from mmseqvae.model import Batch, MultimodalVAE
from mmseqvae.objectives.base import Terms, Weights, check_weights, diagnostics, rate, register, weighted
from mmseqvae.priors.base import divergence


@register
def cvae(
    model: MultimodalVAE,
    batch: Batch,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    free_bits_item: float = 0.0,
    weights: Weights = None,
    given: str = "text",
) -> Terms:
    """The bound of a conditional VAE (Sohn et al. 2015, eq. 4), whose prior is the posterior of what is given.

        sum_{m not given} w_m E_{q(z|x)} log p(x_m | z) - beta KL(q(z | x) || q(z | x_given))

    given: names of readable modalities, "text" or "text, label". A bound on log p(x_wanted | x_given), of the model
    whose z is drawn from q(z | x_given), when beta >= 1 and weights are 1. Rows without all that is given or without
    anything that is wanted count 0. Terms.elbo is the joint bound under p(z) all the same, which nothing here raises: a
    prior learnt with the model stays as it began, so `ModelConfig.prior` is best "standard".
    Raises ValueError for unknown names, where nothing is left to want, and for free bits a dimension (free_bits_item
    is the floor of the KL above).
    """
    check_weights(model, weights)
    names = [name.strip() for name in given.split(",")]
    strange = sorted(set(names) - set(model.readable))
    if strange:
        raise ValueError(f"given names {strange}; this model reads {model.readable}")
    wanted = [name for name in model.writable if name not in names]
    if not wanted:
        raise ValueError(f"given names all that this model writes ({model.writable}): nothing is left to want")
    if free_bits > 0:
        raise ValueError("free_bits counts nats a dimension of KL(q || p(z)), which is not part of cvae")
    encoded = model.encode(batch)
    q, condition = encoded.posterior(), encoded.posterior(names)
    z = q.rsample()
    scores = model.log_likelihood(z, batch)
    apart = divergence(q, condition, z)
    cost = apart.clamp(min=free_bits_item) if free_bits_item > 0 else apart
    counts = torch.stack([encoded.here(name) for name in names]).all(0)
    views = [model.modality(name).writes or name for name in wanted]
    there = [batch[view].present for view in views if view in batch]
    counts = counts & (torch.stack(there).any(0) if there else torch.zeros_like(counts))
    inside = weighted({name: scores[name] for name in wanted if name in scores}, weights)
    prior = rate(q, model.training_prior, z)
    return Terms(
        torch.where(counts, inside - beta * cost, 0),
        sum(scores.values(), -prior.kl),
        scores,
        prior.kl,
        {given: torch.where(counts, apart, 0)},
        **diagnostics(model, encoded, q),
    )
