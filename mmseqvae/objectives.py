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
from mmseqvae.gaussian import Gaussian, Law, Posterior
from mmseqvae.model import Batch, MultimodalVAE
from mmseqvae.priors import Prior, StandardNormal, divergence


@dataclass(frozen=True)
class Terms:
    """What an objective is made of, all [B] nats unless said.

    objective: what is maximised. elbo: the plain bound on log p(x) under the prior that is trained with, with beta 1,
    no free bits and no weights, whatever the objective. reconstruction: {modality: log p(x_m | z)} with z from the
    joint posterior. kl: KL(q(z | x) || prior). coordination: {modality: KL(q(z | x) || q(z | x_m))}. means: {modality
    or "joint": posterior means [B, D]}; expert_kl: {modality: KL(q(z | x_m) || prior)}: both show a collapse while it
    happens. A KL that has no closed form (see `divergence`) is estimated by the draw that is decoded.
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
    """The joint evidence lower bound, sum_m E_q log p(x_m | z) - beta KL(q(z | x) || prior).

    A bound on log p(x) when beta >= 1, no free bits and weights of 1 (Kingma & Welling 2014, eq. 3; Wu & Goodman 2018,
    eq. 2). Trained on it alone, a product of experts does not learn to generate one modality from another.
    """
    _check_weights(model, weights)
    encoded = model.encode(batch)
    q = encoded.posterior()
    z = q.rsample()
    scores = model.log_likelihood(z, batch)
    kl = _kl(q, model.training_prior, z)
    objective = _weighted(scores, weights) - beta * floored(kl, free_bits)
    return Terms(objective, sum(scores.values(), -kl.sum(-1)), scores, kl.sum(-1), **_diagnostics(encoded, q, model))


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

        sum_m w_m E_{q(z|x)} log p(x_m | z) - beta KL(q(z | x) || prior)
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
    singles = {name: encoded.posterior([name]) for name in encoded.names}
    useful = {name: encoded.several & encoded.here(name) for name in singles}

    tokens = [name for name in model.writable if isinstance(model.modalities[name].decoder, TokenDecoder)]
    frames = [name for name in model.writable if name not in tokens]
    z = torch.stack([q.rsample(), *(single.rsample() for single in singles.values())])
    scores = model.log_likelihood(z, batch, tokens)  # {name: [1 + M, B]}, one call a decoder
    joint = {name: score[0] for name, score in scores.items()} | model.log_likelihood(z[0], batch, frames)
    kl = _kl(q, model.training_prior, z[0])
    apart = {name: torch.where(useful[name], divergence(q, single, z[0]), 0) for name, single in singles.items()}

    objective = _weighted(joint, weights) - beta * floored(kl, free_bits)
    for index, name in enumerate(singles, start=1):
        alone = _weighted({token: score[index] for token, score in scores.items()}, weights)
        objective = objective + torch.where(useful[name], alone, 0) - coordination * apart[name]
    return Terms(
        objective,
        sum(joint.values(), -kl.sum(-1)),
        joint,
        kl.sum(-1),
        apart,
        **_diagnostics(encoded, q, model, singles),
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


def _kl(q: Law, prior: Prior, z: Tensor) -> Tensor:
    """KL(q || prior) per dimension [B, D] where that has a closed form, else its estimate from z ~ q as one, [B, 1]."""
    if isinstance(q, Gaussian) and isinstance(prior, StandardNormal):
        return q.kl()
    return divergence(q, prior, z)[:, None]


def _diagnostics(
    encoded: Encoded, q: Law, model: MultimodalVAE, singles: Mapping[str, Posterior] | None = None
) -> dict[str, dict[str, Tensor]]:
    """Posterior means and KLs, joint and per modality, without gradient. Missing rows are NaN."""
    with torch.no_grad():
        singles = singles or {name: encoded.posterior([name]) for name in encoded.names}
        means, kls = {"joint": q.mean.detach()}, {}
        for name, single in singles.items():
            here = encoded.here(name)
            exact = isinstance(single, Gaussian) and model.learnt is None
            z = single.mean if exact else single.rsample()  # an exact KL needs no draw
            means[name] = torch.where(here[:, None], single.mean.detach(), torch.nan)
            kls[name] = torch.where(here, divergence(single, model.training_prior, z).detach(), torch.nan)
        return {"means": means, "expert_kl": kls}


OBJECTIVES = {"coordinated": coordinated, "elbo": elbo}
