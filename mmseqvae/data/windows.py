"""Long items cut into windows, which are stretches of the frames in the cache: no window is computed or kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mmseqvae.config import WindowConfig
from mmseqvae.data.manifest import Manifest, ManifestError, Row
from mmseqvae.data.store.extraction import Clip

LITTLE = 1e-9  # for rounding


@dataclass(frozen=True)
class Part:
    """`steps` frames of a file or piece, from number `first` on."""

    clip: Clip
    first: int
    steps: int

    @property
    def stop(self) -> int:
        return self.first + self.steps


@dataclass(frozen=True)
class Clock:
    """How steps and seconds of a column belong together: T steps are (T - edge) / rate seconds.

    Log-mels have an edge, since they stand at both ends of a recording.
    """

    rate: float
    edge: bool

    def seconds(self, steps: int) -> float:
        return max(0, steps - self.edge) / self.rate


def clocks(columns: Mapping[str, float | None], windows: WindowConfig, path: object) -> dict[str, Clock]:
    """Those of the columns that have time; columns: of frames, with the frames a second of log-mels, None for others.

    Raises ManifestError where rates are missing, or of other columns, or too small for the windows.
    """
    foreign = sorted(windows.rates.keys() - {name for name, rate in columns.items() if rate is None})
    if foreign:
        raise ManifestError(f"{path}: windows.rates name {', '.join(foreign)}, which are no columns of frames")
    rates = {name: windows.rates.get(name) if rate is None else rate for name, rate in columns.items()}
    unknown = [name for name, rate in rates.items() if rate is None]
    if unknown and len(unknown) < len(rates):
        raise ManifestError(
            f"{path}: windows need the steps a second of {', '.join(unknown)}, since those of other columns are known: "
            f"give windows.rates (--windows.rates '{{\"{unknown[0]}\": 25}}'), 0 for what has no time"
        )
    found = {n: Clock(1.0 if rate is None else rate, columns[n] is not None) for n, rate in rates.items() if rate != 0}
    if not found:
        raise ManifestError(f"{path}: windows are for recordings and other frames, and there are none")
    if max(clock.rate for clock in found.values()) * windows.every < 1:
        raise ManifestError(f"{path}: windows every {windows.every:g} seconds are less than a step of any column apart")
    return found


def windowed(
    table: Manifest,
    rows: Iterable[Row],
    frames: Callable[[str, Clip | Part], np.ndarray],
    times: Mapping[str, Clock],
    windows: WindowConfig,
) -> tuple[list[Row], dict[int, str]]:
    """`rows` of a table with those that are longer than a window cut, and what is wrong with those that cannot be.

    frames: [T, C] of a column's cell. Window k of an item, counted from 0, is what lies between k hop and k hop +
    length seconds, and has the id ID#k+1. So many are made that the last one reaches the end. A column that ends before
    is missing, as is one of which nothing was observed, and a window of no frames is left out. Split, label, weight,
    labels and covariates are those of the row; texts as `windows.texts` says.
    """
    ids = {row.id for row in table.rows}
    texts = [name for name, kind in table.columns.items() if kind == "tokens"]
    found: list[Row] = []
    wrong: dict[int, str] = {}
    for row in rows:
        timed = {name: clock for name, clock in times.items() if name in row.cells}
        steps = {name: len(frames(name, row.cells[name])) for name in timed}
        seconds = max((clock.seconds(steps[name]) for name, clock in timed.items()), default=0.0)
        if seconds <= windows.longest * (1 + LITTLE):
            found.append(row)
            continue
        written = [name for name in texts if name in row.cells]
        if written and windows.texts == "refuse":
            wrong[row.row] = (
                f"{', '.join(written)} covers all of its {seconds:g} seconds, and which part belongs to a window of "
                f"{windows.longest:g} is not known: cut it where its utterances end, or choose windows.texts "
                "(--windows.texts): drop, or keep for what holds of every part"
            )
            continue
        kept = {
            n: cell for n, cell in row.cells.items() if n not in timed and (windows.texts == "keep" or n not in written)
        }
        parts = []
        for number, spans in enumerate(_spans(seconds, steps, timed, windows), start=1):
            seen = {name: Part(row.cells[name], *span) for name, span in spans.items()}
            seen = {name: part for name, part in seen.items() if timed[name].edge or not _blank(frames(name, part))}
            if seen:
                cells = {name: (kept | seen)[name] for name in row.cells if name in kept or name in seen}
                parts.append(replace(row, id=f"{row.id}#{number}", cells=cells))
        taken = [part.id for part in parts if part.id in ids]
        if taken:
            wrong[row.row] = f"the id of its window {taken[0]} is that of another row"
        else:
            found += parts
    return found, wrong


def _spans(
    seconds: float, steps: Mapping[str, int], times: Mapping[str, Clock], windows: WindowConfig
) -> Iterator[dict[str, tuple[int, int]]]:
    """Of every window the first step and the number of steps of the columns that have any in it."""
    hop, length = windows.every, windows.longest
    number = 1 + math.ceil((seconds - length) / hop - LITTLE)
    rest = seconds - (number - 1) * hop
    for k in range(number - (rest < windows.least - LITTLE)):
        spans = {}
        for name, clock in times.items():
            first, stop = round(k * hop * clock.rate), round((k * hop + length) * clock.rate)
            stop = steps[name] if k == number - 1 else min(stop, steps[name])
            if first < stop:
                spans[name] = first, stop - first
        yield spans


def _blank(frames: np.ndarray) -> bool:
    return bool(np.isnan(frames[0]).all() and np.isnan(frames).all())


def source_of(item: str, sources: Collection[str]) -> str:
    """The id of the row that an item or a window was made of, one of `sources`."""
    return item if item in sources else item.rpartition("#")[0]
