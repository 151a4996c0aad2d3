"""What training maximises: functions (model, batch, ...) -> Terms in unreduced nats per item.

A new objective is one more function with `@register` in one of these files and one test. Nothing is averaged or
rescaled; the training step does that. Every objective takes beta, free_bits, free_bits_item and weights, and what it
names besides. What the papers call a model is a fusion and an objective here:

| paper | fusion | objective |
|---|---|---|
| MVAE (Wu & Goodman 2018) | poe | mvae |
| MMVAE (Shi et al. 2019) | moe | mixture, or importance for K > 1 draws |
| MoPoE (Sutter et al. 2021) | mopoe | mixture with tight=False, stratified=False |
| MVTCAE (Hwang et al. 2021) | poe-without-base | mvtcae |
| JMVAE (Suzuki et al. 2017) | joint | jmvae |
| TELBO (Vedantam et al. 2018) | joint | telbo |
| JNF (Senellart et al. 2023) | joint | elbo, conditionals fitted after training |
| CVAE (Sohn et al. 2015) | joint or poe | cvae |
| CRMVAE (Suzuki & Matsuo 2023) | poe | coordinated with token_reconstruction=0, self_reconstruction=1, coordination=1 |
| DMVAE (Lee & Pavlovic 2021) | poe, private latents | dmvae |
| MMVAE+ (Palumbo et al. 2023) | moe, private latents | mmvae_plus |
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from mmseqvae.objectives.base import OBJECTIVES, Objective, Terms, floored, register, weights_by_dimension
from mmseqvae.objectives.bounds import elbo, mvae, telbo
from mmseqvae.objectives.conditional import cvae
from mmseqvae.objectives.coordinated_posteriors import coordinated, jmvae, mvtcae
from mmseqvae.objectives.mixtures import importance, mixture
from mmseqvae.objectives.private_latents import dmvae, mmvae_plus

__all__ = [
    "OBJECTIVES", "Objective", "Terms", "chosen", "coordinated", "cvae", "dmvae", "elbo", "floored", "importance",
    "jmvae", "mixture", "mmvae_plus", "mvae", "mvtcae", "register", "telbo",
    "weights_by_dimension",
]  # fmt: skip

COMMON = {"beta", "free_bits", "free_bits_item", "weights"}


def chosen(name: str, options: Mapping[str, Any]) -> Objective:
    """The objective of that name. Raises ValueError for a name or an option that is not known, or one of another type
    or out of its range.

    A whole number will do where a fraction is meant.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {name!r}")
    parameters = inspect.signature(OBJECTIVES[name]).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in COMMON}
    for option, value in options.items():
        if option not in own:
            raise ValueError(f"the objective {name} has no option {option!r}; it has {', '.join(own) or 'none'}")
        kind = type(own[option])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"the option {option} of {name} must be of type {kind.__name__}, got {value!r}")
        if kind in (int, float) and not 0 <= value < math.inf:
            raise ValueError(f"the option {option} of {name} must be at least 0 and finite, got {value}")
    return OBJECTIVES[name]
