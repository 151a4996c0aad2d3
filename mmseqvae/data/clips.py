"""What frames are made of where it is no file of its own: in memory, or a part of a file."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmseqvae.features.arrays import FrameArrays, FramesError
from mmseqvae.features.log_mel import AudioError, LogMel, read_audio, resampled

NUMBERS = "fiub"  # kinds of numpy types
RATE = "sample_rate"  # the entry of an archive that tells the rate of its sounds
MISSING = "file is missing"


@dataclass(frozen=True)
class Broken:
    """A cell that cannot be used, and why."""

    problem: str


class Piece:
    """Frames or a recording that is no file of its own. Its `str` names it in messages."""

    def trouble(self) -> str | None:
        """What is wrong with it as far as can be told at once."""
        return None

    def digest(self) -> str:
        """A name for its content: equal content, equal name."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Bytes, about."""
        raise NotImplementedError

    def files(self) -> list[str]:
        """The files beside its table that it is read from."""
        return []

    def array(self) -> np.ndarray:
        """[T, C]. Raises FramesError where it is none."""
        raise FramesError(f"{self}: is no array [T, C]")

    def sound(self) -> tuple[np.ndarray, int]:
        """[N] or [N, channels] samples, and their rate in Hz. Raises AudioError where it is none."""
        raise AudioError(f"{self}: is no sound; a waveform needs its rate: (samples, rate)")

    def wave(self, sample_rate: int) -> np.ndarray:
        """[N] float32 at `sample_rate` Hz, channels averaged. Raises AudioError where it is none."""
        return at_rate(*self.sound(), sample_rate, str(self))

    def read(self, front_end: LogMel | FrameArrays) -> Tensor:
        """[T, C] as the front end reads files, not standardised. Raises AudioError or FramesError."""
        if isinstance(front_end, LogMel):
            return front_end.read(self.wave(front_end.config.sample_rate))
        return front_end.read(self.array())


def at_rate(samples: np.ndarray, rate: Any, wanted: int, name: str) -> np.ndarray:
    """[N] or [N, channels], floats or signed integers of full scale -> [N] float32 at `wanted` Hz, channels averaged.

    Raises AudioError where they are no waveform.
    """
    if samples.dtype.kind not in "fi":
        raise AudioError(f"{name}: holds {samples.dtype}, samples are floats or signed integers")
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        raise AudioError(f"{name}: has shape {samples.shape}, [N] or [N, channels] is needed")
    if samples.ndim not in (1, 2) or not samples.size:
        raise AudioError(f"{name}: has shape {samples.shape}, [N] or [N, channels] with N >= 1 is needed")
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number) or not 0 < rate < float("inf"):
        raise AudioError(f"{name}: its rate must be a positive number of Hz, is {rate!r}")
    scale = float(np.iinfo(samples.dtype).max) + 1 if samples.dtype.kind == "i" else 1.0
    wave = (samples.reshape(len(samples), -1) / scale).mean(1, dtype=np.float64).astype(np.float32)
    return resampled(wave, float(rate), wanted, name)


@dataclass(frozen=True, eq=False)
class Array(Piece):
    """An array in memory."""

    values: np.ndarray

    def __str__(self) -> str:
        return f"array {self.values.dtype}{list(self.values.shape)}"

    def digest(self) -> str:
        return digest_of(self.values)

    @property
    def size(self) -> int:
        return self.values.nbytes

    def array(self) -> np.ndarray:
        return self.values


@dataclass(frozen=True, eq=False)
class Sound(Piece):
    """A waveform in memory: [N] or [N, channels] samples, full scale +-1 or that of their integers, at `rate` Hz."""

    samples: np.ndarray
    rate: int

    def __str__(self) -> str:
        return f"waveform {self.samples.dtype}{list(self.samples.shape)}"

    def digest(self) -> str:
        return digest_of(self.samples, repr(self.rate))

    @property
    def size(self) -> int:
        return self.samples.nbytes

    def sound(self) -> tuple[np.ndarray, int]:
        return self.samples, self.rate


@dataclass(frozen=True)
class Entry(Piece):
    """One array of an .npz archive. As a sound it needs the entry "sample_rate" beside it."""

    path: str
    key: str

    def __str__(self) -> str:
        return f"{self.path}:{self.key}"

    def trouble(self) -> str | None:
        return file_trouble(Path(self.path))

    def digest(self) -> str:
        return hashlib.sha256(f"{file_digest(self.path)}:{self.key}".encode()).hexdigest()

    @property
    def size(self) -> int:
        return Path(self.path).stat().st_size

    def files(self) -> list[str]:
        return [self.path]

    def array(self) -> np.ndarray:
        return self._entry(self.key)

    def sound(self) -> tuple[np.ndarray, int]:
        try:
            return self._entry(self.key), self._entry(RATE).item()
        except ValueError as error:  # FramesError is one, as is what `item` says to a rate that is no single number
            raise AudioError(str(error)) from error

    def _entry(self, key: str) -> np.ndarray:
        with open_archive(self.path) as entries:
            if key not in entries:
                raise FramesError(f"{self.path}: holds no array {key!r}, but {', '.join(entries) or 'none'}")
            return read_entry(self.path, entries, key)


@dataclass(frozen=True)
class Played(Piece):
    """A recording played `speed` times as fast, so that it is shorter and higher (Ko et al. 2015, section 2).

    source: the digest of `clip`.
    """

    clip: str | Piece
    source: str
    speed: float

    def __str__(self) -> str:
        return f"{self.clip} at speed {self.speed:g}"

    def digest(self) -> str:
        return hashlib.sha256(f"{self.source} at speed {self.speed!r}".encode()).hexdigest()

    @property
    def size(self) -> int:
        return self.clip.size if isinstance(self.clip, Piece) else os.stat(self.clip).st_size

    def wave(self, sample_rate: int) -> np.ndarray:
        clip = self.clip
        wave = clip.wave(sample_rate) if isinstance(clip, Piece) else read_audio(clip, sample_rate)
        return resampled(wave, self.speed * sample_rate, sample_rate, str(self))


def open_archive(path: str | Path) -> Any:
    """An .npz archive, to be used as a context manager. Raises FramesError where it is none."""
    try:
        entries = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FramesError(f"{path}: is not a whole .npz archive ({error})") from error
    if not isinstance(entries, np.lib.npyio.NpzFile):
        raise FramesError(f"{path}: is one array, not an .npz archive of named arrays")
    return entries


def read_entry(path: str | Path, entries: Any, key: str) -> np.ndarray:
    """Raises FramesError where the entry is damaged or holds objects, which only running code could read."""
    try:
        return np.asarray(entries[key])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FramesError(f"{path}: the array {key!r} cannot be read ({error})") from error


def piece_of(value: Any, kind: str, name: str, folder: Path) -> Any:
    """A cell of kind "audio" or "frames" as a string (a path) or a Piece; what is neither comes back as it is."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        file, archive, key = value.strip().rpartition(".npz")
        if archive and (not key or (key.startswith(":") and len(key) > 1)):
            return Entry(str(folder / f"{file}.npz"), key[1:] or name)
        return value
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if kind == "audio":
        if isinstance(value, Mapping) and {"array", "sampling_rate"} <= value.keys():
            value = (value["array"], value["sampling_rate"])
        if isinstance(value, tuple) and len(value) == 2:
            samples = np.asarray(value[0].detach().cpu() if isinstance(value[0], Tensor) else value[0])
            return Sound(samples, value[1]) if samples.dtype.kind in NUMBERS else Broken("holds no numbers")
        if isinstance(value, np.ndarray):
            return Broken("is an array without its rate: (samples, rate) is needed")
        return value
    if isinstance(value, list | tuple | np.ndarray):
        try:
            array = np.asarray(value)
        except ValueError:
            return Broken("is no array [T, C], its rows differ in length")
        return Array(array) if array.dtype.kind in NUMBERS else Broken("is no array [T, C] of numbers")
    return value


def file_trouble(file: Path) -> str | None:
    """What is wrong with a file as far as can be told without reading it."""
    try:
        if file.is_dir():
            return "is a folder, not a file"
        if not file.is_file():
            return MISSING
        if not os.access(file, os.R_OK):
            return "file may not be read"
        return None if file.stat().st_size else "file is empty"
    except (OSError, ValueError) as error:  # not allowed to look, name too long, or a NUL in it
        return str(error)


def digest_of(array: np.ndarray, more: str = "") -> str:
    """SHA-256 of an array, its type and shape."""
    told = hashlib.sha256(f"{array.dtype.str}{array.shape}{more}:".encode())
    told.update(np.ascontiguousarray(array).data)
    return told.hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's content, read once however many pieces it holds."""
    found = os.stat(path)
    return _file_digest(str(path), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4096)
def _file_digest(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
