"""A manifest to a corpus: front ends fitted on its training split, and a data set of every split."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmseqvae.audio import LogMel
from mmseqvae.config import CACHE_DIR, LogMelConfig, TextConfig
from mmseqvae.data.batches import Batch, Column, SequenceDataset
from mmseqvae.data.features import Clip, FileFrontEnd, FrontEnd, compute, digests
from mmseqvae.data.manifest import FILES, KNOWN, SPLITS, Manifest, ManifestError, Problem, Row
from mmseqvae.data.pieces import Piece, piece_of
from mmseqvae.data.sources import Source, read_source
from mmseqvae.data.store import Store
from mmseqvae.frames import FrameArrays, FramesError, Standard, channels_of
from mmseqvae.labels import Category, Labels
from mmseqvae.sequence import Sequence
from mmseqvae.units import TOKENIZERS, train_tokenizer

WORDS: dict[str, type[Labels] | type[Category]] = {"labels": Labels, "covariate": Category}
MANIFEST_KINDS = {LogMel.kind: "audio", FrameArrays.kind: "frames", **{end.kind: name for name, end in WORDS.items()}}
MANIFEST_KINDS |= {tokenizer.kind: "tokens" for tokenizer in TOKENIZERS.values()}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """front_ends: modality or covariate -> what turns user units into steps and back; datasets: one a split.

    skipped: rows left out by `skip_bad`. unknown: name -> symbols or labels that training never saw, with counts.
    """

    front_ends: dict[str, FrontEnd]
    datasets: dict[str, SequenceDataset]
    manifest: Manifest
    skipped: list[Problem]
    unknown: dict[str, Counter[str]] = field(default_factory=dict)

    def summary(self) -> list[str]:
        """What was found, a line each: items of every split and modality, missing, skipped, unused, unknown symbols."""
        lines = []
        for split, dataset in self.datasets.items():
            parts = []
            for name in self.front_ends:
                there = int((dataset.lengths(name) > 0).sum())
                missing = len(dataset) - there
                parts.append(f"{name} {there}" + (f" ({missing} missing)" if missing else ""))
            lines.append(f"{split}: {len(dataset)} items; {', '.join(parts)}")
        if self.skipped:
            lines.append(f"skipped: {len(self.skipped)} bad rows")
        if self.manifest.unused:
            lines.append(f"unused columns: {', '.join(self.manifest.unused)}")
        for name, symbols in self.unknown.items():
            shown = ", ".join(f"{symbol!r} {count}" for symbol, count in symbols.most_common(10))
            lines.append(f"{name}: {symbols.total()} unknown symbols, {len(symbols)} different ({shown})")
        return lines


def prepare(
    manifest: Source,
    *,
    audio: LogMelConfig | None = None,
    text: TextConfig | None = None,
    tokens: Collection[str] = (),
    frames: Collection[str] = (),
    labels: Collection[str] = (),
    covariates: Collection[str] = (),
    front_ends: Mapping[str, FrontEnd] | None = None,
    cache_dir: str | Path = CACHE_DIR,
    skip_bad: bool = False,
    workers: int | None = None,
) -> Corpus:
    """Read a data set (see `read_source`), compute what features are not in the cache, and fit the front ends.

    audio: settings of the log-mels; text: units of text; None means the defaults. tokens, frames, labels: columns that
    are modalities beside `text` and `audio`: strings, .npy files, and strings of which each is one token. covariates:
    columns of strings that condition every modality and are not modelled. front_ends: those of a trained run, used as
    they are instead of all these; then a column that the manifest lacks is missing everywhere, and training rows are
    not needed.
    skip_bad: leave bad rows out, listed in `Corpus.skipped`, rather than raise. workers: processes for the features.

    Raises ManifestError naming the manifest, rows and files, ValueError for settings that do not fit together.
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
    table = read_source(manifest, wanted, required=[*tokens, *frames, *labels, *covariates])
    problems = list(table.problems)
    if problems and not (skip_bad and table.rows):
        raise ManifestError(table.complaint(problems))

    known = dict(front_ends) if front_ends is not None else {}
    stores: dict[str, Clips] = {}
    bad: defaultdict[int, list[str]] = defaultdict(list)
    for name in [name for name, kind in table.columns.items() if kind in FILES]:
        cells = [(row, row.cells[name]) for row in table.rows if name in row.cells]
        if front_ends is None:
            known[name] = _new_front_end(table, name, [file for _, file in cells], audio or LogMelConfig())
        stores[name] = Clips.of(known[name], name, [file for _, file in cells], cache_dir, workers)
        for row, file in cells:
            if stores[name].problem(file):
                bad[row.row].append(f"{name} {file}: {stores[name].problem(file)}")
    problems += [Problem(row.row, row.id, "; ".join(bad[row.row])) for row in table.rows if row.row in bad]
    problems.sort()
    rows = [row for row in table.rows if row.row not in bad]
    if bad and not (skip_bad and rows):
        raise ManifestError(table.complaint(problems))

    if front_ends is None:
        known = _fit(known, table, [row for row in rows if row.split == "train"], stores, text or TextConfig())
    datasets = {split: _dataset([row for row in rows if row.split == split], known, stores) for split in SPLITS}
    corpus = Corpus(known, datasets, table, problems, _unknown(known, rows))
    for line in corpus.summary():
        log.info("%s", line)
    return corpus


def encode_items(front_ends: Mapping[str, FrontEnd], items: Iterable[Mapping[str, Any]]) -> Batch:
    """Items in user units, such as {"text": "seven", "audio": "seven.wav"} -> a batch, standardised.

    Text, labels and covariates are strings, audio a file, (samples, rate) or samples at the front end's rate, frames an
    .npy file or an array; FILE.npz:KEY is an array of an archive. What an item lacks, or holds as None, is missing
    (length 0), as is a covariate that training never saw.
    Raises ValueError for a name that is not in `front_ends`.
    """
    rows = list(items)
    foreign = sorted({name for row in rows for name in row} - front_ends.keys())
    if foreign:
        raise ValueError(f"{foreign} are no modalities of this model; it has {list(front_ends)}")
    return {
        name: Sequence.from_list(
            [None if row.get(name) is None else _encoded(front_end, name, row[name]) for row in rows],
            _no_steps(front_end),
        )
        for name, front_end in front_ends.items()
    }


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


@dataclass(frozen=True)
class Clips:
    """The frames of one modality's files: a store, and the digest by which it knows each path."""

    store: Store
    digests: dict[Clip, str]

    @classmethod
    def of(cls, front_end: FrontEnd, name: str, files: list[Clip], cache_dir: str | Path, workers: int | None) -> Clips:
        if not isinstance(front_end, FileFrontEnd):
            raise TypeError(f"{name}: a front end of kind {front_end.kind} reads no files")
        found = digests(files, name)
        return cls(compute(front_end, found, name, cache_dir, workers), found)

    def problem(self, file: Clip) -> str | None:
        return self.store.problems.get(self.digests[file])

    def clip(self, file: Clip) -> np.ndarray:
        """[T, C] in the units of the features."""
        return self.store.clip(self.digests[file])

    def column(self, files: Iterable[Clip | None], standard: Standard) -> Column:
        """The files as a column, None being missing."""
        spans = [(0, 0) if file is None else self.store.span(self.digests[file]) for file in files]
        starts, lengths = np.array(spans, np.int64).reshape(-1, 2).T
        return Column(self.store.values, starts.copy(), lengths.copy(), standard)


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


def _new_front_end(table: Manifest, name: str, files: list[Clip], audio: LogMelConfig) -> LogMel | FrameArrays:
    if table.columns[name] == "audio":
        front_end = LogMel(audio)
        _ = front_end.basis  # settings that cannot work are known before any file is read
        return front_end
    channels = Counter(found for found in map(_channels, files) if found)
    if not channels:
        raise ManifestError(f"{table.path}: no cell in column {name!r} is an array [T, C]")
    return FrameArrays(channels.most_common(1)[0][0])


def _channels(clip: Clip) -> int | None:
    """C of what will be frames; None where reading it will have something to complain about."""
    if not isinstance(clip, Piece):
        return channels_of(clip)
    try:
        array = clip.array()
    except FramesError:
        return None
    return array.shape[1] if array.ndim == 2 else None


def _fit(
    known: Mapping[str, FrontEnd], table: Manifest, rows: list[Row], stores: Mapping[str, Clips], text: TextConfig
) -> dict[str, FrontEnd]:
    """Vocabularies learnt and frames standardised on the training `rows`; in the order of `table.columns`."""
    if not rows:
        raise ManifestError(f"{table.path}: no row is in the split train, so there is nothing to learn from")
    fitted: dict[str, FrontEnd] = {}
    for name, kind in table.columns.items():
        cells = [row.cells[name] for row in rows if name in row.cells]
        if not cells:
            raise ManifestError(f"{table.path}: column {name!r} is empty in every row of the split train")
        if kind == "tokens":
            fitted[name] = train_tokenizer(cells, text, name)
            continue
        if kind in WORDS:
            fitted[name] = WORDS[kind].train(cells)
            continue
        front_end = known[name]
        assert isinstance(front_end, FileFrontEnd)
        front_end.fit(stores[name].clip(file) for file in cells)
        fitted[name] = front_end
    return fitted


def _dataset(rows: list[Row], front_ends: Mapping[str, FrontEnd], stores: Mapping[str, Clips]) -> SequenceDataset:
    columns = {}
    for name, front_end in front_ends.items():
        cells = [row.cells.get(name) for row in rows]
        if not isinstance(front_end, FileFrontEnd):
            tokens = [None if cell is None else front_end.encode(cell) for cell in cells]
            columns[name] = Column.of(tokens, _no_steps(front_end))
        elif name in stores:
            columns[name] = stores[name].column(cells, front_end.fitted)
        else:
            columns[name] = Column.of(len(rows) * [None], _no_steps(front_end))
    weighted = any(row.weight is not None for row in rows)
    weights = np.array([1.0 if row.weight is None else row.weight for row in rows]) if weighted else None
    return SequenceDataset([row.id for row in rows], [row.label for row in rows], columns, weights)


def _no_steps(front_end: FrontEnd) -> torch.Tensor:
    """A sequence of no steps, of the type and channels that the front end gives."""
    return torch.zeros(0, front_end.channels) if isinstance(front_end, FileFrontEnd) else torch.zeros(0).long()


def _unknown(front_ends: Mapping[str, FrontEnd], rows: list[Row]) -> dict[str, Counter[str]]:
    found = {
        name: sum((front_end.unknown(row.cells[name]) for row in rows if name in row.cells), Counter[str]())
        for name, front_end in front_ends.items()
        if not isinstance(front_end, FileFrontEnd)
    }
    return {name: symbols for name, symbols in found.items() if symbols}
