"""What every objective returns, and what several of them need: KL with free bits, weights, diagnostics, a register."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmseqvae.distributions.gaussian import Distribution, Gaussian, Posterior
from mmseqvae.fusion import Encoded
from mmseqvae.model import Batch, MultimodalVAE
from mmseqvae.priors.base import Prior, StandardNormal, divergence

Weights = Mapping[str, float] | None

SPARE = 0.1  # of the draws that decoders run on anyway, rather than be called once more


@dataclass(frozen=True)
class Terms:
    """What an objective is made of, all [B] nats unless said.

    objective: what is maximised. elbo: the plain bound on log p(x) under the prior that the model is trained with,
    with beta 1, no free bits and no weights, whatever the objective. reconstruction: {modality: log p(x_m | z)} and
    kl: KL(q(z | x) || prior), of which it is made. coordination: {modality: KL(q(z | x) || q(z | x_m))}. means:
    {modality or "joint": posterior means [B, D]}; expert_kl: {modality: KL(q(z | x_m) || prior)}: both show a collapse
    while it happens. others: what else an objective has to tell, such as {"effective_draws": from 1 to K}.
    """

    objective: Tensor
    elbo: Tensor
    reconstruction: dict[str, Tensor]
    kl: Tensor
    coordination: dict[str, Tensor] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)
    expert_kl: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)


Objective = Callable[..., Terms]
OBJECTIVES: dict[str, Objective] = {}


def register(objective: Objective) -> Objective:
    """Make an objective known to training under the function's own name."""
    OBJECTIVES[objective.__name__] = objective
    return objective


@dataclass(frozen=True)
class Rate:
    """KL(q || prior) as it is, and what the objective is charged for it, [B] nats."""

    kl: Tensor
    cost: Tensor


def rate(q: Distribution, prior: Prior, z: Tensor, free_bits: float = 0.0, free_bits_item: float = 0.0) -> Rate:
    """KL(q || prior) in nats, and what it costs after free bits: q [B, D], draws z [..., B, D] from it -> two of [B].

    free_bits: nats a dimension, see `floored`; free_bits_item: nats an item, max(free_bits_item, KL) for each.
    Raises ValueError for free bits a dimension where the KL is no sum over dimensions.
    """
    if isinstance(q, Gaussian) and isinstance(prior, StandardNormal):
        each = q.kl()
        kl, cost = each.sum(-1), floored(each, free_bits)
    elif free_bits > 0:
        raise ValueError(
            "free_bits counts nats a dimension, which needs a Gaussian posterior and the prior N(0, I): "
            'use free_bits_item, or the prior "standard"'
        )
    else:
        kl = cost = divergence(q, prior, z)
    return Rate(kl, cost.clamp(min=free_bits_item) if free_bits_item > 0 else cost)


def floored(kl: Tensor, free_bits: float) -> Tensor:
    """sum_d max(free_bits, mean over the batch of KL_d), written per item: [B, D] nats -> [B].

    Its batch mean is that of Kingma et al. 2016, eq. 15: a dimension below `free_bits` costs that much and has no
    gradient.
    """
    if free_bits <= 0:
        return kl.sum(-1)
    return torch.where(kl.mean(0) < free_bits, free_bits, kl).sum(-1)


def check_weights(model: MultimodalVAE, weights: Weights) -> None:
    """Raise ValueError for weights of what the model does not write."""
    strange = sorted((weights or {}).keys() - set(model.writable))
    if strange:
        raise ValueError(f"weights name {strange}, but this model writes {model.writable}")


def weighted(scores: Mapping[str, Tensor], weights: Weights) -> Tensor:
    """sum_m w_m scores_m; a weight that is not given is 1."""
    total = sum((weights or {}).get(name, 1.0) * score for name, score in scores.items())
    return torch.as_tensor(total)


def counted(
    model: MultimodalVAE, batch: Batch, z: Tensor, counts: Tensor, want: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """`model.log_likelihood` of draws z [S, ..., B, D] where `counts` [S, B] says, 0 elsewhere: {name: [S, ..., B]}.

    A CPU decodes what counts alone, parts that count in the same rows in one call. Where a GPU would be waited for, or
    SPARE of the work at most be saved, all go through the decoder in one call, and what does not count has any value.
    """
    if counts.device.type != "cpu" or float((~counts).float().mean()) <= SPARE:
        return model.log_likelihood(z, batch, want)
    alike: dict[tuple[bool, ...], list[int]] = {}
    for place, rows in enumerate(counts.tolist()):
        alike.setdefault(tuple(rows), []).append(place)
    order = torch.tensor([place for places in alike.values() for place in places]).argsort()
    found: dict[str, list[Tensor]] = {}
    for rows, places in alike.items():
        some = batch if all(rows) else {view: x.where(counts[places[0]]) for view, x in batch.items()}
        for name, scores in model.log_likelihood(z[places], some, want).items():
            found.setdefault(name, []).append(scores)
    return {name: torch.cat(scores)[order] for name, scores in found.items()}


def weights_by_dimension(sizes: Mapping[str, float]) -> dict[str, float]:
    """Weights that make modalities of different size count alike: the largest size over a modality's own.

    sizes: numbers that a modality is made of, mean steps times channels. Shi et al. 2019, section 4.2, weigh likewise.
    """
    return {name: max(sizes.values()) / size for name, size in sizes.items()}


def diagnostics(
    model: MultimodalVAE, encoded: Encoded, q: Distribution, singles: Mapping[str, Posterior] | None = None
) -> dict[str, dict[str, Tensor]]:
    """Posterior means and KLs, joint and per modality, without gradient. Missing rows are NaN."""
    with torch.no_grad():
        singles = singles or {name: encoded.posterior([name]) for name in encoded.names}
        means, kls = {"joint": q.mean.detach()}, {}
        for name, single in singles.items():
            here = encoded.here(name)
            means[name] = torch.where(here[:, None], single.mean.detach(), torch.nan)
            # draws are needed for what has no closed form only
            exact = isinstance(single, Gaussian) and isinstance(model.training_prior, StandardNormal)
            z = single.mean if exact else single.rsample()
            kls[name] = torch.where(here, rate(single, model.training_prior, z).kl.detach(), torch.nan)
        return {"means": means, "expert_kl": kls}
