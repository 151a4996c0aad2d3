"""Ways to combine what several encoders believe about one latent: (experts, present) -> posterior.

A fusion is any callable that takes all M readable modalities at once, in the model's order: experts, a Gaussian
[M, ..., D], and what is present, a bool [M, ...] or [M, ..., D] (an expert may speak of some dimensions only: private
latents). It must give exactly N(0, I) wherever nothing is present, whatever NaN the absent experts hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from mmseqvae.gaussian import Gaussian, GaussianMixture, Posterior

Fusion = Callable[[Gaussian, Tensor], Posterior]


def poe(experts: Gaussian, present: Tensor) -> Gaussian:
    """Product of Gaussian experts with N(0, I) as base expert (Wu & Goodman 2018, eq. 4; Cao & Fleet 2014).

    experts: [M, ..., D]; present: [M, ...] or [M, ..., D] bool. Returns [..., D].

        1 / v = 1 + sum_m 1 / v_m        mean = v * sum_m mean_m / v_m

    computed as a softmax over log-precisions: the base expert has log-precision 0 and an absent expert minus infinity,
    so that with nothing present the answer is exactly N(0, I), whatever NaN the absent experts hold.
    """
    here = per_dimension(experts, present)
    log_precision = torch.where(here, -experts.logvar, -torch.inf)
    mean = torch.where(here, experts.mean, 0)
    log_precision = torch.cat([torch.zeros_like(log_precision[:1]), log_precision])
    weight = log_precision.softmax(0)[1:]  # the base expert's mean is 0
    return Gaussian((weight * mean).sum(0), -log_precision.logsumexp(0))


def poe_without_base(experts: Gaussian, present: Tensor) -> Gaussian:
    """Product of the present experts alone, as MVTCAE has it (Hwang et al. 2021, eq. 11); N(0, I) where there is none.

    A single present expert is its own answer. Shapes as for `poe`.
    """
    here = per_dimension(experts, present)
    nobody = ~here.any(0, keepdim=True)
    log_precision = torch.where(here, -experts.logvar, -torch.inf)
    mean = torch.where(here, experts.mean, 0)
    log_precision = torch.cat([torch.where(nobody, 0.0, -torch.inf).to(mean), log_precision])
    weight = log_precision.softmax(0)[1:]
    return Gaussian((weight * mean).sum(0), -log_precision.logsumexp(0))


def moe(experts: Gaussian, present: Tensor) -> GaussianMixture:
    """Uniform mixture of the present experts, without base expert (Shi et al. 2019, eq. 1); N(0, I) if there is none.

    Shapes as for `poe`; parts: [1 + M, ..., D], the first of them for rows with nothing present.
    """
    modalities = len(experts.mean)
    members = torch.cat([torch.zeros(1, modalities), torch.eye(modalities)]).bool().to(present.device)
    return mixture_of_products(experts, present, members, poe_without_base)


def mopoe(experts: Gaussian, present: Tensor) -> GaussianMixture:
    """Uniform mixture over the non-empty subsets of the present experts of their products, each with base expert.

    Sutter et al. 2021, "Generalized multimodal ELBO", eq. 5. Shapes as for `poe`; parts: [2 ** M, ..., D], the first
    of them for rows with nothing present.
    """
    members = torch.tensor(list(product([False, True], repeat=len(experts.mean))), device=present.device)
    return mixture_of_products(experts, present, members, poe)


def mixture_of_products(
    experts: Gaussian, present: Tensor, members: Tensor, multiply: Callable[[Gaussian, Tensor], Gaussian]
) -> GaussianMixture:
    """Uniform mixture, row by row, of products over those subsets `members` that are wholly present.

    members: [S, M] bool, or [S, M, ...] where rows differ; the empty subset, which must be among them, is used where
    nothing is present and nowhere else. A dimension that not all present experts speak of is private: every part
    holds all that is known about it, whichever subset it stands for (Palumbo et al. 2023, MMVAE+, section 3).
    """
    here = per_dimension(experts, present)  # [M, ..., D]
    there = here.any(-1)  # [M, ...]
    rows = there.shape[1:]
    members = members.reshape(*members.shape, *[1] * (2 + len(rows) - members.ndim))  # [S, M, ...]
    empty = ~members.any(1)
    used = torch.where(empty, ~there.any(0), (~members | there).all(1))  # [S, ...]
    private = ~(here == there[..., None]).all(0)  # [..., D]
    keep = (here & (members[..., None] | private)).transpose(0, 1)  # [M, S, ..., D]
    every = Gaussian(*(t[:, None].expand(keep.shape) for t in (experts.mean, experts.logvar)))
    return GaussianMixture(torch.where(used, 0.0, -torch.inf).to(experts.mean), multiply(every, keep))


def per_dimension(experts: Gaussian, present: Tensor) -> Tensor:
    """`present` [M, ...] or [M, ..., D] -> [M, ..., D]."""
    return (present if present.ndim == experts.mean.ndim else present[..., None]).expand_as(experts.mean)


@dataclass(frozen=True)
class Encoded:
    """What the encoders said about a batch, each having run once; every subset posterior is arithmetic on it.

    experts: [M, B, D] in the order of `names`, anything where `present` [M, B] is False; fuse: how they are combined;
    like: [B, D], a tensor of the right type and place. speaks: [M, D] bool where experts speak of some dimensions of
    the latent only.
    """

    experts: Gaussian
    present: Tensor
    names: tuple[str, ...]
    fuse: Fusion
    like: Tensor
    speaks: Tensor | None = None

    def posterior(self, given: Iterable[str] | None = None) -> Posterior:
        """q(z | x_given) by `fuse`, [B, D]; `given` defaults to everything that was encoded."""
        if given is None:
            return self.fuse(self.experts, self.said)
        chosen = {given} if isinstance(given, str) else set(given)
        asked = torch.tensor([name in chosen for name in self.names], device=self.present.device)
        return self.fuse(self.experts, self.said & asked.reshape(-1, *[1] * (self.said.ndim - 1)))

    @property
    def said(self) -> Tensor:
        """What each expert speaks of: [M, B], or [M, B, D] where the model has private dimensions."""
        return self.present if self.speaks is None else self.present[..., None] & self.speaks[:, None]

    def expert(self, name: str) -> Gaussian:
        """What the encoder of one modality said, before any fusion: [B, D], N(0, I) where it said nothing."""
        index = self.names.index(name)
        here = per_dimension(self.experts, self.said)[index]
        raw = self.experts[index]
        return Gaussian(torch.where(here, raw.mean, 0), torch.where(here, raw.logvar, 0))

    def here(self, name: str) -> Tensor:
        """[B] bool: the modality is there."""
        return self.present[self.names.index(name)]

    @property
    def several(self) -> Tensor:
        """[B] bool: more than one modality is there."""
        return self.present.sum(0) > 1

    @classmethod
    def join(cls, pieces: list[Encoded]) -> Encoded:
        """The rows of several batches as those of one."""
        first = pieces[0]
        mean, logvar = (torch.cat([getattr(p.experts, key) for p in pieces], 1) for key in ("mean", "logvar"))
        present, like = torch.cat([p.present for p in pieces], 1), torch.cat([p.like for p in pieces])
        return cls(Gaussian(mean, logvar), present, first.names, first.fuse, like, first.speaks)
