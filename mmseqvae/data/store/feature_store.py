"""Frames of many files in shards, which are read as one memory-mapped array."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import math
import mmap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmseqvae.data.store.atomic_folder import UNFINISHED, is_whole, remove, sealing

VALUES, INDEX = "values.f32", "index.json"
TYPE = np.dtype("<f4")
PAGE = 1 << 16  # bytes: a multiple of every machine's pages, so that positions are the same on all

log = logging.getLogger(__name__)


def write_shard(
    folder: Path, channels: int, front_end: Mapping[str, Any], clips: Iterable[tuple[str, np.ndarray | str]]
) -> None:
    """A shard of [T, C] clips under the digests of what they were computed from, or of strings: what is wrong with it.

    It appears when it is complete. Nothing of an earlier, whole shard of that name is changed.
    """
    index: dict[str, Any] = {
        "front_end": dict(front_end), "channels": channels, "digests": [], "lengths": [], "problems": {},
    }  # fmt: skip
    with sealing(folder) as work:
        with (work / VALUES).open("wb") as file:
            for digest, clip in clips:
                if isinstance(clip, str):
                    index["problems"][digest] = clip
                    continue
                file.write(np.ascontiguousarray(clip, TYPE).data)
                index["digests"].append(digest)
                index["lengths"].append(len(clip))
        (work / INDEX).write_text(json.dumps(index), "utf-8")


class Shards:
    """All whole shards in `folder`: the shard, place in it and steps of every digest, and the problems.

    places: digest -> (shard, first row in it, rows). problems: digest -> what is wrong, for files that gave no clip.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, tuple[str, int, int]] = {}
        self.problems: dict[str, str] = {}
        self._seen: set[str] = set()
        self.look()

    def look(self) -> None:
        """Take in what has appeared since."""
        names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        for name in sorted(names - self._seen):
            if name.startswith(UNFINISHED):
                continue
            if not is_whole(self.folder / name):
                log.warning("%s: is damaged; it is removed, and what it held computed anew", self.folder / name)
                remove(self.folder / name)
                continue
            self._seen.add(name)
            index = json.loads((self.folder / name / INDEX).read_text("utf-8"))
            first = 0
            for digest, length in zip(index["digests"], index["lengths"], strict=True):
                self.places.setdefault(digest, (name, first, length))
                first += length
            self.problems |= index["problems"]

    def __contains__(self, digest: str) -> bool:
        return digest in self.places or digest in self.problems


class Store:
    """[T_i, C] float32 clips, found by the digest of what they were computed from.

    values: [steps, C], the shards one after another with rows between them that belong to none, memory-mapped.
    folders: the shards. problems: as in `Shards`.
    """

    def __init__(self, shards: Shards, digests: Iterable[str], channels: int) -> None:
        """Those shards that hold any of the digests, in the order of these."""
        found = {digest: shards.places[digest] for digest in digests if digest in shards.places}
        self.problems = shards.problems
        names = dict.fromkeys(name for name, _, _ in found.values())
        self.folders = [shards.folder / name for name in names]
        self.values, firsts = mapped(self.folders, channels)
        base = dict(zip(names, firsts, strict=True))
        self._spans = {digest: (base[name] + first, rows) for digest, (name, first, rows) in found.items()}

    def __contains__(self, digest: str) -> bool:
        return digest in self._spans

    def __len__(self) -> int:
        return len(self._spans)

    def span(self, digest: str) -> tuple[int, int]:
        """First row and number of rows of a clip in `values`."""
        return self._spans[digest]

    def clip(self, digest: str) -> np.ndarray:
        start, length = self.span(digest)
        return self.values[start : start + length]


def mapped(shards: Sequence[Path], channels: int) -> tuple[np.ndarray, list[int]]:
    """The values of shards as one read-only array [steps, C] in their order, and the first row of each.

    Nothing is read or copied: the files are mapped into one stretch of addresses, each at the next multiple of PAGE
    that a row begins at. Raises OSError where a file cannot be mapped.
    """
    width = channels * TYPE.itemsize
    unit = math.lcm(PAGE, width)
    sizes = [(shard / VALUES).stat().st_size for shard in shards]
    places = np.cumsum([0, *[-(-size // unit) * unit for size in sizes]]).tolist()
    if not places[-1]:
        return np.zeros((0, channels), TYPE), [0] * len(shards)
    room = mmap.mmap(-1, places[-1], mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)  # addresses, no memory
    flat = np.frombuffer(room, np.uint8)  # which keeps `room`, and with it all files, until nobody needs it
    for shard, size, place in zip(shards, sizes, places[:-1], strict=True):
        if size:
            _map(shard / VALUES, size, flat.ctypes.data + place)
    rows = places[-2] // width + sizes[-1] // width
    return flat.view(TYPE)[: rows * channels].reshape(rows, channels), [place // width for place in places[:-1]]


_MAP_FIXED = 0x10  # of Linux and macOS; Python's mmap lets nobody choose an address


def _map(file: Path, size: int, address: int) -> None:
    """Map a file over addresses that were set aside for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = ctypes.c_size_t
    libc.mmap.argtypes = [number, number, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong]
    libc.mmap.restype = number
    with file.open("rb") as opened:
        found = libc.mmap(address, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, opened.fileno(), 0)
    if found != address:
        raise OSError(ctypes.get_errno(), "the features cannot be mapped into memory", str(file))


def key_of(value: Mapping[str, Any] | Iterable[Any]) -> str:
    """A short name for plain data: equal data, equal name."""
    plain = dict(value) if isinstance(value, Mapping) else list(value)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:20]
