"""Files to frames: computed once, in parallel where that pays, and kept in shards by content and settings."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mmseqvae.data.clips import Piece
from mmseqvae.data.store.atomic_folder import is_whole, sealing
from mmseqvae.data.store.feature_store import Shards, Store, key_of, write_shard
from mmseqvae.data.store.work_sharing import together
from mmseqvae.distributed import processes
from mmseqvae.features.arrays import FrameArrays, FramesError
from mmseqvae.features.log_mel import AudioError, LogMel
from mmseqvae.files import write_json
from mmseqvae.tokenizers.categories import Category, Labels
from mmseqvae.tokenizers.characters import Tokenizer
from mmseqvae.tokenizers.words_bytes_bpe import TOKENIZERS

FrontEnd = Tokenizer | Category | LogMel | FrameArrays  # Words, Bytes, BytePairs and Labels are a Tokenizer
FileFrontEnd = LogMel | FrameArrays
Clip = str | Piece  # what frames are made of: a path or a piece

VERSION = 2  # raise it where a front end computes other frames from the same file and settings
FILES, BYTES, SHARDS = 256, 1 << 26, 2000  # a shard is of so many files or bytes of them; but there are not many more
HASHED = 4096  # files whose digests are kept together
DIGESTS = "digests.json"
WORTH_WORKERS = 200e6  # bytes of files: below, starting processes takes longer than they save

log = logging.getLogger(__name__)


def front_end_from_dict(state: dict[str, Any]) -> FrontEnd:
    """The tokenizer or front end whose `to_dict` gave `state`. Raises ValueError for another kind."""
    known: list[type[FrontEnd]] = [*TOKENIZERS.values(), Labels, Category, LogMel, FrameArrays]
    kinds = {front_end.kind: front_end for front_end in known}
    if state.get("kind") not in kinds:
        raise ValueError(f"front end of kind {state.get('kind')!r}; known are {sorted(kinds)}")
    return kinds[state["kind"]].from_dict(state)


def digests(files: Iterable[Clip], name: str, cache_dir: str | Path) -> dict[Clip, str]:
    """SHA-256 of the content of every file or piece: path or piece -> digest.

    Those of files are kept under `cache_dir` by path, size and time of change, and ranks share the reading.
    """
    clips = list(dict.fromkeys(files))
    paths = [clip for clip in clips if isinstance(clip, str)]
    found: dict[Clip, str] = {}
    groups: dict[Path, list[str]] = {}
    for first in range(0, len(paths), HASHED):
        group = paths[first : first + HASHED]
        stats = [os.stat(path) for path in group]
        told = [[os.path.abspath(p), s.st_size, s.st_mtime_ns] for p, s in zip(group, stats, strict=True)]
        groups[Path(cache_dir) / "digests" / key_of(told)] = group

    with ThreadPoolExecutor() as pool, tqdm(desc=f"hashing {name}", total=len(clips), unit="file", delay=1) as bar:

        def read(folders: list[Path]) -> None:
            for folder in folders:
                with sealing(folder) as work:
                    write_json(work / DIGESTS, list(pool.map(_digest, groups[folder])))
                bar.update(len(groups[folder]))

        together(list(groups), is_whole, read)
        found |= {clip: clip.digest() for clip in clips if isinstance(clip, Piece)}
    for folder, group in groups.items():
        found |= zip(group, json.loads((folder / DIGESTS).read_text("utf-8")), strict=True)
    return found


def compute(
    front_end: FileFrontEnd, files: Mapping[Clip, str], name: str, cache_dir: str | Path, workers: int | None = None
) -> Store:
    """The store with the frames of `files` (path or piece -> digest), opened where it is there, else computed.

    A file that cannot be used becomes an entry of `store.problems`. Shards of the same settings are used whoever wrote
    them for whatever manifest, so only what is new is computed; ranks share that. `workers` None decides by the size
    of the files; 0 stays in this process.
    """
    settings = {"version": VERSION, **front_end.describe()}
    family = Path(cache_dir) / "features" / f"{front_end.kind}-{key_of(settings)}"
    shards = Shards(family)
    clips: dict[str, Clip] = {}
    for path, digest in files.items():
        clips.setdefault(digest, path)  # each content once
    if all(digest in shards for digest in clips):
        log.info("%s: features of %d files are in %s", name, len(files), family)
        return Store(shards, clips, front_end.channels)

    groups = list(_groups(clips))  # of all files, so that all ranks see the same ones whatever is there already
    new = [{digest: clips[digest] for digest in group if digest not in shards} for group in groups]
    folders = [family / key_of(list(missing)) for missing in new]
    with tqdm(desc=f"features of {name}", total=sum(map(len, new)), unit="file", delay=1) as bar:
        together(
            range(len(groups)),
            lambda group: not new[group] or is_whole(folders[group]),
            lambda mine: _run(front_end, settings, {folders[group]: new[group] for group in mine}, workers, bar),
        )
    shards.look()
    return Store(shards, clips, front_end.channels)


def _groups(clips: Mapping[str, Clip]) -> Iterator[list[str]]:
    """The digests in their order, parted into what becomes a shard each.

    A group ends with the file that brings it to FILES or BYTES, or to 1/SHARDS of the whole if that is more.
    """
    sizes = {digest: _size(clip) for digest, clip in clips.items()}
    files, heavy = max(FILES, len(sizes) / SHARDS), max(BYTES, sum(sizes.values()) / SHARDS)
    group: list[str] = []
    weight = 0
    for digest, size in sizes.items():
        group.append(digest)
        weight += size
        if len(group) >= files or weight >= heavy:
            yield group
            group, weight = [], 0
    if group:
        yield group


def _run(
    front_end: FileFrontEnd, settings: dict[str, Any], jobs: dict[Path, dict[str, Clip]], workers: int | None, bar: Any
) -> None:
    """Write the shard of every job that is not there by then."""
    if workers is None:
        heavy = sum(_size(clip) for clips in jobs.values() for clip in clips.values()) > WORTH_WORKERS
        workers = own_cores() if heavy else 0
    if workers < 2:
        for folder, clips in jobs.items():
            _shard(front_end, settings, folder, clips, bar)
        return
    context = multiprocessing.get_context("spawn")  # forking a process that runs torch's threads can hang
    pool = ProcessPoolExecutor(workers, context, _begin, (front_end.to_dict(), settings))
    try:
        for count in pool.map(_shard_in_worker, jobs.items()):
            bar.update(count)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker that computes features ended early. In a script, call from under "
            '`if __name__ == "__main__":`; if memory is short, pass workers=0'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _shard(
    front_end: FileFrontEnd, settings: dict[str, Any], folder: Path, clips: dict[str, Clip], bar: Any = None
) -> None:
    if is_whole(folder):
        return

    def computed() -> Iterator[tuple[str, np.ndarray | str]]:
        for digest, clip in clips.items():
            yield digest, _clip(front_end, clip)
            if bar is not None:
                bar.update()

    write_shard(folder, front_end.channels, settings, computed())


def own_cores() -> int:
    """How many cores this process may fill: torchrun's processes share a machine's, srun gives each task its own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = processes()
    return max(1, cores // here.a_node) if here.launcher == "torchrun" else cores


def _clip(front_end: FileFrontEnd, clip: Clip) -> np.ndarray | str:
    try:
        return (clip.read(front_end) if isinstance(clip, Piece) else front_end.read(clip)).numpy()
    except (AudioError, FramesError) as error:  # the same content may later be read from another place
        return str(error).removeprefix(f"{clip}: ").removeprefix("the array: ")


_worker: tuple[FileFrontEnd, dict[str, Any]] | None = None


def _begin(state: dict[str, Any], settings: dict[str, Any]) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    front_end = front_end_from_dict(state)
    assert isinstance(front_end, FileFrontEnd)
    _worker = front_end, settings


def _end_with_parent() -> None:
    """A process that was killed cannot end its workers, which would wait for work, and hold memory, forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _shard_in_worker(job: tuple[Path, dict[str, Clip]]) -> int:
    """Write a shard; how many files were for it."""
    assert _worker is not None
    _shard(*_worker, *job)
    return len(job[1])


def _size(clip: Clip) -> int:
    """Bytes, about."""
    return clip.size if isinstance(clip, Piece) else os.stat(clip).st_size


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
