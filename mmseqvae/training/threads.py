"""How many threads torch computes on while a model is trained: one, unless the user says otherwise.

All threads meet at every small product of a recurrent layer, so that one that is late, since another process has its
core, stops them all (docs/speed.md). One thread waits for nobody, and the numbers do not depend on how many cores
there are.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"  # Linux: those that share a core

logger = logging.getLogger(__name__)


def use_threads(wanted: int | None = None) -> int:
    """Let torch compute on `wanted` threads, or else on as many as the user chose, or else on one, which is logged.

    The user chose by a variable of `VARIABLES`, or by `torch.set_num_threads` where torch has another number of threads
    than it takes itself, which is one a core.

    Args:
        wanted: `TrainingConfig.threads`.

    Returns:
        How many it is now.
    """
    there = torch.get_num_threads()
    if wanted is None and (any(map(os.environ.get, VARIABLES)) or there not in _of_torch()):
        return there
    threads = wanted or 1
    if wanted is None and there != threads:
        logger.info(
            "torch computes on 1 thread instead of %d, see docs/speed.md; training.threads says otherwise", there
        )
    torch.set_num_threads(threads)
    return threads


@contextmanager
def threads_restored() -> Iterator[None]:
    """Whatever the block, or the function that this decorates, does to torch's number of threads ends with it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _of_torch() -> set[int]:
    """The numbers of threads that torch may have chosen: a thread a core, which may be two for the system."""
    if not hasattr(os, "sched_getaffinity"):
        return {os.cpu_count() or 1, (os.cpu_count() or 1) // 2}
    places = sorted(os.sched_getaffinity(0))
    siblings = [Path(SIBLINGS.format(place)) for place in places]
    return {len(places), len({path.read_text() if path.exists() else str(path) for path in siblings})}
