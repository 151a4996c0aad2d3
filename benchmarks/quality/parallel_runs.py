"""Runs of a benchmark that are not in its ledger yet, several side by side in processes of their own."""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from tqdm import tqdm

from benchmarks.ledger import Ledger, Record

Run = dict[str, Any]
Work = Callable[[Run], Record]
Turn = tuple[list[Record], list[str]]  # what was finished, and complaints of what was not


def take_turns(work: Work, runs: list[Run], ledger: Ledger, side_by_side: int = 2,
               together: Callable[[Run], Any] = str, label: str = "runs") -> None:  # fmt: skip
    """Append `{"run": run, **work(run)}` to the ledger for every run that is not there.

    work: a function of a module, which processes can find. Runs for which `together` says the same are one another's
    turn in one process, since they share files. A run that fails does not stop the others; it is told at once, and
    RuntimeError is raised at the end.
    """
    waiting: dict[Any, list[Run]] = {}
    for run in ledger.left(runs):
        waiting.setdefault(together(run), []).append(run)
    failed: list[str] = []
    with tqdm(total=sum(map(len, waiting.values())), desc=label, unit="run") as bar:
        for records, complaints in _turns(work, list(waiting.values()), side_by_side):
            for record in records:
                ledger.append(record)
            for complaint in complaints:
                tqdm.write(complaint, sys.stderr)
            failed += complaints
            bar.update(len(records) + len(complaints))
    if failed:
        raise RuntimeError("\n\n".join([f"{len(failed)} run(s) failed, the others are in {ledger.path}", *failed]))


def _turns(work: Work, groups: list[list[Run]], side_by_side: int) -> Iterator[Turn]:
    if side_by_side == 1:
        for group in groups:
            for run in group:
                yield _turn(work, [run])
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(side_by_side, mp_context=context) as pool:
        for done in as_completed([pool.submit(_turn, work, group) for group in groups]):
            yield done.result()


def _turn(work: Work, group: list[Run]) -> Turn:
    records: list[Record] = []
    complaints: list[str] = []
    for run in group:
        try:
            records.append({"run": run, **work(run)})
        except Exception:  # noqa: BLE001  a night of other runs must not end with one; it is raised at the end
            complaints.append(f"{run}:\n{traceback.format_exc()}")
    return records, complaints
