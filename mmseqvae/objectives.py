"""What training maximises: functions (model, batch, ...) -> Terms in unreduced nats per item.

A new objective is one more function here and one test. Nothing is averaged or rescaled; the training step does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmseqvae.decoders import TokenDecoder
from mmseqvae.fusion import Encoded
from mmseqvae.gaussian import Gaussian
from mmseqvae.model import Batch, MultimodalVAE


@dataclass(frozen=True)
class Terms:
    """What an objective is made of, all [B] nats unless said.

    objective: what is maximised. elbo: the plain bound on log p(x) under N(0, I), with beta 1, no free bits and no
    weights, whatever the objective. reconstruction: {modality: log p(x_m | z)} with z from the joint posterior.
    kl: KL(q(z | x) || N(0, I)). coordination: {modality: KL(q(z | x) || q(z | x_m))}. mean: {modality or "joint":
    posterior means [B, D]}; expert_kl: {modality: KL(q(z | x_m) || N(0, I))}: both show a collapse while it happens.
    """

    objective: Tensor
    elbo: Tensor
    reconstruction: dict[str, Tensor]
    kl: Tensor
    coordination: dict[str, Tensor] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)
    expert_kl: dict[str, Tensor] = field(default_factory=dict)


def elbo(
    model: MultimodalVAE,
    batch: Batch,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    weights: Mapping[str, float] | None = None,
) -> Terms:
    """The joint evidence lower bound, sum_m E_q log p(x_m | z) - beta KL(q(z | x) || N(0, I)).

    A bound on log p(x) when beta >= 1, no free bits and weights of 1 (Kingma & Welling 2014, eq. 3; Wu & Goodman 2018,
    eq. 2). Trained on it alone, a product of experts does not learn to generate one modality from another.
    """
    _check_weights(model, weights)
    encoded = model.encode(batch)
    q = encoded.posterior()
    scores = model.log_likelihood(q.rsample(), batch)
    kl = q.kl()
    objective = _weighted(scores, weights) - beta * floored(kl, free_bits)
    return Terms(objective, sum(scores.values(), -kl.sum(-1)), scores, kl.sum(-1), **_diagnostics(encoded, q))


def coordinated(
    model: MultimodalVAE,
    batch: Batch,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    weights: Mapping[str, float] | None = None,
    coordination: float = 1.0,
) -> Terms:
    """The joint bound, with every single-modality posterior coordinated with the joint one. The default.

        sum_m w_m E_{q(z|x)} log p(x_m | z) - beta KL(q(z | x) || N(0, I))
        + sum_{m present} { sum_{token modalities t} w_t E_{q(z|x_m)} log p(x_t | z)
                            - c KL(q(z | x) || q(z | x_m)) }

    The last term is JMVAE-kl's (Suzuki et al. 2017, eq. 5), with the product of experts as joint posterior. It makes
    q(z | x_m) cover *every* latent that the full observation could have meant, so that a word keeps the variety of its
    recordings; reconstructing frames from q(z | word) instead would pull it onto one average voice. Tokens are
    reconstructed from every posterior, since a modality that determines them should say so. Terms that a single
    modality cannot add to (only one is present in a row) are dropped for that row. Not a bound, except that its
    first line is one under the conditions of `elbo`, which is reported beside it.
    """
    _check_weights(model, weights)
    encoded = model.encode(batch)
    q = encoded.posterior()
    singles = {name: encoded.posterior([name]) for name in encoded.experts}
    several = torch.as_tensor(sum(p.long() for p in encoded.present.values())) > 1
    useful = {name: several & encoded.present[name] for name in singles}

    tokens = [name for name in model.writable if isinstance(model.modalities[name].decoder, TokenDecoder)]
    frames = [name for name in model.writable if name not in tokens]
    z = torch.stack([q.rsample(), *(single.rsample() for single in singles.values())])
    scores = model.log_likelihood(z, batch, tokens)  # {name: [1 + M, B]}, one call a decoder
    joint = {name: score[0] for name, score in scores.items()} | model.log_likelihood(z[0], batch, frames)
    kl = q.kl()
    apart = {name: torch.where(useful[name], q.kl(single).sum(-1), 0) for name, single in singles.items()}

    objective = _weighted(joint, weights) - beta * floored(kl, free_bits)
    for index, name in enumerate(singles, start=1):
        alone = _weighted({token: score[index] for token, score in scores.items()}, weights)
        objective = objective + torch.where(useful[name], alone, 0) - coordination * apart[name]
    return Terms(
        objective, sum(joint.values(), -kl.sum(-1)), joint, kl.sum(-1), apart, **_diagnostics(encoded, q, singles)
    )


def floored(kl: Tensor, free_bits: float) -> Tensor:
    """sum_d max(free_bits, mean over the batch of KL_d), written per item: [B, D] nats -> [B].

    Its batch mean is that of Kingma et al. 2016, eq. 15: a dimension below `free_bits` costs that much and has no
    gradient.
    """
    if free_bits <= 0:
        return kl.sum(-1)
    return torch.where(kl.mean(0) < free_bits, free_bits, kl).sum(-1)


def _check_weights(model: MultimodalVAE, weights: Mapping[str, float] | None) -> None:
    strange = sorted((weights or {}).keys() - set(model.writable))
    if strange:
        raise ValueError(f"weights name {strange}, but this model writes {model.writable}")


def _weighted(scores: Mapping[str, Tensor], weights: Mapping[str, float] | None) -> Tensor:
    total = sum((weights or {}).get(name, 1.0) * score for name, score in scores.items())
    return torch.as_tensor(total)


def _diagnostics(
    encoded: Encoded, q: Gaussian, singles: Mapping[str, Gaussian] | None = None
) -> dict[str, dict[str, Tensor]]:
    """Posterior means and KLs, joint and per modality, without gradient. Missing rows are NaN."""
    with torch.no_grad():
        singles = singles or {name: encoded.posterior([name]) for name in encoded.experts}
        means, kls = {"joint": q.mean.detach()}, {}
        for name, single in singles.items():
            here = encoded.present[name]
            means[name] = torch.where(here[:, None], single.mean.detach(), torch.nan)
            kls[name] = torch.where(here, single.kl().sum(-1).detach(), torch.nan)
        return {"means": means, "expert_kl": kls}


OBJECTIVES = {"coordinated": coordinated, "elbo": elbo}
