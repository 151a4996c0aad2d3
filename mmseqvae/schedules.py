"""What changes while a model trains: step -> number."""

from __future__ import annotations

import math


def warm_up(step: int, steps: int, start: float = 0.0, end: float = 1.0) -> float:
    """Linear from `start` at step 0 to `end` at `steps`, then constant (Bowman et al. 2016, section 3.1, for beta)."""
    if steps <= 0:
        return end
    return start + (end - start) * min(1.0, step / steps)


def warm_up_then_cosine(step: int, warm: int, total: int, last: float = 0.02) -> float:
    """Factor on the learning rate: linear to 1 over `warm` steps, then half a cosine down to `last` at `total`.

    Loshchilov & Hutter 2017, eq. 5, without restarts.
    """
    if step < warm:
        return (step + 1) / warm
    share = min(1.0, (step - warm) / max(1, total - warm))
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * share))
