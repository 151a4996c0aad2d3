"""Flexible q(z | x_m) for one modality alone, fitted after training to the frozen joint posterior.

A Gaussian q(z | word) must either cover the voices that a word was said in, and the holes between them, or lose some.
What is fitted here keeps them apart. Joint Normalizing Flows (Senellart et al. 2023, section 3.2) does likewise: first
the joint model, then the conditionals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmseqvae.distributions.gaussian import Distribution, Gaussian
from mmseqvae.fusion import Encoded
from mmseqvae.priors.flows import LinearMap, MixtureFlow, fit_by_likelihood, seeded
from mmseqvae.priors.mixtures import fit_mixture

KINDS = {"mixture": 0, "flow": 3}  # how many layers of a flow follow the mixture
LEAST = 20  # items from which a conditional can be fitted


class Conditional(nn.Module):
    """q(z | x_m), read off what the encoder of modality m says: its means and log-variances.

    kind: "mixture" (a mixture density network) or "flow" (a flow behind it). Raises ValueError for another kind.
    """

    def __init__(self, latent: int, kind: str = "mixture", components: int = 10) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        self.kind, self.components = kind, components
        self.net = MixtureFlow(latent, components, context=2 * latent, transforms=KINDS[kind])

    def forward(self, expert: Gaussian) -> Distribution:
        """One distribution a row: expert [B, D] -> rsample, log_prob, mean, variance over [B, D]."""
        return self.net.distribution(context_of(expert))


def context_of(expert: Gaussian) -> Tensor:
    """[..., D] -> [..., 2 D]."""
    return torch.cat([expert.mean, expert.logvar], -1)


@torch.no_grad()
def fit_conditional(
    name: str,
    train: Encoded,
    valid: Encoded | None = None,
    *,
    kind: str = "mixture",
    components: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Conditional, float]:
    """Fit q(z | x_name) to draws from the joint posterior of the items where `name` is not alone.

    It maximises E_{q(z | x)} log q(z | x_name), drawn anew every epoch, and stops where that of `valid` has been
    highest; without `valid` every tenth item is held out. components: the most that are tried, see `fit_mixture`.
    Returns it with that figure, in nats. Raises ValueError for an unknown kind and for fewer than LEAST such items.
    """
    together = _together(name, train)
    held = _together(name, valid) if valid is not None else together[9::10]
    if valid is None:
        together = together[torch.arange(len(together), device=together.device) % 10 != 9]
    if len(together) < LEAST or not len(held):
        raise ValueError(
            f"q(z | {name}) is fitted to items that have {name} and something else: got {len(together)}, "
            f"need {LEAST}, and {len(held)} to stop by, need 1"
        )
    contexts = [context_of(e.expert(name)[rows]) for e, rows in ((train, together), (valid or train, held))]
    joint = train.posterior()[together]
    generator = torch.Generator(joint.mean.device).manual_seed(seed)
    z = joint.rsample(generator=generator)
    stop = (train if valid is None else valid).posterior()[held].rsample(generator=generator)
    line = LinearMap.through(contexts[0], z)  # what it leaves unexplained is alike for all contexts, to begin with
    start = fit_mixture(z - line(contexts[0]), components, seed, progress, stop - line(contexts[1]))
    with seeded(seed):
        conditional = Conditional(joint.mean.shape[-1], kind, len(start.log_weights)).to(joint.mean)
    conditional.net.begin(z, start.mixture(), line)
    reached = fit_by_likelihood(
        conditional.net, lambda noise: joint.rsample(generator=noise), stop, *contexts, seed=seed, progress=progress
    )
    return conditional, reached


def _together(name: str, encoded: Encoded) -> Tensor:
    """Rows in which a modality is there and not alone."""
    return (encoded.here(name) & encoded.several).nonzero().squeeze(-1)


@dataclass(frozen=True)
class SelectedDistribution:
    """One distribution a row, chosen among several: `which` [B] numbers `distributions`, each over [B, D]."""

    distributions: list[Distribution]
    which: Tensor

    def rsample(self, n: int | None = None, generator: torch.Generator | None = None, noise: float = 1.0) -> Tensor:
        """Draws [B, D] when `n` is None, else [n, B, D]; noise as the distributions take it."""
        return self._pick(
            [distribution.rsample(n, generator, noise) for distribution in self.distributions], self.which[:, None]
        )

    def log_prob(self, z: Tensor) -> Tensor:
        """Nats, z [..., B, D] -> [..., B]."""
        return self._pick([distribution.log_prob(z) for distribution in self.distributions], self.which)

    @property
    def mean(self) -> Tensor:
        return self._pick([distribution.mean for distribution in self.distributions], self.which[:, None])

    @property
    def variance(self) -> Tensor:
        return self._pick([distribution.variance for distribution in self.distributions], self.which[:, None])

    def __getitem__(self, rows: Any) -> SelectedDistribution:
        return SelectedDistribution([distribution[rows] for distribution in self.distributions], self.which[rows])

    def _pick(self, found: list[Tensor], which: Tensor) -> Tensor:
        chosen = found[0]
        for number, values in enumerate(found[1:], start=1):
            chosen = torch.where(which == number, values, chosen)
        return chosen


def answer(encoded: Encoded, conditionals: nn.ModuleDict) -> Distribution:
    """The posterior of every row: of a modality that is alone its conditional, where there is one; else the fusion."""
    fused: Distribution = encoded.posterior()
    if not len(conditionals):
        return fused
    distributions, which = [fused], torch.zeros(len(encoded.like), dtype=torch.long, device=encoded.like.device)
    for name, conditional in conditionals.items():
        alone = encoded.here(name) & ~encoded.several
        if alone.any():
            which = torch.where(alone, len(distributions), which)
            distributions.append(conditional(encoded.expert(name)))
    if len(distributions) == 2 and which.all():
        return distributions[1]
    return SelectedDistribution(distributions, which) if len(distributions) > 1 else fused
