"""Files to frames: computed once, in parallel where that pays, and kept in a store named after content and settings."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mmseqvae.audio import AudioError, LogMel
from mmseqvae.data.pieces import Piece
from mmseqvae.data.store import Store, StoreWriter, key_of
from mmseqvae.frames import FrameArrays, FramesError
from mmseqvae.labels import Category, Labels
from mmseqvae.text import Tokenizer
from mmseqvae.units import TOKENIZERS

FrontEnd = Tokenizer | Category | LogMel | FrameArrays  # Words, Bytes, BytePairs and Labels are a Tokenizer
FileFrontEnd = LogMel | FrameArrays
Clip = str | Piece  # what frames are made of: a path or a piece

VERSION = 1  # raise it where a front end computes other frames from the same file and settings
WORTH_WORKERS = 200e6  # bytes of files: below, starting processes takes longer than they save

log = logging.getLogger(__name__)


def front_end_from_dict(state: dict[str, Any]) -> FrontEnd:
    """The tokenizer or front end whose `to_dict` gave `state`. Raises ValueError for another kind."""
    known: list[type[FrontEnd]] = [*TOKENIZERS.values(), Labels, Category, LogMel, FrameArrays]
    kinds = {front_end.kind: front_end for front_end in known}
    if state.get("kind") not in kinds:
        raise ValueError(f"front end of kind {state.get('kind')!r}; known are {sorted(kinds)}")
    return kinds[state["kind"]].from_dict(state)


def digests(files: Iterable[Clip], name: str) -> dict[Clip, str]:
    """SHA-256 of the content of every file or piece: path or piece -> digest."""
    paths = list(dict.fromkeys(files))
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        found = pool.map(_digest, paths)
        return dict(zip(paths, tqdm(found, f"hashing {name}", len(paths), unit="file", delay=1), strict=True))


def compute(
    front_end: FileFrontEnd, files: Mapping[Clip, str], name: str, cache_dir: str | Path, workers: int | None = None
) -> Store:
    """The store with the frames of `files` (path or piece -> digest), opened where it is there, else computed.

    A file that cannot be used becomes an entry of `store.problems`. Frames that another store of the same settings
    holds are copied, so a manifest that grew computes only what is new. `workers` None decides by the size of the
    files; 0 stays in this process.
    """
    settings = {"version": VERSION, **front_end.describe()}
    family = Path(cache_dir) / "features" / f"{front_end.kind}-{key_of(settings)}"
    folder = family / key_of(sorted(set(files.values())))
    store = Store.open_or_none(folder)
    if store is not None:
        log.info("%s: features of %d files are in %s", name, len(files), folder)
        return store

    paths: dict[str, Clip] = {}
    for path, digest in files.items():
        paths.setdefault(digest, path)  # each content once
    with StoreWriter(folder, front_end.channels, settings) as writer:
        for sibling in sorted(family.iterdir()):
            older = Store.open_or_none(sibling)
            if older is None:
                continue
            for digest in [digest for digest in paths if digest in older]:
                writer.add(digest, older.clip(digest))
                del paths[digest]
        for digest, clip in _run(front_end, paths, name, workers):
            writer.add(digest, clip)
        return writer.finish()


def _run(
    front_end: FileFrontEnd, paths: dict[str, Clip], name: str, workers: int | None
) -> Iterator[tuple[str, np.ndarray | str]]:
    """Digest and clip, or digest and problem, of every path, with a progress bar."""
    if workers is None:
        size = sum(clip.size if isinstance(clip, Piece) else Path(clip).stat().st_size for clip in paths.values())
        workers = _cores() if size > WORTH_WORKERS else 0
    bar = {"desc": f"features of {name}", "total": len(paths), "unit": "file", "delay": 1}
    if workers < 2:
        for digest, path in tqdm(paths.items(), **bar):
            yield digest, _clip(front_end, path)
        return
    context = multiprocessing.get_context("spawn")  # forking a process that runs torch's threads can hang
    pool = ProcessPoolExecutor(workers, context, _begin, (front_end.to_dict(),))
    try:
        clips = pool.map(_clip_in_worker, paths.values(), chunksize=16)
        yield from zip(paths, tqdm(clips, **bar), strict=True)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker that computes features ended early. In a script, call from under "
            '`if __name__ == "__main__":`; if memory is short, pass workers=0'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _clip(front_end: FileFrontEnd, clip: Clip) -> np.ndarray | str:
    try:
        return (clip.read(front_end) if isinstance(clip, Piece) else front_end.read(clip)).numpy()
    except (AudioError, FramesError) as error:  # the same content may later be read from another place
        return str(error).removeprefix(f"{clip}: ").removeprefix("the array: ")


_worker_front_end: FileFrontEnd | None = None


def _begin(state: dict[str, Any]) -> None:
    global _worker_front_end
    torch.set_num_threads(1)
    front_end = front_end_from_dict(state)
    assert isinstance(front_end, FileFrontEnd)
    _worker_front_end = front_end


def _clip_in_worker(clip: Clip) -> np.ndarray | str:
    assert _worker_front_end is not None
    return _clip(_worker_front_end, clip)


def _digest(clip: Clip) -> str:
    if isinstance(clip, Piece):
        return clip.digest()
    with open(clip, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
