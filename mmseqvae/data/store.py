"""Frames of many files in one memory-mapped array, checked when opened and never half-written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

FORMAT = 1
VALUES, HEADER = "values.f32", "header.json"
TYPE = np.dtype("<f4")


class Store:
    """[T_i, C] float32 clips, one after another in `values.f32`; found by the digest of the file they came from.

    values: [sum of T_i, C], memory-mapped. offsets: [N + 1] int64, clip i is values[offsets[i] : offsets[i + 1]].
    problems: digest -> what is wrong, for files that gave no clip.
    """

    def __init__(self, folder: Path) -> None:
        """Open what a `StoreWriter` finished. Raises OSError, ValueError or KeyError where it is absent or damaged."""
        header = json.loads((folder / HEADER).read_text("utf-8"))
        if header.pop("checksum") != _checksum(header) or header["format"] != FORMAT:
            raise ValueError(f"{folder}: the header is damaged or of another version")
        self.offsets = np.cumsum([0, *header["lengths"]], dtype=np.int64)
        self.problems: dict[str, str] = header["problems"]
        self._index = {digest: number for number, digest in enumerate(header["digests"])}
        shape = (int(self.offsets[-1]), int(header["channels"]))
        if (folder / VALUES).stat().st_size != shape[0] * shape[1] * TYPE.itemsize:
            raise ValueError(f"{folder}: {VALUES} has the wrong size")
        self.values: np.ndarray = (
            np.memmap(folder / VALUES, TYPE, mode="r", shape=shape) if shape[0] else np.zeros(shape, TYPE)
        )

    @classmethod
    def open_or_none(cls, folder: Path) -> Store | None:
        """The store, or None where it must be computed."""
        try:
            return cls(folder)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def __contains__(self, digest: str) -> bool:
        return digest in self._index

    def span(self, digest: str) -> tuple[int, int]:
        """First row and number of rows of a clip in `values`."""
        number = self._index[digest]
        return int(self.offsets[number]), int(self.offsets[number + 1] - self.offsets[number])

    def clip(self, digest: str) -> np.ndarray:
        start, length = self.span(digest)
        return self.values[start : start + length]


class StoreWriter:
    """Collects clips in a temporary folder, which becomes `folder` only by `finish`. Use as a context manager."""

    def __init__(self, folder: Path, channels: int, front_end: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._work = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        self._file = (self._work / VALUES).open("wb")
        self._header: dict[str, Any] = {
            "format": FORMAT,
            "front_end": dict(front_end),
            "channels": channels,
            "digests": [],
            "lengths": [],
            "problems": {},
        }

    def add(self, digest: str, clip: np.ndarray | str) -> None:
        """A [T, C] clip, or what is wrong with the file."""
        if isinstance(clip, str):
            self._header["problems"][digest] = clip
            return
        self._file.write(np.ascontiguousarray(clip, TYPE).data)
        self._header["digests"].append(digest)
        self._header["lengths"].append(len(clip))

    def finish(self) -> Store:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        header = {**self._header, "checksum": _checksum(self._header)}
        (self._work / HEADER).write_text(json.dumps(header), "utf-8")
        if Store.open_or_none(self.folder) is None:  # else another process was faster
            shutil.rmtree(self.folder, ignore_errors=True)
            self._work.replace(self.folder)
        return Store(self.folder)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        shutil.rmtree(self._work, ignore_errors=True)


def key_of(value: Mapping[str, Any] | Iterable[str]) -> str:
    """A short name for plain data: equal data, equal name."""
    plain = dict(value) if isinstance(value, Mapping) else list(value)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:20]


def _checksum(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
