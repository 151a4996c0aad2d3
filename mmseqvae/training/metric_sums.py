"""Means over the items of an epoch and of all processes, kept as sums on the device: no step waits for them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmseqvae.distributed import total


class MetricSums:
    """Sums and counts of quantities by name. A NaN is a value that is not there.

    Every process adds the same names in the same order; `means` and `variances` are those of all items of all of them.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """values: {name: [B]}."""
        stacked = torch.stack(list(values.values())).detach()
        there = ~stacked.isnan()
        kind = torch.float32 if stacked.device.type == "mps" else torch.float64
        found = torch.stack([stacked.where(there, 0).sum(1, dtype=kind), there.sum(1, dtype=kind)])
        self._add("\n".join(values), found)

    def add_rows(self, rows: Mapping[str, Tensor]) -> None:
        """rows: {name: [B, D]}, for their variances; a row of NaNs is not there."""
        for name, values in rows.items():
            there = ~values.isnan().any(1, keepdim=True)
            kind = torch.float32 if values.device.type == "mps" else torch.float64
            x = values.detach().where(there, 0).to(kind)
            self._add(name, torch.stack([x.sum(0), x.square().sum(0), there.sum().to(kind).expand_as(x[0])]))

    def _add(self, name: str, found: Tensor) -> None:
        self.sums[name] = self.sums[name] + found if name in self.sums else found

    def means(self) -> dict[str, float]:
        """{name: mean} of what `add` was given, NaN where nothing was there."""
        found: dict[str, float] = {}
        for names, sums in self.sums.items():
            values, counts = total(sums)
            found |= zip(names.split("\n"), (values / counts).tolist(), strict=True)
        return found

    def variances(self) -> dict[str, Tensor]:
        """{name: [D]} of what `add_rows` was given, over items, NaN where there are fewer than two."""
        found = {}
        for name, sums in self.sums.items():
            first, second, count = total(sums)
            found[name] = (second - first.square() / count).clamp(min=0) / (count - 1)
        return found
