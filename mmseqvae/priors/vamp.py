"""The VampPrior: posteriors of pseudo-inputs that are learnt with the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmseqvae.distributions.gaussian import Gaussian, GaussianMixture, parts
from mmseqvae.fusion import Encoded
from mmseqvae.priors.mixtures import MixturePrior
from mmseqvae.sequence import Sequence


class VampPrior(MixturePrior):
    """The mean of the posteriors of `components` pseudo-inputs, encoded anew at every step (Tomczak & Welling 2018).

    The pseudo-inputs are items of the training set, handed over by `start`: their frames are trained with the model,
    their tokens stay. Raises ValueError below one component, RuntimeError where it is used before `start`.
    """

    def __init__(self, components: int, latent: int) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"a VampPrior needs at least 1 component, got {components}")
        self.components, self.latent = components, latent
        self.views = nn.ModuleDict()
        self.encode: Callable[[Mapping[str, Sequence]], Encoded] | None = None  # the model's, which sets it

    def __str__(self) -> str:
        return f"VampPrior of {self.components} pseudo-inputs learnt with the model"

    @property
    def items_needed(self) -> int:  # type: ignore[override]
        return self.components

    def attach(self, encode: Callable[[Mapping[str, Sequence]], Encoded]) -> None:
        self.encode = encode

    def start(self, items: Mapping[str, Sequence]) -> None:
        """Take these `components` items as pseudo-inputs: {view: Sequence}."""
        wrong = {view: len(x) for view, x in items.items() if len(x) != self.components}
        if wrong or not items:
            raise ValueError(f"this VampPrior needs {self.components} items of every view, got {wrong or 'no view'}")
        self.views = nn.ModuleDict({view: _PseudoInput(items[view]) for view in sorted(items)})

    def mixture(self) -> GaussianMixture:
        if self.encode is None or not len(self.views):
            raise RuntimeError("a VampPrior must be part of a model and be given its pseudo-inputs (start) before use")
        q = self.encode({view: x() for view, x in self.views.items()}).posterior()
        log_weights, each = parts(q)  # [S, K], [S, K, D]
        return GaussianMixture(log_weights.flatten(), Gaussian(each.mean.flatten(0, 1), each.logvar.flatten(0, 1)))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Make room for the pseudo-inputs that the state holds, whichever their number of steps, then load."""
        start = f"{prefix}views."
        views = {key.removeprefix(start).split(".")[0] for key in state_dict if key.startswith(start)}
        for view in sorted(views):
            values, lengths, observed = (state_dict.get(f"{start}{view}.{part}") for part in _PseudoInput.parts)
            if values is not None and lengths is not None:
                room = None if observed is None else torch.zeros_like(observed)
                self.views[view] = _PseudoInput(Sequence(torch.zeros_like(values), torch.zeros_like(lengths), room))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _PseudoInput(nn.Module):
    """One view of the pseudo-inputs: frames are parameters, tokens are not."""

    parts = ("values", "lengths", "observed")

    def __init__(self, x: Sequence) -> None:
        super().__init__()
        values = x.filled()
        if values.is_floating_point():
            self.values = nn.Parameter(values.clone())
        else:
            self.register_buffer("values", values.clone())
        self.register_buffer("lengths", x.lengths.clone())
        self.register_buffer("observed", None if x.observed is None else x.observed.clone())
        self.lengths: Tensor
        self.observed: Tensor | None

    def forward(self) -> Sequence:
        return Sequence(self.values, self.lengths, self.observed)
