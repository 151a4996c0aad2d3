"""Objectives for latents that are partly shared and partly one modality's own: dmvae, mmvae_plus."""

from __future__ import annotations

import torch
from torch import nn

from mmseqvae.distributions.gaussian import Gaussian, GaussianMixture, Posterior
from mmseqvae.inference.importance_sampling import effective_draws
from mmseqvae.model import Batch, MultimodalVAE
from mmseqvae.objectives.base import Terms, Weights, check_weights, counted, diagnostics, rate, register, weighted
from mmseqvae.objectives.mixtures import check_importance, combine, over_parts


@register
def dmvae(
    model: MultimodalVAE,
    batch: Batch,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    free_bits_item: float = 0.0,
    weights: Weights = None,
) -> Terms:
    """Shared and private latents with a product of experts (DMVAE, Lee & Pavlovic 2021, section 3).

        L(q(s | x)) + sum_m L(q(s | x_m)),
        L(r) = E_{r(s) prod_n q(p_n | x_n)} sum_n w_n log p(x_n | s, p_n) - beta KL(r(s) prod_n q(p_n | x_n) || p(s, p))

    s is shared, p_n is private to n. Every modality is written from what each modality says of the shared part, and
    from its own private part. Terms that a single modality cannot add to (only one is present in a row) are dropped
    for that row. Each L is a bound on log p(x) under the conditions of `elbo`, their sum is (1 + M) times one. Without
    private dimensions every modality is written from every posterior. Raises ValueError for mixture posteriors.
    """
    check_weights(model, weights)
    encoded = model.encode(batch)
    q = _gaussian(encoded.posterior())
    singles = {name: _gaussian(encoded.posterior([name])) for name in encoded.names}
    shared = torch.zeros(model.latent, dtype=torch.bool, device=q.mean.device)
    shared[model.shared] = True
    sources = [
        Gaussian(torch.where(shared, single.mean, q.mean), torch.where(shared, single.logvar, q.logvar))
        for single in singles.values()
    ]
    z = torch.stack([q.rsample(), *(source.rsample() for source in sources)])
    useful = [encoded.here(name) & encoded.several for name in singles]
    counts = torch.stack([torch.ones_like(encoded.several), *useful])
    scores = counted(model, batch, z, counts)
    joint = rate(q, model.training_prior, z[0], free_bits, free_bits_item)
    total = weighted(scores, weights)  # [1 + M, B]
    objective = total[0] - beta * joint.cost
    for place, source in enumerate(sources, start=1):
        cost = rate(source, model.training_prior, z[place], free_bits, free_bits_item).cost
        objective = objective + torch.where(counts[place], total[place] - beta * cost, 0)
    reconstruction = {name: score[0] for name, score in scores.items()}
    bound = sum(reconstruction.values(), -joint.kl)
    return Terms(objective, bound, reconstruction, joint.kl, **diagnostics(model, encoded, q, singles))


@register
def mmvae_plus(
    model: MultimodalVAE,
    batch: Batch,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    free_bits_item: float = 0.0,
    weights: Weights = None,
    draws: int = 1,
    gradient: str = "dreg",
    tight: bool = False,
) -> Terms:
    """Shared and private latents with a mixture of experts (MMVAE+, Palumbo et al. 2023, section 3).

        1 / M sum_m E ln 1 / K sum_k w_mk,   s ~ q(s | x_m), p_m ~ q(p_m | x_m), p_n ~ N(0, I) for n other than m,
        ln w = sum_n w_n log p(x_n | s, p_n)
               + beta [log p(s, p) - log 1 / M sum_n q(s | x_n) - log q(p_m | x_m) - sum_n log N(p_n; 0, I)]

    s is shared, p_n is private to n. The other modalities are written from private parts that know nothing of the item,
    so the shared part must hold all that they have in common. M counts what a row has. A bound on log p(x) where beta
    and the weights are 1; draws, gradient and tight as in `importance`, of which it is the case without private
    dimensions. As published the auxiliary distribution of p_n has a learnt scale; here it is N(0, I), which drops out
    of w under that prior. The mixture is this one whatever the fusion, which answers after training ("moe" as
    published). Raises ValueError for free bits, which have no meaning here, and for a fusion that would have weights to
    learn.
    """
    check_weights(model, weights)
    check_importance(gradient, draws, free_bits, free_bits_item)
    if isinstance(model.fusion, nn.Module) and any(True for _ in model.fusion.parameters()):
        raise ValueError("mmvae_plus trains the experts alone, so the weights of this fusion would stay untrained: "
                         'use the fusion "moe"')  # fmt: skip
    encoded = model.encode(batch)
    experts = [encoded.expert(name) for name in encoded.names]  # N(0, I) where they say nothing
    distributions = Gaussian(torch.stack([e.mean for e in experts]), torch.stack([e.logvar for e in experts]))
    log_shares = (
        torch.where(encoded.present | ~encoded.present.any(0), 0.0, -torch.inf).to(distributions.mean).log_softmax(0)
    )
    z = distributions.rsample(draws).transpose(0, 1)  # [M, K, B, D]
    scores = counted(model, batch, z, log_shares > -torch.inf)
    own = distributions.detach() if gradient == "dreg" else distributions
    everyone = GaussianMixture(log_shares, own[..., model.shared])
    private = slice(model.shared.stop, None)
    log_q = everyone.log_prob(z[..., model.shared]) + own[:, None, :, private].log_prob(z[..., private])
    log_p = model.training_prior.log_prob(z)
    log_weights = weighted(scores, weights) + beta * (log_p - log_q)
    objective = combine(log_weights, log_shares, tight, z if gradient == "dreg" else None, beta)
    shares = log_shares.exp()
    reconstruction = {name: over_parts(score, shares) for name, score in scores.items()}
    kl = over_parts(log_q - log_p, shares)
    others = {"effective_draws": effective_draws((log_shares[:, None] + log_weights).flatten(0, 1).detach())}
    bound = sum(reconstruction.values(), -kl)
    q = encoded.posterior()
    return Terms(objective, bound, reconstruction, kl, **diagnostics(model, encoded, q), others=others)


def _gaussian(q: Posterior) -> Gaussian:
    if not isinstance(q, Gaussian):
        raise ValueError(f"dmvae needs a Gaussian posterior, got a {type(q).__name__}: choose a product of experts")
    return q
