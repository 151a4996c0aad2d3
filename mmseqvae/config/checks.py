"""Checks of numbers in configurations."""

from __future__ import annotations

import math
from collections.abc import Mapping


def at_least(least: int, prefix: str, numbers: Mapping[str, float | None]) -> None:
    """Raise ValueError for what is below `least` or not finite; None stands for no number."""
    for name, value in numbers.items():
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"{prefix}{name} must be at least {least}, got {value}")
