"""Folders that appear whole or not at all, and that tell whether they still are what was written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmseqvae.files import write_text

SEAL = "seal.json"
UNFINISHED = ".writing-"
ABANDONED = 86400.0  # seconds after which an unfinished folder is that of a process that was killed
TRIES = 10


@contextmanager
def sealing(folder: Path) -> Iterator[Path]:
    """A temporary folder to write files to: sealed and renamed to `folder` if the block ends well, else removed.

    Of several processes that write the same folder the first one's stays; what is damaged is replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    work = _unfinished(folder)
    work.mkdir()
    try:
        yield work
        for file in work.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        _seal(work, {file.name: _state(file) for file in sorted(work.iterdir())})
        for _ in range(TRIES):
            try:
                work.rename(folder)
                return
            except OSError:
                if not folder.exists():
                    raise
            if is_whole(folder):
                return
            remove(folder)
        raise OSError(f"{folder}: other processes keep writing it damaged")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Whether a sealed folder is there, and its files are as they were when it was sealed.

    A file counts as unchanged when its size and time of change are those of the seal. Where only the time is another,
    as after copying, its content is read and compared, and the new time noted.
    """
    try:
        seal = json.loads((folder / SEAL).read_text("utf-8"))
        files: dict[str, list[Any]] = seal["files"]
        if seal["checksum"] != _checksum(files):
            return False
        touched = False
        for name, (size, changed, digest) in files.items():
            found = (folder / name).stat()
            if found.st_size != size:
                return False
            if found.st_mtime_ns != changed:
                touched = True
                files[name] = _state(folder / name)
                if files[name][2] != digest:
                    return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if touched:
        with suppress(OSError):  # a folder that may only be read is compared again the next time
            _seal(folder, files)
    return True


def remove(folder: Path) -> None:
    """Delete a folder, if it is there, so that nobody sees half of it."""
    aside = _unfinished(folder)
    with suppress(FileNotFoundError):
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")


def _sweep(folder: Path) -> None:
    """Remove what killed processes left."""
    for path in folder.glob(f"{UNFINISHED}*"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def _state(file: Path) -> list[Any]:
    """Size, time of change and SHA-256; the time is read first, so that a later change is seen."""
    found = file.stat()
    with file.open("rb") as content:
        return [found.st_size, found.st_mtime_ns, hashlib.file_digest(content, "sha256").hexdigest()]


def _seal(folder: Path, files: dict[str, list[Any]]) -> None:
    write_text(folder / SEAL, json.dumps({"files": files, "checksum": _checksum(files)}))


def _checksum(files: dict[str, list[Any]]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
