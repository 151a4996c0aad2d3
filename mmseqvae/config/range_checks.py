"""Checks of numbers in configurations."""

from __future__ import annotations

import math
from collections.abc import Mapping


def at_least(least: int, prefix: str, numbers: Mapping[str, float | None]) -> None:
    """Raise ValueError for what is below `least` or not finite; None stands for no number."""
    for name, value in numbers.items():
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"{prefix}{name} must be at least {least}, got {value}")


def share(name: str, value: float | None, kind: str = "share") -> None:
    """Raise ValueError for what does not lie between 0 and 1; None stands for no number."""
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"{name} is a {kind}, between 0 and 1, got {value}")
