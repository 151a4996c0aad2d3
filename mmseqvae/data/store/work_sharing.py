"""Work shared between processes that see one folder, on one machine or on several, with nothing but its files."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from mmseqvae.distributed import processes

Job = TypeVar("Job")

PATIENCE = 600.0  # seconds in which no other process finished anything before its share is done here too
POLL = 0.2


def rank_of() -> tuple[int, int]:
    """The number of this process and how many there are, from RANK and WORLD_SIZE as torchrun sets them, or of srun.

    Raises ValueError where they are no such numbers.
    """
    told = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if None in told:
        return processes().rank, processes().ranks
    try:
        rank, world = (int(str(value)) for value in told)
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise ValueError(f"RANK={told[0]} and WORLD_SIZE={told[1]} must be numbers, 0 <= RANK < WORLD_SIZE")
    return rank, world


def together(jobs: Sequence[Job], is_done: Callable[[Job], bool], do: Callable[[list[Job]], None]) -> None:
    """Return when all jobs are done, each by at least one process; `do` leaves out what another one finished by then.

    jobs: the same for all processes in the same order, with what is done already. Every rank does its share and waits
    for the others, but no longer than PATIENCE without any news: then it does what is left, so that a rank that was
    lost costs time and nothing else. Processes without ranks that happen to work on the same jobs share them too: each
    takes them in an order of its own.
    """
    rank, world = rank_of()
    mine = [job for job in jobs[rank::world] if not is_done(job)]
    if world == 1:
        random.SystemRandom().shuffle(mine)
    if mine:
        do(mine)
    left = [job for job in jobs if not is_done(job)]
    news = time.monotonic()
    while left:
        if time.monotonic() - news > PATIENCE:
            do(left)
        else:
            time.sleep(POLL)
        still = [job for job in left if not is_done(job)]
        if len(still) < len(left):
            news = time.monotonic()
        left = still
