"""Sequences that travel with their lengths: padding, holes and missing modalities become one mask, built here only.

Letters used everywhere in this library: B batch, T time steps, C channels, D latent, K draws, M modalities,
S subsets, V vocabulary, H hidden units, R reduction factor (frames a decoder step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Class = TypeVar("Class", bound=type[Any])
Value = TypeVar("Value")


@lru_cache(maxsize=256)
def constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.tensor(values)`, copied to a device once, since a GPU is waited for then. Never to be written to."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def step_mask(lengths: Tensor, steps: int) -> Tensor:
    """True at the steps that exist: `lengths` [B] -> [B, `steps`] bool."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def recorded() -> bool:
    """Whether torch.export, torch.compile or torch.jit.trace record what runs, to run it on other shapes."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class cached(cached_property[Value], Generic[Value]):
    """`functools.cached_property` that keeps nothing of what is only recorded."""

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        return self.func(instance) if recorded() else super().__get__(instance, owner)


def register_pytree(cls: Class) -> Class:
    """Let torch.export and everything else of torch that walks through containers see the tensors of a dataclass.

    Fields that are None are no leaves. What is put together again is neither checked nor computed anew: its leaves may
    be anything that stands for a tensor meanwhile.
    """
    names = [field.name for field in fields(cls)]

    def there(x: Any) -> list[str]:
        return [name for name in names if getattr(x, name) is not None]

    def flatten(x: Any) -> tuple[list[Any], list[str]]:
        return [getattr(x, name) for name in there(x)], there(x)

    def flatten_with_keys(x: Any) -> tuple[list[tuple[pytree.KeyEntry, Any]], list[str]]:
        return [(pytree.GetAttrKey(name), getattr(x, name)) for name in there(x)], there(x)

    def unflatten(leaves: Iterable[Any], context: list[str]) -> Any:
        x = object.__new__(cls)
        for name, value in (dict.fromkeys(names) | dict(zip(context, leaves, strict=True))).items():
            object.__setattr__(x, name, value)
        return x

    pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        flatten_with_keys_fn=flatten_with_keys,
    )
    torch.serialization.add_safe_globals([cls])  # torch.export.load reads the example, too
    return cls


@register_pytree
@dataclass(frozen=True)
class Sequence:
    """A batch of sequences of one modality.

    values: [B, T] (integer tokens) or [B, T, C] (frames); what lies beyond a length may be anything, NaN included.
    lengths: [B] int64, steps that exist; 0 means that the modality is missing for this item.
    observed: optional [B, T] bool; False marks a hole, a step that is neither read nor scored.
    there: optional [B] bool on the CPU, `present` as it was before the batch went to a GPU, so that nobody must wait.

    Raises ValueError where shapes or types do not fit together. The *contents* of `lengths` are not looked at here,
    since that would wait for a GPU; `check()` does, and everything that reads data from outside calls it.
    """

    values: Tensor
    lengths: Tensor
    observed: Tensor | None = None
    there: Tensor | None = None

    def __post_init__(self) -> None:
        if self.values.ndim < 2:
            raise ValueError(f"values must be [B, T, ...], got shape {tuple(self.values.shape)}")
        if self.lengths.shape != self.values.shape[:1] or self.lengths.is_floating_point():
            raise ValueError(
                f"lengths must be [{self.values.shape[0]}] whole numbers of steps, "
                f"got {self.lengths.dtype} of shape {tuple(self.lengths.shape)}"
            )
        if self.observed is not None and (
            self.observed.shape != self.values.shape[:2] or self.observed.dtype != torch.bool
        ):
            raise ValueError(
                f"observed must be bool of shape {tuple(self.values.shape[:2])}, "
                f"got {self.observed.dtype} of shape {tuple(self.observed.shape)}"
            )

    @classmethod
    def from_list(cls, items: Iterable[Tensor | None], empty: Tensor | None = None) -> Sequence:
        """Pad a list of [T_i, ...] tensors to one batch; None is a missing item.

        `empty` is a tensor of the right type and trailing shape, needed only when every item is None.
        """
        rows = list(items)
        like = next((row for row in rows if row is not None), empty)
        if like is None:
            raise ValueError("every item is missing: pass `empty` so that the type and channels are known")
        lengths = torch.tensor([0 if row is None else len(row) for row in rows], dtype=torch.long)
        steps = int(lengths.max()) if rows else 0
        values = like.new_zeros(len(rows), steps, *like.shape[1:])
        for target, row in zip(values, rows, strict=True):
            if row is not None:
                target[: len(row)] = row
        return cls(values, lengths)

    def check(self) -> Sequence:
        """Return self, or raise ValueError where a length is out of range or an observed value is not finite."""
        low, high = (int(self.lengths.min()), int(self.lengths.max())) if len(self) else (0, 0)
        if low < 0 or high > self.steps:
            raise ValueError(f"lengths must lie in 0..{self.steps}, got {low}..{high}")
        if self.values.is_floating_point():
            bad = ~torch.isfinite(self.values.flatten(2)).all(-1) if self.values.ndim > 2 else ~self.values.isfinite()
            row, step = (bad & self.mask).nonzero()[:1].unbind(1) if (bad & self.mask).any() else (None, None)
            if row is not None and step is not None:
                raise ValueError(f"row {int(row)} holds a NaN or infinity at step {int(step)}")
        return self

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def steps(self) -> int:
        """T, the padded number of steps."""
        return self.values.shape[1]

    @property
    def device(self) -> torch.device:
        return self.values.device

    @cached
    def valid(self) -> Tensor:
        """[B, T] bool: the step exists (it may still be a hole)."""
        return step_mask(self.lengths, self.steps)

    @cached
    def mask(self) -> Tensor:
        """[B, T] bool: the step exists and was observed. Only these steps are read and scored."""
        return self.valid if self.observed is None else self.valid & self.observed

    @cached
    def present(self) -> Tensor:
        """[B] bool: at least one step of the item was observed."""
        return self.lengths > 0 if self.observed is None else self.mask.any(1)

    def rows_present(self) -> Tensor | None:
        """[B'] int64, the rows that are `present`; None where all are. Waits for a GPU unless `there` is known."""
        rows = (self.present if self.there is None else self.there).nonzero().squeeze(-1)
        return None if len(rows) == len(self) else rows.to(self.device, non_blocking=True)

    @property
    def known_lengths(self) -> Tensor:
        """[B] int64: steps up to the last one that was observed: what an encoder reads ends there."""
        if self.observed is None:
            return self.lengths
        number = torch.arange(1, self.steps + 1, device=self.device)
        return torch.where(self.mask, number, 0).amax(1) if self.steps else self.lengths

    def filled(self, value: float | int = 0) -> Tensor:
        """Values [B, T, ...] with `value` wherever the mask is False, so that NaN in padding cannot spread."""
        mask = self.mask
        return torch.where(mask.reshape(*mask.shape, *[1] * (self.values.ndim - 2)), self.values, value)

    def sum_steps(self, per_step: Tensor) -> Tensor:
        """Sum [..., B, T] over the observed steps -> [..., B]. NaN at masked steps is ignored."""
        return torch.where(self.mask, per_step, 0).sum(-1)

    @overload
    def __getitem__(self, rows: Tensor) -> Sequence: ...
    @overload
    def __getitem__(self, rows: slice) -> Sequence: ...
    def __getitem__(self, rows: Tensor | slice) -> Sequence:
        """The chosen rows as a Sequence."""
        observed = None if self.observed is None else self.observed[rows]
        return Sequence(self.values[rows], self.lengths[rows], observed)

    def where(self, keep: Tensor) -> Sequence:
        """The same batch with the rows where `keep` [B] is False missing (length 0)."""
        return Sequence(self.values, torch.where(keep, self.lengths, 0), self.observed)

    def hiding(self, steps: Tensor) -> Sequence:
        """The same batch with the steps where `steps` [B, T] is True not observed."""
        return Sequence(self.values, self.lengths, self.mask & ~steps)

    def extended(self, steps: int) -> Sequence:
        """The same batch with `steps` more steps behind every item, none of them observed."""
        more = self.values.new_zeros(len(self), steps, *self.values.shape[2:])
        nowhere = torch.zeros(len(self), steps, dtype=torch.bool, device=self.device)
        return Sequence(torch.cat([self.values, more], 1), self.lengths + steps, torch.cat([self.mask, nowhere], 1))

    def without_nans(self) -> Sequence:
        """The same batch with frames [B, T, C] that hold a NaN not observed; itself where there are none."""
        missing = self.values.isnan().any(-1)
        return self.hiding(missing) if bool((missing & self.mask).any()) else self

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Sequence:
        """The batch on a device; from a CPU to a GPU with what is `there` noted."""
        there = self.present if self.device.type == "cpu" else self.there
        moved = self._map(lambda x: x.to(device, non_blocking=non_blocking))
        return moved if moved.device.type == "cpu" else replace(moved, there=there)

    def pin_memory(self) -> Sequence:
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Sequence:
        observed = None if self.observed is None else function(self.observed)
        return Sequence(function(self.values), function(self.lengths), observed)

    def items(self) -> list[Tensor]:
        """One [T_i, ...] tensor an item, without padding."""
        return [row[:length] for row, length in zip(self.values, self.lengths.tolist(), strict=True)]


def full(x: Tensor) -> Tensor:
    """Half precision to float32: what becomes nats is added up there, also under autocast."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
