"""Ways to combine what several encoders believe about one latent: (experts, present) -> posterior.

A fusion is any callable that takes all M readable modalities at once, in the model's order: experts, a Gaussian
[M, ..., D], and what is present, a bool [M, ...] or [M, ..., D] (an expert may speak of some dimensions only: private
latents). It must give exactly N(0, I) wherever nothing is present, whatever NaN the absent experts hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product

import torch
from einops import rearrange
from torch import Tensor, nn

from mmseqvae.distributions.gaussian import Gaussian, GaussianMixture, Posterior
from mmseqvae.sequence import constant, full

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
    modalities = range(len(experts.mean))
    alone = [tuple(each == m for each in modalities) for m in modalities]
    members = constant((tuple(False for _ in modalities), *alone), torch.bool, present.device)
    return mixture_of_products(experts, present, members, poe_without_base)


def mopoe(experts: Gaussian, present: Tensor) -> GaussianMixture:
    """Uniform mixture over the non-empty subsets of the present experts of their products, each with base expert.

    Sutter et al. 2021, "Generalized multimodal ELBO", eq. 5. Shapes as for `poe`; parts: [2 ** M, ..., D], the first
    of them for rows with nothing present.
    """
    members = constant(tuple(product((False, True), repeat=len(experts.mean))), torch.bool, present.device)
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


def _said(experts: Gaussian, here: Tensor) -> Tensor:
    """Means and log-variances [M, ..., 2 D], zero where nothing is said."""
    return torch.cat([torch.where(here, experts.mean, 0), torch.where(here, experts.logvar, 0)], -1)


def _start_at_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class SampledMoPoE(nn.Module):
    """`mopoe`, which above four modalities draws subsets in training: their number is 2 ** M.

    subsets: at most as many a row and a step; all that is present is always one of them, the others include every
    present modality with probability 1/2. In evaluation all subsets count. Raises ValueError below 2 subsets.
    """

    def __init__(self, subsets: int = 16) -> None:
        super().__init__()
        if subsets < 2:
            raise ValueError(f"subsets must be at least 2, got {subsets}")
        self.subsets = subsets

    def forward(self, experts: Gaussian, present: Tensor) -> GaussianMixture:
        if not self.training or len(experts.mean) <= 4:
            return mopoe(experts, present)
        there = per_dimension(experts, present).any(-1)[None]  # [1, M, ...]
        drawn = torch.rand(self.subsets - 1, *there.shape[1:], device=there.device) < 0.5
        members = torch.cat([torch.zeros_like(there), there, drawn & there])
        return mixture_of_products(experts, present, members, poe)


class GeneralisedPoE(nn.Module):
    """Product of experts raised to learnt powers, one a modality and dimension (Cao & Fleet 2014, section 4).

        1 / v = 1 + sum_m a_m / v_m        mean = v * sum_m a_m mean_m / v_m

    The powers a [M, D] are positive and start at 1, where it equals `poe`.
    """

    def __init__(self, modalities: int, latent: int) -> None:
        super().__init__()
        self.log_power = nn.Parameter(torch.zeros(modalities, latent))

    def forward(self, experts: Gaussian, present: Tensor) -> Gaussian:
        between = [1] * (experts.mean.ndim - 2)
        log_power = self.log_power.reshape(len(self.log_power), *between, -1)
        return poe(Gaussian(experts.mean, experts.logvar - log_power), present)


class JointEncoder(nn.Module):
    """A learnt joint posterior where several modalities are present; one that is alone is its own answer.

    With it `coordinated` is JMVAE-kl (Suzuki et al. 2017). A perceptron reads what all experts say and who is present
    and corrects means and log-variances of `poe`, which it equals at the start.
    """

    def __init__(self, modalities: int, latent: int, hidden: int = 128) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(modalities * (2 * latent + 1), hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2 * latent),
        )
        _start_at_zero(self.net[-1])

    def forward(self, experts: Gaussian, present: Tensor) -> Gaussian:
        here = per_dimension(experts, present)
        there = here.any(-1, keepdim=True)
        read = rearrange(torch.cat([_said(experts, here), there.to(experts.mean)], -1), "m ... f -> ... (m f)")
        start, alone = poe(experts, here), poe_without_base(experts, here)
        mean, logvar = full(self.net(read)).chunk(2, -1)
        joint = here.any(0) & (there.sum(0) > 1)
        return Gaussian(
            torch.where(joint, start.mean + mean, alone.mean), torch.where(joint, start.logvar + logvar, alone.logvar)
        )


class AttentionFusion(nn.Module):
    """Attention pooling over the present experts (Hirt et al. 2024, "permutation-invariant encoders", section 3).

    Every expert becomes a vector that tells its modality; a learnt query attends to those that are present, and a
    perceptron turns what it found into the posterior. N(0, I) where nothing is present.
    """

    def __init__(self, modalities: int, latent: int, hidden: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.to_token = nn.Linear(2 * latent, hidden)
        self.modality = nn.Parameter(0.1 * torch.randn(modalities, hidden))
        self.query = nn.Parameter(0.1 * torch.randn(1, 1, hidden))
        self.attention = nn.MultiheadAttention(hidden, heads, batch_first=True)
        self.to_latent = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))

    def forward(self, experts: Gaussian, present: Tensor) -> Gaussian:
        here = per_dimension(experts, present)
        rows = here.shape[1:-1]
        said = rearrange(_said(experts, here).flatten(1, -2), "m n f -> n m f")
        there = rearrange(here.any(-1).flatten(1), "m n -> n m")
        silent = ~there.any(1, keepdim=True)  # somebody must be attended to, or all is NaN; replaced below
        tokens = self.to_token(said) + self.modality
        query = self.query.expand(len(tokens), -1, -1)
        found, _ = self.attention(query, tokens, tokens, key_padding_mask=~(there | silent), need_weights=False)
        mean, logvar = full(self.to_latent(found[:, 0])).reshape(*rows, -1).chunk(2, -1)
        known = here.any(0)
        return Gaussian(torch.where(known, mean, 0), torch.where(known, logvar, 0))


FUSIONS: dict[str, Callable[[int, int], Fusion]] = {  # (modalities, latent) -> fusion
    "poe": lambda modalities, latent: poe,
    "poe-without-base": lambda modalities, latent: poe_without_base,
    "generalised-poe": GeneralisedPoE,
    "moe": lambda modalities, latent: moe,
    "mopoe": lambda modalities, latent: SampledMoPoE(),
    "joint": JointEncoder,
    "attention": AttentionFusion,
}


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
        asked = constant(tuple(name in chosen for name in self.names), torch.bool, self.present.device)
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
    def known(self) -> Tensor:
        """[B, D] bool: somebody who is there speaks of the dimension; of the others the posterior knows nothing."""
        return per_dimension(self.experts, self.said).any(0)

    @property
    def several(self) -> Tensor:
        """[B] bool: more than one modality is there."""
        return self.present.sum(0) > 1

    def __getitem__(self, rows: Tensor) -> Encoded:
        """The rows chosen by a mask or by numbers."""
        return replace(self, experts=self.experts[:, rows], present=self.present[:, rows], like=self.like[rows])

    @classmethod
    def join(cls, pieces: list[Encoded]) -> Encoded:
        """The rows of several batches as those of one."""
        first = pieces[0]
        mean, logvar = (torch.cat([getattr(p.experts, key) for p in pieces], 1) for key in ("mean", "logvar"))
        present, like = torch.cat([p.present for p in pieces], 1), torch.cat([p.like for p in pieces])
        return cls(Gaussian(mean, logvar), present, first.names, first.fuse, like, first.speaks)
