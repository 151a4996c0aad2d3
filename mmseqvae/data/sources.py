"""Where items come from: a table, a folder of files, lists in memory, lhotse cuts or a Hugging Face data set.

Each source is one reader of rows; the checks are the same for all, `manifest_of`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmseqvae.data.clips import Broken, Entry, file_digest, open_archive, read_entry
from mmseqvae.data.huggingface import is_saved, read_saved
from mmseqvae.data.lhotse_cuts import CUTS, read_cuts
from mmseqvae.data.manifest import KNOWN, SPLITS, Manifest, ManifestError, manifest_of, read_manifest
from mmseqvae.features.arrays import FramesError
from mmseqvae.files import SOUNDS

Source = str | Path | Iterable[Mapping[str, Any]]

IN_MEMORY = Path("<items>")  # what messages call a list in memory


def read_source(source: Source, wanted: Mapping[str, str] = KNOWN, required: Collection[str] = ()) -> Manifest:
    """The items of a data set, checked; `wanted` and `required` as in `read_manifest`.

    source: one of
    - a table .csv, .tsv or .jsonl, see `read_manifest`;
    - a folder of sound files, .txt and .npz files, see `read_folder`;
    - a list of mappings in memory, see `read_items`;
    - a .jsonl or .jsonl.gz file of lhotse cuts, see `read_cuts`;
    - a folder that a Hugging Face data set was saved to, see `read_saved`.

    Bad rows are collected in `problems`. Raises ManifestError where there is nothing to begin with, and
    ModuleNotFoundError where the extra `data` is needed and not installed.
    """
    if not isinstance(source, str | os.PathLike):
        return manifest_of(IN_MEMORY, read_items(source), wanted, required, Path(), "item")
    path = Path(source)
    if path.is_dir():
        if is_saved(path):
            return manifest_of(path, read_saved(path), wanted, required, Path(), "row")
        found, unread = files_of(path)
        return replace(manifest_of(path, read_folder(path, found), wanted, required, path, "item"), unread=unread)
    if path.is_file() and (path.name.endswith(".jsonl.gz") or _holds_cuts(path)):
        return manifest_of(path, read_cuts(path), wanted, required, Path(), "cut")
    return read_manifest(path, wanted, required)


def state_of(source: Source, apart: str | Path) -> list[str] | None:
    """Where a data set is and what it holds, told without reading its items; None where it is in memory, or absent.

    A table is told by its content, a folder by the names, sizes and times of change of all its files that are neither
    hidden nor in the folder `apart`.
    """
    if not isinstance(source, str | os.PathLike) or not os.path.exists(source):
        return None
    where = os.path.abspath(source)
    if os.path.isfile(where):
        return [where, file_digest(where)]
    told, apart = hashlib.sha256(), os.path.abspath(apart)
    for folder, folders, files in os.walk(where):
        shown = [name for name in folders if not name.startswith(".") and os.path.join(folder, name) != apart]
        folders[:] = sorted(shown)
        for name in sorted(name for name in files if not name.startswith(".")):
            path = os.path.join(folder, name)
            with suppress(OSError):  # a link to nowhere
                found = os.stat(path)
                told.update(os.fsencode(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0"))
    return [where, told.hexdigest()]


def read_items(items: Iterable[Any]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Mappings of columns to values in memory, numbered from 1: the number and the cells, or what is wrong.

    Values are strings; of audio a file's name or (samples, rate) with [N] or [N, channels] samples, or a mapping with
    "array" and "sampling_rate"; of frames an .npy file's name or an array [T, C]. None is missing. Paths start here.
    """
    for number, item in enumerate(items, start=1):
        if not isinstance(item, Mapping):
            yield number, f"must be a mapping of columns to values, is {type(item).__name__}"
            continue
        yield number, {str(name): _plain(value) for name, value in item.items()}


def files_of(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """{name within `folder`, without suffix: files} of all that can be read, in order, and which others there are.

    These are told by their suffixes; hidden files are left out. Raises ManifestError where no file can be read.
    """
    found: defaultdict[str, list[Path]] = defaultdict(list)
    others: set[str] = set()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts) or not path.is_file():
            continue
        if path.suffix.lower() in (*SOUNDS, ".txt", ".npz"):
            found[inside.with_suffix("").as_posix()].append(path)
        else:
            others.add(path.suffix.lower() or path.name)
    if not found:
        raise ManifestError(
            f"{folder}: holds no sound files ({', '.join(SOUNDS)}), .txt or .npz files"
            + (f", but {', '.join(sorted(others))}" if others else "")
        )
    return dict(sorted(found.items())), sorted(others)


def read_folder(folder: Path, found: Mapping[str, list[Path]]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The `files_of` a folder and of those in it, numbered from 1: the number and the cells, or what is wrong.

    Files that differ in their suffix alone are one item, whose id is that name within `folder`: a sound file is its
    `audio`, a .txt file its `text` (without line breaks at the end), every array of an .npz file a column of frames of
    its name, 0-dimensional ones being single values, such as a text or a label. The column `folder` is the name of
    the folder around the item. Where a folder train, valid or test is at the top, all items must lie in these, and it
    is their split.
    """
    tops = {name.partition("/")[0] for name in found if "/" in name}
    for number, (name, paths) in enumerate(found.items(), start=1):
        cells: dict[str, Any] = {"id": name}
        parts = name.split("/")
        if tops & set(SPLITS):
            cells["split"] = parts[0] if len(parts) > 1 else "the folder itself"
        if len(parts) > 1:
            cells["folder"] = parts[-2]
        sounds = [path for path in paths if path.suffix.lower() in SOUNDS]
        if sounds:
            names = " and ".join(path.name for path in sounds)
            twice = Broken(f"is given twice, by {names}: let one item differ in its name")
            cells["audio"] = twice if len(sounds) > 1 else str(sounds[0].relative_to(folder))
        try:
            for path in paths:
                if path.suffix.lower() == ".npz":
                    cells |= dict(_archive(path))
        except FramesError as error:
            yield number, str(error)
            continue
        for path in paths:
            if path.suffix.lower() == ".txt":
                cells["text"] = _text(path)
        yield number, cells


def _text(path: Path) -> str | Broken:
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return Broken(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})")
    except OSError as error:
        return Broken(f"{path}: {error.strerror}")
    return text or Broken(f"{path}: file is empty; delete it where the text is missing")


def _archive(path: Path) -> Iterator[tuple[str, Any]]:
    """The cells of an .npz file. Raises FramesError where it is none."""
    if not path.stat().st_size:
        raise FramesError(f"{path}: file is empty")
    with open_archive(path) as entries:
        for key in entries:
            try:
                array = read_entry(path, entries, key)
            except FramesError as error:
                yield key, Broken(str(error))
                continue
            yield key, array.item() if array.ndim == 0 else Entry(str(path), key)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _holds_cuts(path: Path) -> bool:
    """Whether a .jsonl file begins with a cut of lhotse."""
    if path.suffix.lower() != ".jsonl":
        return False
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = json.loads(next((line for line in file if line.strip()), "null"))
    except ValueError:  # no JSON or no UTF-8, which is told when it is read as a table
        return False
    return isinstance(first, dict) and first.get("type") in CUTS
