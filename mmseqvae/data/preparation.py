"""A data set to a corpus that is kept, and items in user units to batches and back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmseqvae.config import CACHE_DIR, LogMelConfig, TextConfig, WindowConfig
from mmseqvae.data import corpus_from_manifest
from mmseqvae.data.clips import Piece, piece_of
from mmseqvae.data.corpus import Corpus, Stamps, keep, open_or_none
from mmseqvae.data.corpus_from_manifest import MANIFEST_KINDS, Settings, no_steps
from mmseqvae.data.data_warning import warn
from mmseqvae.data.dataset import Batch
from mmseqvae.data.manifest import KNOWN, Manifest
from mmseqvae.data.sources import Source, read_source, state_of
from mmseqvae.data.store import extraction
from mmseqvae.data.store.atomic_folder import is_whole, remove
from mmseqvae.data.store.extraction import FileFrontEnd, FrontEnd
from mmseqvae.data.store.feature_store import key_of
from mmseqvae.data.store.work_sharing import together
from mmseqvae.features.arrays import FrameArrays
from mmseqvae.features.log_mel import LogMel
from mmseqvae.sequence import Sequence
from mmseqvae.tokenizers.words_bytes_bpe import TOKENIZERS

VERSION = 1  # raise it where the same data set and settings give another corpus

log = logging.getLogger(__name__)


def prepare(
    manifest: Source,
    *,
    audio: LogMelConfig | None = None,
    text: TextConfig | None = None,
    tokens: Collection[str] = (),
    frames: Collection[str] = (),
    labels: Collection[str] = (),
    covariates: Collection[str] = (),
    windows: WindowConfig | None = None,
    speeds: Iterable[float] = (),
    front_ends: Mapping[str, FrontEnd] | None = None,
    start: Mapping[str, FrontEnd] | None = None,
    cache_dir: str | Path = CACHE_DIR,
    skip_bad: bool = False,
    workers: int | None = None,
) -> Corpus:
    """Read a data set (see `read_source`), compute what features are not in the cache, and fit the front ends.

    The corpus is kept in the cache under what the data set holds and these settings: the next call opens it, without
    reading a row. Where RANK and WORLD_SIZE are set, as by torchrun, the processes share the work. Of a data set in
    memory only features are kept.

    audio: settings of the log-mels; text: units of text; None means the defaults. tokens, frames, labels: columns that
    are modalities beside `text` and `audio`: strings, .npy files, and strings of which each is one token. covariates:
    columns of strings that condition every modality and are not modelled. windows: how long items are cut, None not at
    all. speeds: other speeds that recordings of the split train are computed at as well, such as 0.9 and 1.1, for
    training to draw from. front_ends: those of a trained run, used as they are instead of audio, text and columns; then
    a column that the manifest lacks is missing everywhere, and training rows are not needed. start: those of a run that
    a training starts from: log-mels, frames and units of text are as there, standardised as there, and vocabularies get
    the new symbols beside theirs; columns that the run has not are new.
    skip_bad: leave bad rows out, listed in `Corpus.skipped`, rather than raise. workers: processes for the features.

    A `DataWarning` tells what does not count: unused columns, files that are not read, rows left out, symbols and
    labels that training never saw. Raises ManifestError naming the manifest, rows and files, ValueError for settings
    that do not fit together.
    """
    if front_ends is not None:
        if audio is not None or text is not None or tokens or frames or labels or covariates:
            raise ValueError("front_ends of a trained run settle audio, text and all columns: pass one or the other")
        wanted = {name: MANIFEST_KINDS[front_end.kind] for name, front_end in front_ends.items()}
    else:
        wanted = _wanted({"tokens": tokens, "frames": frames, "labels": labels, "covariate": covariates})
        strange = [name for name in (text.columns if text else ()) if wanted.get(name) != "tokens"]
        if strange:
            raise ValueError(f"units of text are given for {strange}, which are no columns of text")
    start = _continued(start or {}, wanted, audio, text)
    played, windows = _speeds(speeds), windows or WindowConfig()
    read = partial(read_source, manifest, wanted, required=[*tokens, *frames, *labels, *covariates])
    settings = Settings(
        audio or LogMelConfig(), text or TextConfig(), front_ends, start, windows, played, cache_dir, skip_bad, workers
    )
    state = state_of(manifest, cache_dir)
    if state is None:  # in memory; or absent, which reading it will tell
        corpus = corpus_from_manifest.corpus_of(corpus_from_manifest.read_in(read(), settings), settings)
    else:
        given = front_ends and [[name, front_end.to_dict()] for name, front_end in front_ends.items()]
        told: list[Any] = [list(wanted.items()), asdict(settings.audio), asdict(settings.text), given, skip_bad]
        told += [asdict(windows), played] if windows.on or played else []
        told += [{name: front_end.to_dict() for name, front_end in start.items()}] if start else []
        folder = Path(cache_dir) / "corpora" / key_of([VERSION, extraction.VERSION, state, told])
        corpus = _kept(folder, Path(str(manifest)), read, settings)
    for line in corpus.counts():
        log.info("%s", line)
    for line in corpus.remarks():
        warn(line)
    return corpus


def _kept(folder: Path, path: Path, read: Callable[[], Manifest], settings: Settings) -> Corpus:
    """The corpus in `folder`, made where it is not there or not any more what the data set holds."""
    found = open_or_none(folder, path, read)
    if found is not None:
        log.info("%s: as prepared in %s", path, folder)
        return found
    remove(folder)
    table = read()
    stamps = Stamps.of(corpus_from_manifest.files_of(table))  # before they are read, so that a later change is seen
    read_in = corpus_from_manifest.read_in(table, settings)
    together(
        [folder],
        is_whole,
        lambda _: keep(folder, corpus_from_manifest.corpus_of(read_in, settings), read_in.stores, stamps),
    )
    made = open_or_none(folder, path, read, check=0)
    if made is None:
        raise OSError(f"{folder}: was damaged while it was written")
    return made


def encode_items(front_ends: Mapping[str, FrontEnd], items: Iterable[Mapping[str, Any]]) -> Batch:
    """Items in user units, such as {"text": "seven", "audio": "seven.wav"} -> a batch, standardised.

    Text, labels and covariates are strings, audio a file, (samples, rate) or samples at the front end's rate, frames an
    .npy file or an array, NaN being holes; FILE.npz:KEY is an array of an archive. What an item lacks, or holds as
    None, is missing (length 0), as is a covariate that training never saw.
    Raises ValueError for a name that is not in `front_ends`.
    """
    rows = list(items)
    foreign = sorted({name for row in rows for name in row} - front_ends.keys())
    if foreign:
        raise ValueError(f"{foreign} are no modalities of this model; it has {list(front_ends)}")
    batch = {
        name: Sequence.from_list(
            [None if row.get(name) is None else _encoded(front_end, name, row[name]) for row in rows],
            no_steps(front_end),
        )
        for name, front_end in front_ends.items()
    }
    holed = [name for name, front_end in front_ends.items() if isinstance(front_end, FrameArrays)]
    return batch | {name: batch[name].without_nans() for name in holed}


def _encoded(front_end: FrontEnd, name: str, value: Any) -> torch.Tensor:
    if isinstance(front_end, FileFrontEnd) and isinstance(value, str | Path | tuple | Mapping):
        piece = piece_of(value, "audio" if isinstance(front_end, LogMel) else "frames", name, Path())
        if isinstance(piece, Piece):
            return front_end.standardise(piece.read(front_end))
    return front_end.encode(value)


def decode_items(front_ends: Mapping[str, FrontEnd], batch: Batch) -> dict[str, list[Any]]:
    """A batch -> text, samples and arrays in user units, a list of items a modality; None where missing."""
    return {
        name: [front_ends[name].decode(item.cpu()) if len(item) else None for item in sequence.items()]
        for name, sequence in batch.items()
    }


def _speeds(speeds: Iterable[float]) -> tuple[float, ...]:
    """Each once, in order. Raises ValueError for what is no other speed."""
    found = tuple(sorted({float(speed) for speed in speeds}))
    wrong = [speed for speed in found if not 0.5 <= speed <= 2 or speed == 1]
    if wrong:
        raise ValueError(f"speeds must lie in 0.5..2 and not be 1, which is there anyway; got {wrong}")
    return found


def _continued(
    start: Mapping[str, FrontEnd], wanted: Mapping[str, str], audio: LogMelConfig | None, text: TextConfig | None
) -> dict[str, FrontEnd]:
    """Those front ends of a run that are wanted here. ValueError where the settings contradict them."""
    found = {name: front_end for name, front_end in start.items() if name in wanted}
    for name, front_end in found.items():
        kind = MANIFEST_KINDS[front_end.kind]
        if kind != wanted[name]:
            raise ValueError(f"{name} is a column of {kind} in the run to start from, and of {wanted[name]} here")
        if isinstance(front_end, LogMel) and audio is not None and audio != front_end.config:
            raise ValueError(f"{name}: log-mels are those of the run to start from: leave the settings of audio out")
        if kind == "tokens" and text is not None and TOKENIZERS[text.units_of(name)].kind != front_end.kind:
            raise ValueError(f"{name}: units of text are those of the run to start from: leave them out")
    return found


def _wanted(named: Mapping[str, Collection[str]]) -> dict[str, str]:
    """The columns to look for: name -> kind, of kind -> names. Raises ValueError where the options contradict."""
    strings = [f"{kind} ({names!r})" for kind, names in named.items() if isinstance(names, str)]
    if strings:
        raise ValueError(f"{', '.join(strings)}: lists of column names are needed")
    kinds: dict[str, str] = {}
    for kind, names in named.items():
        for name in dict.fromkeys(names):
            if name in ("id", "split"):
                raise ValueError(f"column {name!r} cannot be a modality or covariate")
            other = kinds.get(name) or (KNOWN.get(name) if kind == "covariate" else None)
            if other:
                raise ValueError(f"column {name!r} cannot be both {other} and {kind}")
            kinds[name] = kind
    return {**KNOWN, **kinds}
