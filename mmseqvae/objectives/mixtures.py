"""Objectives over the parts of a mixture posterior, each part with draws of its own: mixture, importance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmseqvae.distributions.gaussian import Gaussian, Posterior, parts
from mmseqvae.inference.importance_sampling import effective_draws
from mmseqvae.model import Batch, MultimodalVAE
from mmseqvae.objectives.base import Terms, Weights, check_weights, counted, diagnostics, rate, register, weighted

GRADIENTS = ("dreg", "iwae")


@register
def mixture(
    model: MultimodalVAE,
    batch: Batch,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    free_bits_item: float = 0.0,
    weights: Weights = None,
    tight: bool = True,
    stratified: bool = True,
) -> Terms:
    """The ELBO of a mixture posterior q = sum_s pi_s q_s, with a draw of every part (Shi et al. 2019, eq. 4).

        sum_s pi_s { sum_m w_m E_{q_s} log p(x_m | z) - beta KL_s }

    tight: KL_s = E_{q_s} [log q(z | x) - log p(z)] with the whole mixture's density, whose sum is KL(q || p); else
    KL_s = KL(q_s || p), whose sum is larger (convexity), and which does not see that parts overlap. stratified: a draw
    of every part; else one draw of the mixture for all (the loose KL stays a sum over the parts). With the fusion "moe"
    it is MMVAE; with "mopoe", `tight=False` and `stratified=False` it is MoPoE (Sutter et al. 2021, eq. 6 and 7); a
    Gaussian posterior is one part, and this is `elbo`. A bound on log p(x) under the conditions of `elbo`, tight or
    loose. Free bits a dimension need loose KLs where there are several parts.
    """
    check_weights(model, weights)
    encoded = model.encode(batch)
    q, prior = encoded.posterior(), model.training_prior
    log_shares, distributions = parts(q)
    shares = log_shares.exp()  # [S, B]
    if stratified:
        z = distributions.rsample()
        scores = {name: (shares * score).sum(0) for name, score in counted(model, batch, z, shares > 0).items()}
    else:
        z = q.rsample()[None]
        scores = {name: score[0] for name, score in model.log_likelihood(z, batch).items()}
    if len(shares) == 1:
        joint = rate(q if isinstance(q, Gaussian) else distributions[0], prior, z, free_bits, free_bits_item)
        kl, cost = joint.kl, joint.cost
    else:
        excess = q.log_prob(z) - prior.log_prob(z)
        kl = cost = (shares * excess).sum(0) if stratified else excess[0]
        if tight and free_bits > 0:
            raise ValueError("free_bits counts nats a dimension, which a mixture's KL has not: use tight=False")
        if not tight:
            own = z if stratified else distributions.rsample()
            cost = torch.stack([rate(distributions[s], prior, own[s], free_bits).cost for s in range(len(shares))])
            cost = (shares * cost).sum(0)
        cost = cost.clamp(min=free_bits_item) if free_bits_item > 0 else cost
    objective = weighted(scores, weights) - beta * cost
    return Terms(objective, sum(scores.values(), -kl), scores, kl, **diagnostics(model, encoded, q))


@register
def importance(
    model: MultimodalVAE,
    batch: Batch,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    free_bits_item: float = 0.0,
    weights: Weights = None,
    draws: int = 10,
    gradient: str = "dreg",
    tight: bool = True,
) -> Terms:
    """The importance-weighted bound with `draws` K of every part q_s of the posterior (Burda et al. 2016, eq. 8).

        tight: ln sum_s pi_s / K sum_k w_sk          loose: sum_s pi_s ln 1 / K sum_k w_sk
        ln w_sk = sum_m w_m log p(x_m | z_sk) + beta [log p(z_sk) - log q(z_sk | x)],   z_sk ~ q_s

    With the fusion "moe" it is MMVAE (Shi et al. 2019, eq. 5; loose as in its appendix). A bound on log p(x) where
    beta and the weights are 1, tight or loose; with one part it rises with K. gradient: "iwae" is the bound's own;
    "dreg" the doubly reparameterised one of the encoders (Tucker et al. 2019, eq. 7), whose signal does not fade as K
    rises, and the bound's own for decoders and prior. "dreg" is unbiased for one part; for several it is biased, as
    that of Shi et al. is, since it leaves out how a part's draws depend on the other parts' densities. Raises
    ValueError for free bits, which have no meaning here.
    """
    check_weights(model, weights)
    check_importance(gradient, draws, free_bits, free_bits_item)
    encoded = model.encode(batch)
    q = encoded.posterior()
    log_shares, distributions = parts(q)
    z = distributions.rsample(draws).transpose(0, 1)  # [S, K, B, D]
    scores = counted(model, batch, z, log_shares > -torch.inf)
    objective, kl, others = several_draws(model, q, z, scores, weights, beta, gradient, tight)
    reconstruction = {name: over_parts(score, log_shares.exp()) for name, score in scores.items()}
    bound = sum(reconstruction.values(), -kl)
    return Terms(objective, bound, reconstruction, kl, **diagnostics(model, encoded, q), others=others)


def several_draws(
    model: MultimodalVAE,
    q: Posterior,
    z: Tensor,
    scores: dict[str, Tensor],
    weights: Weights,
    beta: float,
    gradient: str = "dreg",
    tight: bool = True,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The bound of `importance` from draws z [S, K, B, D] of q's S parts and {modality: log p(x_m | z) [S, K, B]}.

    Returns the bound [B], KL(q || prior) [B], and what else `Terms` tells.
    """
    log_shares, _ = parts(q)
    log_p, log_q = model.training_prior.log_prob(z), (q.detach() if gradient == "dreg" else q).log_prob(z)
    log_weights = weighted(scores, weights) + beta * (log_p - log_q)
    bound = combine(log_weights, log_shares, tight, z if gradient == "dreg" else None, beta)
    gaussian = isinstance(q, Gaussian)
    kl = rate(q, model.training_prior, z).kl if gaussian else over_parts(log_q - log_p, log_shares.exp())
    return bound, kl, {"effective_draws": effective_draws((log_shares[:, None] + log_weights).flatten(0, 1).detach())}


def check_importance(gradient: str, draws: int, free_bits: float, free_bits_item: float) -> None:
    """Raise ValueError for options that an importance-weighted bound has not."""
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    if free_bits > 0 or free_bits_item > 0:
        raise ValueError(
            "an importance-weighted bound has no KL of its own: free_bits and free_bits_item must be 0, "
            "or draws of `coordinated` 1"
        )


def over_parts(values: Tensor, shares: Tensor) -> Tensor:
    """Mean over draws, then over parts: [S, K, B] and shares [S, B] -> [B]."""
    return (shares * values.mean(1)).sum(0)


def combine(
    log_weights: Tensor, log_shares: Tensor, tight: bool, doubly: Tensor | None = None, beta: float = 1.0
) -> Tensor:
    """The bound of `importance` from log_weights [S, K, B] and log_shares [S, B] -> [B].

    doubly: the draws z [S, K, B, D], if the gradient through them is to be the doubly reparameterised one,

        sum_k W_k [1 - beta + beta W_k] d log w_k / d z_k,   W_k normalised

    which needs log q with its parameters detached. With beta 1 it is Tucker et al. 2019, eq. 7; ln w has beta ln q, so
    of the score that they rewrite (their eq. 6) there is beta times as much. What does not pass through z (decoders,
    prior) keeps the bound's own gradient, sum_k W_k d log w_k.
    """
    draws = log_weights.shape[1]
    if tight:
        joint = log_shares[:, None] + log_weights - math.log(draws)
        bound = joint.flatten(0, 1).logsumexp(0)
        normalised = shared = (joint - bound).exp().detach()
    else:
        each = log_weights.logsumexp(1) - math.log(draws)
        bound = (log_shares.exp() * each).sum(0)
        normalised = log_weights.softmax(1).detach()
        shared = log_shares.exp()[:, None] * normalised
    if doubly is None:
        return bound
    if doubly.requires_grad:
        doubly.register_hook(lambda gradient: (1 - beta + beta * normalised)[..., None] * gradient)
    surrogate = (shared * log_weights).flatten(0, 1).sum(0)
    return bound.detach() + surrogate - surrogate.detach()
