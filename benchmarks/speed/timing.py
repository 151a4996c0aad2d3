"""Processor time of several ways of doing the same, in turns, so that none has the quieter machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any


def in_turns(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each way, a round of the one after a round of the other; the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            started = time.process_time()
            way()
            times[name] += [time.process_time() - started] if turn else []
    return {name: median(found) for name, found in times.items()}


def each(function: Callable[[Any], object], values: Iterable[Any]) -> None:
    """Nothing is kept: memory that is still in use makes the next call pay for mapping new pages."""
    for value in values:
        function(value)
