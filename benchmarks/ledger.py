"""Finished runs, one JSON object a line: what stands there is skipped when a benchmark is started again.

Several processes may append at once: a line is one write to a file opened for appending.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmseqvae.config.renamed_options import OF_OPTIONS, current, current_keys

Record = dict[str, Any]


class Ledger:
    """The runs in the file `path`, which appears with the first of them. `key` is the field that names a run."""

    def __init__(self, path: str | Path, key: str = "run") -> None:
        self.path, self.key = Path(path), key

    def records(self) -> list[Record]:
        """All runs, in the order in which they ended, with options by the names that they have today.

        Raises ValueError where a line is no JSON object or names no run.
        """
        if not self.path.exists():
            return []
        found = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{self.path}, line {number} is no JSON: delete the line ({error})") from error
            if not isinstance(record, dict) or self.key not in record:
                raise ValueError(f"{self.path}, line {number} names no {self.key!r}: delete the line")
            found.append({**record, self.key: _today(record[self.key])})
        return found

    def find(self, run: Record) -> Record | None:
        """The last record of `run`, or None."""
        return next(iter(self.finished([run])), None)

    def finished(self, runs: Iterable[Record]) -> list[Record]:
        """The last record of each of `runs` that has one, in their order."""
        latest = self.records()[::-1]
        found = (next((record for record in latest if record[self.key] == run), None) for run in map(_read_back, runs))
        return [record for record in found if record is not None]

    def left(self, runs: Iterable[Record]) -> list[Record]:
        """Those of `runs` that have no record, in their order."""
        done = [record[self.key] for record in self.records()]
        return [run for run in runs if _read_back(run) not in done]

    def append(self, record: Record) -> None:
        """Add one finished run. Raises ValueError where it names none, or holds a number that JSON has not."""
        if self.key not in record:
            raise ValueError(f"the record names no {self.key!r}, it has {list(record)}")
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, line.encode())
            os.fsync(file)
        finally:
            os.close(file)


def _read_back(run: Record) -> Record:
    """As it stands in the file: tuples are lists there."""
    found: Record = json.loads(json.dumps(run))
    return found


def _today(run: Any) -> Any:
    """A run with the options by the names that they have today: the file is a record and keeps those of its time."""
    if not isinstance(run, dict):
        return run
    found = {current(name): _today(value) for name, value in run.items()}
    if "options" in run and run.get("objective") == OF_OPTIONS:
        found["options"] = current_keys("objective.options", run["options"])
    return found
