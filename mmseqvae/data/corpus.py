"""A corpus, and how it is kept: memory-mapped arrays, so that to open a million items reads next to nothing."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmseqvae import lazy
from mmseqvae.config import WindowConfig
from mmseqvae.data.dataset import Column, SequenceDataset
from mmseqvae.data.manifest import SPLITS, LateRows, Manifest, Problem, hashed_split
from mmseqvae.data.store.atomic_folder import is_whole, sealing
from mmseqvae.data.store.extraction import FileFrontEnd, FrontEnd, front_end_from_dict
from mmseqvae.data.store.feature_store import Store, mapped
from mmseqvae.data.string_array import StringArray
from mmseqvae.features.arrays import FrameArrays
from mmseqvae.files import write_json

TOLD = "corpus.json"
CHECKED = 10_000  # files whose size and time of change are compared when a corpus is opened

log = logging.getLogger(__name__)
if not TYPE_CHECKING:
    __getattr__ = lazy(__name__, {})  # names of the release before


@dataclass(frozen=True)
class Stamps:
    """Files, and how they were: [N, 2] int64, size in bytes and time of change in nanoseconds, -1 for no file."""

    files: StringArray[str]
    states: np.ndarray

    @classmethod
    def of(cls, files: Iterable[str]) -> Stamps:
        names = StringArray.of(map(os.path.abspath, files))
        return cls(names, _states(names))

    def hold(self, check: int) -> bool:
        """Whether the files still are like that; `check` of them are looked at, spread evenly."""
        places = np.unique(np.linspace(0, max(0, len(self.files) - 1), min(len(self.files), check)).astype(np.int64))
        return np.array_equal(_states(self.files[place] for place in places), self.states[places])


def _states(files: Iterable[str]) -> np.ndarray:
    with ThreadPoolExecutor() as pool:  # folders over a network take their time to answer
        return np.array(list(pool.map(_state, files)), np.int64).reshape(-1, 2)


def _state(file: str) -> tuple[int, int]:
    try:
        found = os.stat(file)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class Corpus:
    """front_ends: modality or covariate -> what turns user units into steps and back; datasets: one a split.

    skipped: rows left out by `skip_bad`. unknown: name -> symbols or labels that training never saw, with counts.
    windows: how items were cut; `manifest` has a row for all of one's windows. speeds: other speeds that recordings of
    the split train are there at.
    """

    front_ends: dict[str, FrontEnd]
    datasets: dict[str, SequenceDataset]
    manifest: Manifest
    skipped: list[Problem]
    unknown: dict[str, Counter[str]] = field(default_factory=dict)
    windows: WindowConfig = field(default_factory=WindowConfig)
    speeds: tuple[float, ...] = ()

    def only(self, *names: str) -> Corpus:
        """The same corpus without the other modalities and covariates, for a model that does not know them.

        Args:
            names: of what is kept.

        Raises:
            ValueError: for a name that the corpus lacks.
        """
        if wrong := [name for name in names if name not in self.front_ends]:
            raise ValueError(f"the corpus has no {', '.join(wrong)}; it has {', '.join(self.front_ends)}")
        return replace(
            self,
            front_ends={name: self.front_ends[name] for name in names},
            datasets={split: dataset.only(*names) for split, dataset in self.datasets.items()},
            unknown={name: symbols for name, symbols in self.unknown.items() if name in names},
        )

    def summary(self) -> list[str]:
        """What was found, a line each: `counts`, then `remarks`."""
        return [*self.counts(), *self.remarks()]

    def counts(self) -> list[str]:
        """Items of every split and modality, those that are missing, and how items were made, a line each."""
        lines = []
        for split, dataset in self.datasets.items():
            parts = []
            for name in self.front_ends:
                there = int((dataset.lengths(name) > 0).sum())
                missing = len(dataset) - there
                parts.append(f"{name} {there}" + (f" ({missing} missing)" if missing else ""))
            lines.append(f"{split}: {len(dataset)} items; {', '.join(parts)}")
        if self.windows.on:
            lines.append(f"windows: of {self.windows.longest:g} seconds, one every {self.windows.every:g}")
        if self.speeds:
            lines.append(f"speeds of training recordings: 1, {', '.join(f'{speed:g}' for speed in self.speeds)}")
        return lines

    def remarks(self) -> list[str]:
        """What does not count, a line each: splits without items, rows left out, unused columns and files, symbols."""
        lines = []
        empty = [split for split, dataset in self.datasets.items() if not len(dataset)]
        if empty and all(hashed_split(id) == split for split, dataset in self.datasets.items() for id in dataset.ids):
            lines.append(f"no id fell into {' and '.join(empty)}: a column split (train, valid, test) chooses instead")
        if self.skipped:
            lines.append(f"skipped: {len(self.skipped)} bad rows")
        if self.manifest.unused:
            line = f"unused columns: {', '.join(self.manifest.unused)}"
            if {kind for kind in self.manifest.columns.values() if kind != "covariate"} == {"audio"}:
                line += " (nothing but sound is modelled: --tokens NAME reads a column as text)"
            lines.append(line)
        if self.manifest.unread:
            lines.append(f"{self.manifest.path}: files that are not read: {', '.join(self.manifest.unread)}")
        for name, symbols in self.unknown.items():
            shown = ", ".join(f"{symbol!r} {count}" for symbol, count in symbols.most_common(10))
            lines.append(f"{name}: {symbols.total()} unknown symbols, {len(symbols)} different ({shown})")
        return lines


def keep(folder: Path, corpus: Corpus, stores: Mapping[str, Store], stamps: Stamps) -> None:
    """Write a corpus whose frames lie in `stores` by modality and whose files are those of `stamps`."""
    manifest, cache = corpus.manifest, folder.parent.parent
    told = {
        "front_ends": {name: front_end.to_dict() for name, front_end in corpus.front_ends.items()},
        "stores": {n: [str(shard.relative_to(cache)) for shard in store.folders] for n, store in stores.items()},
        "columns": manifest.columns,
        "unused": manifest.unused,
        "unread": manifest.unread,
        "unit": manifest.unit,
        "problems": manifest.problems,
        "skipped": corpus.skipped,
        "unknown": corpus.unknown,
        "windows": asdict(corpus.windows),
        "speeds": corpus.speeds,
    }
    with sealing(folder) as work:
        write_json(work / TOLD, told)
        arrays = {"states": stamps.states} | _arrays("files", stamps.files)
        for split, dataset in corpus.datasets.items():
            arrays |= _arrays(f"{split}-ids", dataset.ids) | _arrays(f"{split}-labels", dataset.labels)
            arrays[f"{split}-steps"] = dataset.steps
            arrays |= {} if dataset.weights is None else {f"{split}-weights": dataset.weights}
            for name, column in dataset.columns.items():
                number = list(dataset.columns).index(name)  # a name may hold what no file's name may
                arrays |= {f"{split}-{number}-starts": column.starts, f"{split}-{number}-lengths": column.lengths}
                arrays |= {} if name in stores else {f"{split}-{number}-flat": column.flat}
                if name in dataset.speeds:
                    played = dataset.speeds[name]
                    arrays |= {f"{split}-{number}-played": np.stack([played.starts, played.lengths])}
        for name, array in arrays.items():
            np.save(work / f"{name}.npy", array, allow_pickle=False)


def open_or_none(folder: Path, manifest: Path, read: Callable[[], Manifest], check: int = CHECKED) -> Corpus | None:
    """The corpus that `keep` wrote; None where it must be made: absent, damaged, of files that changed since.

    check: how many files are looked at for that. read: what gives the manifest again, for those who ask for its rows.
    """
    if not is_whole(folder):
        return None
    arrays = {file.stem: np.asarray(np.load(file, mmap_mode="r", allow_pickle=False)) for file in folder.glob("*.npy")}
    if not Stamps(_strings(arrays, "files"), arrays["states"]).hold(check):
        log.info("files changed since %s was prepared", folder)
        return None

    told: dict[str, Any] = json.loads((folder / TOLD).read_text("utf-8"))
    front_ends = {name: front_end_from_dict(state) for name, state in told["front_ends"].items()}
    flats: dict[str, np.ndarray] = {}
    for name, shards in told["stores"].items():
        folders = [folder.parent.parent / shard for shard in shards]
        damaged = next((shard for shard in folders if not is_whole(shard)), None)
        if damaged is not None:
            log.warning("%s: is missing or damaged", damaged)
            return None
        front_end = front_ends[name]
        assert isinstance(front_end, FileFrontEnd)
        flats[name] = mapped(folders, front_end.channels)[0]
    datasets = {}
    for split in SPLITS:
        columns, played = {}, {}
        for number, (name, front_end) in enumerate(front_ends.items()):
            flat = flats[name] if name in flats else arrays[f"{split}-{number}-flat"]
            starts, lengths = arrays[f"{split}-{number}-starts"], arrays[f"{split}-{number}-lengths"]
            standard = front_end.fitted if isinstance(front_end, FileFrontEnd) and name in flats else None
            columns[name] = Column(flat, starts, lengths, standard, isinstance(front_end, FrameArrays))
            if f"{split}-{number}-played" in arrays:
                starts, lengths = arrays[f"{split}-{number}-played"]
                played[name] = Column(flat, starts, lengths, standard)
        ids, labels = _strings(arrays, f"{split}-ids"), _strings(arrays, f"{split}-labels")
        weights, steps = arrays.get(f"{split}-weights"), arrays[f"{split}-steps"]
        datasets[split] = SequenceDataset(ids, labels, columns, weights, steps=steps, speeds=played)
    problems = [Problem(*problem) for problem in told["problems"]]
    unread = told.get("unread", [])
    table = Manifest(manifest, LateRows(read), told["columns"], told["unused"], problems, told["unit"], unread)
    unknown = {name: Counter(symbols) for name, symbols in told["unknown"].items()}
    skipped, windows = [Problem(*problem) for problem in told["skipped"]], WindowConfig(**told.get("windows", {}))
    return Corpus(front_ends, datasets, table, skipped, unknown, windows, tuple(told.get("speeds", ())))


def _arrays(name: str, strings: StringArray[Any]) -> dict[str, np.ndarray]:
    return {f"{name}-letters": strings.letters, f"{name}-bounds": strings.bounds}


def _strings(arrays: Mapping[str, np.ndarray], name: str) -> StringArray[Any]:
    return StringArray(arrays[f"{name}-letters"], arrays[f"{name}-bounds"])
