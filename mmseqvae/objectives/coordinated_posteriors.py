"""Objectives that hold the posteriors of single modalities against the joint one: coordinated, jmvae, mvtcae."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmseqvae.config.renamed_options import accepts_old_arguments
from mmseqvae.distributions.gaussian import Posterior, parts
from mmseqvae.model import Batch, MultimodalVAE
from mmseqvae.objectives.base import Terms, Weights, check_weights, counted, diagnostics, rate, register, weighted
from mmseqvae.objectives.mixtures import check_importance, over_parts, several_draws
from mmseqvae.priors.base import divergence


@register
@accepts_old_arguments("objective.options")
def coordinated(
    model: MultimodalVAE,
    batch: Batch,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    free_bits_item: float = 0.0,
    weights: Weights = None,
    coordination: float = 0.3,
    token_reconstruction: float = 1.0,
    self_reconstruction: float = 0.3,
    cross_reconstruction: float = 0.0,
    detach: bool = False,
    draws: int = 1,
) -> Terms:
    """The joint bound, with every single-modality posterior coordinated with the joint one. The default.

        sum_m w_m E_{q(z|x)} log p(x_m | z) - beta KL(q(z | x) || p(z))
        + sum_{m present} { sum_n a_mn w_n E_{q(z|x_m)} log p(x_n | z) - c KL(q(z | x) || q(z | x_m)) }

    The last term is JMVAE-kl's (Suzuki et al. 2017, eq. 5), with whatever the fusion makes as joint posterior. It makes
    q(z | x_m) cover *every* latent that the full observation could have meant, so that a word keeps the variety of its
    recordings; reconstructing frames from q(z | word) instead would pull it onto one average voice. a_mn of another n
    is `token_reconstruction` where n is a token modality, since a modality that determines them should say so, else
    `cross_reconstruction`. a_mm is `self_reconstruction`, a little, so that the decoder can do with what that encoder
    says; of a token modality the larger of `self_reconstruction` and `token_reconstruction`. detach: the joint
    posterior has no gradient from the last term, so that it need not give up what the single modality cannot know; with
    a product of experts and a learnt prior that diverges, since an expert then follows a product which holds it: use
    the fusion "joint". Terms that a single modality cannot add to (only one is present in a row) are dropped for that
    row. draws K: of the joint posterior; with several, the first line is the bound of `importance` with doubly
    reparameterised gradients (see there what they leave out where the posterior is a mixture), which asks less of the
    posterior's mould and so gives up less likelihood. Not a bound, except that its first line is one under the
    conditions of `elbo`, which is reported beside it. Raises ValueError for free bits with several draws, which have no
    KL of their own. With token_reconstruction 0, self_reconstruction 1, coordination 1 and draws 1 it is CRMVAE (Suzuki
    & Matsuo 2023) but for that paper's common factor 1 / (M + 1). The default c is small because a Gaussian q(z | x_m)
    is a poor mould: what it cannot hold, the joint posterior should not give up;
    `mmseqvae.inference.unimodal_posteriors` fits what can. It is as much as `self_reconstruction`, because what
    that term asks of single posteriors has to be held by something (docs/objectives.md).
    """
    check_weights(model, weights)
    encoded = model.encode(batch)
    q = encoded.posterior()
    if draws != 1:
        check_importance("dreg", draws, free_bits, free_bits_item)
    singles = {name: encoded.posterior([name]) for name in encoded.names}
    useful = {name: encoded.here(name) & encoded.several for name in singles}
    log_shares, distributions = parts(q)
    shared = q.rsample(1)[None] if draws == 1 else distributions.rsample(draws).transpose(0, 1)  # [S, K, B, D]
    draw = {name: single.rsample() for name, single in singles.items()}
    everywhere = torch.ones_like(log_shares[:1], dtype=torch.bool)
    here = everywhere if draws == 1 else (log_shares > -torch.inf).repeat_interleave(draws, 0)  # [S K, B]

    def writes_tokens(name: str) -> bool:
        return name in model.writable and model.modalities.writes_tokens(name)

    def share(source: str, written: str) -> float:
        if source == written:
            return max(self_reconstruction, token_reconstruction) if writes_tokens(written) else self_reconstruction
        return token_reconstruction if writes_tokens(written) else cross_reconstruction

    joint: dict[str, Tensor] = {}
    alone = {name: torch.zeros_like(shared[0, 0, :, 0]) for name in singles}
    for written in sorted(model.writable, key=lambda name: not writes_tokens(name)):
        sources = [name for name in singles if share(name, written)]
        z = torch.cat([shared.flatten(0, 1), *(draw[name][None] for name in sources)])
        counts = torch.cat([here, *(useful[name][None] for name in sources)])
        score = counted(model, batch, z, counts, [written]).get(written)
        if score is not None:  # the batch has it
            joint[written] = score[: len(here)].unflatten(0, shared.shape[:2])
            for name, scores in zip(sources, score[len(here) :], strict=True):
                alone[name] = alone[name] + share(name, written) * weighted({written: scores}, weights)

    others: dict[str, Tensor] = {}
    if draws == 1:
        joint = {name: score[0, 0] for name, score in joint.items()}
        prior = rate(q, model.training_prior, shared[0], free_bits, free_bits_item)
        objective, kl = weighted(joint, weights) - beta * prior.cost, prior.kl
    else:
        objective, kl, others = several_draws(model, q, shared, joint, weights, beta)
        joint = {name: over_parts(score, log_shares.exp()) for name, score in joint.items()}
    apart = _apart(q, singles, useful, shared[0] if draws == 1 else q.rsample(1), detach)
    for name in singles:
        objective = objective + torch.where(useful[name], alone[name], 0) - coordination * apart[name]
    bound = sum(joint.values(), -kl)
    return Terms(objective, bound, joint, kl, apart, **diagnostics(model, encoded, q, singles), others=others)


@register
def jmvae(
    model: MultimodalVAE,
    batch: Batch,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    free_bits_item: float = 0.0,
    weights: Weights = None,
    alpha: float = 0.1,
) -> Terms:
    """JMVAE-kl: ELBO(x) - alpha sum_m KL(q(z | x) || q(z | x_m)) (Suzuki et al. 2017, eq. 5).

    As published the fusion is a joint encoder; a product of experts will do. `coordinated` without reconstruction from
    single modalities; its terms are dropped as there. A bound on log p(x) under the conditions of `elbo`, since KLs are
    only subtracted.
    """
    return coordinated(
        model, batch, beta=beta, free_bits=free_bits, free_bits_item=free_bits_item, weights=weights,
        coordination=alpha, token_reconstruction=0.0, self_reconstruction=0.0,
    )  # fmt: skip


@register
def mvtcae(
    model: MultimodalVAE,
    batch: Batch,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    free_bits_item: float = 0.0,
    weights: Weights = None,
    alpha: float = 0.9,
) -> Terms:
    """Total correlation (MVTCAE, Hwang et al. 2021, eq. 7): M modalities are there to be read, each with an expert q_m.

        (M - alpha) / M sum_m w_m E_q log p(x_m | z) - beta [(1 - alpha) KL(q || p) + alpha / M sum_m KL(q || q_m)]

    As published q is the product of the experts without base expert, and alpha is 0.9. M counts what a row has; with
    one modality q = q_m and all is (1 - alpha) times the ELBO, with none it is that of the prior. Bounds a convex
    combination of total correlations of (x, z), not log p(x); with alpha 0 it is `elbo`. Free bits are those of
    KL(q || p) alone. Raises ValueError for an alpha that is no share.
    """
    check_weights(model, weights)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    encoded = model.encode(batch)
    q = encoded.posterior()
    experts = {name: encoded.expert(name) for name in encoded.names}
    z = q.rsample()
    scores = model.log_likelihood(z, batch)
    prior = rate(q, model.training_prior, z, free_bits, free_bits_item)
    apart = _apart(q, experts, {name: encoded.here(name) for name in experts}, z, False)
    count = encoded.present.sum(0).clamp(min=1).to(z)
    share = (count - alpha) / count
    views = torch.stack(list(apart.values())).sum(0) / count
    objective = share * weighted(scores, weights) - beta * ((1 - alpha) * prior.cost + alpha * views)
    bound = sum(scores.values(), -prior.kl)
    return Terms(objective, bound, scores, prior.kl, apart, **diagnostics(model, encoded, q))


def _apart(
    q: Posterior, others: Mapping[str, Posterior], useful: dict[str, Tensor], z: Tensor, detach: bool
) -> dict[str, Tensor]:
    """{name: KL(q || other)} in nats [B], 0 where not `useful`, by draws z from q where there is no closed form."""
    if detach:
        q, z = q.detach(), z.detach()
    return {name: torch.where(useful[name], divergence(q, other, z), 0) for name, other in others.items()}
