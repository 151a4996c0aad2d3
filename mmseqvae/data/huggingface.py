"""Data sets of the Hugging Face library `datasets`, saved to disk."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmseqvae.data.clips import NUMBERS, Piece, digest_of
from mmseqvae.data.manifest import ManifestError
from mmseqvae.features.arrays import FramesError
from mmseqvae.features.log_mel import AudioError, read_audio

NAMES = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid", "test": "test"}


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of a Dataset or a DatasetDict wrote the folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def read_saved(folder: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The rows of a saved data set, numbered from 1 through all its splits: the number and the cells.

    Columns keep their names; one of class labels gives their names, one of Audio sounds, one of lists arrays. Splits
    are train, test, and validation, valid, val or dev; a Dataset without splits may have a column `split`.

    Raises ManifestError where it cannot be read, ModuleNotFoundError without the extra `data`.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{folder}: Hugging Face data sets need the extra `data`: pip install 'mmseqvae[data]'", name=error.name
        ) from error
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are among them
        raise ManifestError(f"{folder}: is no whole data set of `datasets` ({error!r})") from error
    parts = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"": saved}
    foreign = sorted(name for name in parts if name and name not in NAMES)
    if foreign:
        raise ManifestError(f"{folder}: has the splits {', '.join(foreign)}; known are {', '.join(NAMES)}")
    number = 0
    for split, dataset in parts.items():
        for name, feature in dataset.features.items():
            if isinstance(feature, datasets.Audio):
                dataset = dataset.cast_column(name, datasets.Audio(decode=False))
        single = {name: dataset.select_columns([name]) for name in dataset.column_names}
        labels = {n: feature for n, feature in dataset.features.items() if isinstance(feature, datasets.ClassLabel)}
        for index, row in enumerate(dataset):
            number += 1
            cells = {"split": NAMES[split]} if split else {}
            for name, value in row.items():
                if isinstance(value, dict | list):
                    cells[name] = _held(value, Stored(single[name], index, name))
                else:
                    cells[name] = value if value is None or name not in labels else labels[name].int2str(value)
            yield number, cells


def _held(value: Any, piece: Stored) -> Any:
    if isinstance(value, dict) and value.keys() == {"bytes", "path"} and value["bytes"] is None:
        return value["path"]  # a file beside the data set, or nothing
    return piece


@dataclass(frozen=True, eq=False)
class Stored(Piece):
    """A sound or an array of a data set on disk, read when it is asked for."""

    dataset: Any
    row: int
    column: str

    def __str__(self) -> str:
        return f"row {self.row + 1} of column {self.column!r}"

    def digest(self) -> str:
        value = self._value()
        if isinstance(value, dict):
            return hashlib.sha256(value["bytes"] if "bytes" in value else repr(value).encode()).hexdigest()
        try:
            array = np.asarray(value)
        except ValueError:  # no array, which is told when it is read
            array = np.asarray(None)
        return digest_of(array) if array.dtype.kind in NUMBERS else hashlib.sha256(repr(value).encode()).hexdigest()

    @property
    def size(self) -> int:
        value = self._value()
        return len(value["bytes"]) if isinstance(value, dict) and "bytes" in value else 8 * len(value)

    def array(self) -> np.ndarray:
        try:
            array = np.asarray(self._value())
        except ValueError as error:
            raise FramesError(f"{self}: is no array [T, C], its rows differ in length") from error
        if array.dtype.kind not in NUMBERS:
            raise FramesError(f"{self}: is no array [T, C] of numbers")
        return array

    def wave(self, sample_rate: int) -> np.ndarray:
        value = self._value()
        if not isinstance(value, dict) or "bytes" not in value:
            raise AudioError(f"{self}: is no sound, a column of Audio is needed")
        with tempfile.TemporaryDirectory() as folder:  # so that it is checked as every file is
            file = Path(folder) / Path(value["path"] or "sound").name
            file.write_bytes(value["bytes"])
            try:
                return read_audio(file, sample_rate)
            except AudioError as error:
                raise AudioError(str(error).replace(str(file), str(self))) from error

    def _value(self) -> Any:
        return self.dataset[self.row][self.column]
