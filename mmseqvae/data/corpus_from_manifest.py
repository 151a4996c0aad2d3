"""A checked manifest to a corpus: features computed, front ends fitted on its training split, items of every split."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmseqvae.config import LogMelConfig, TextConfig, WindowConfig
from mmseqvae.data.clips import Piece, Played
from mmseqvae.data.corpus import Corpus
from mmseqvae.data.dataset import Column, SequenceDataset
from mmseqvae.data.manifest import FILES, SPLITS, Manifest, ManifestError, Problem, Row
from mmseqvae.data.store.extraction import Clip, FileFrontEnd, FrontEnd, compute, digests
from mmseqvae.data.store.feature_store import Store
from mmseqvae.data.windows import Part, clocks, windowed
from mmseqvae.features.arrays import FrameArrays, FramesError, Standard, channels_of
from mmseqvae.features.log_mel import LogMel
from mmseqvae.tokenizers.categories import Category, Labels
from mmseqvae.tokenizers.characters import Tokenizer
from mmseqvae.tokenizers.words_bytes_bpe import TOKENIZERS, train_tokenizer

WORDS: dict[str, type[Labels] | type[Category]] = {"labels": Labels, "covariate": Category}
MANIFEST_KINDS = {LogMel.kind: "audio", FrameArrays.kind: "frames", **{end.kind: name for name, end in WORDS.items()}}
MANIFEST_KINDS |= {tokenizer.kind: "tokens" for tokenizer in TOKENIZERS.values()}


@dataclass(frozen=True)
class Settings:
    """What a corpus depends on beside the data set; see `prepare`."""

    audio: LogMelConfig
    text: TextConfig
    front_ends: Mapping[str, FrontEnd] | None
    start: Mapping[str, FrontEnd]
    windows: WindowConfig
    speeds: tuple[float, ...]
    cache_dir: str | Path
    skip_bad: bool
    workers: int | None


@dataclass(frozen=True)
class ReadIn:
    """A manifest whose files have been read: the rows that can be used, the problems of the others, the frames.

    ends: front ends as far as they are known before anything is fitted. rows: of windows, where items are cut.
    """

    table: Manifest
    rows: list[Row]
    problems: list[Problem]
    ends: dict[str, FrontEnd]
    clips: dict[str, Clips]

    @property
    def stores(self) -> dict[str, Store]:
        return {name: clips.store for name, clips in self.clips.items()}


def files_of(table: Manifest) -> list[str]:
    """The files that the cells name, each once."""
    found: dict[str, None] = {}
    for name in [name for name, kind in table.columns.items() if kind in FILES]:
        for cell in (row.cells[name] for row in table.rows if name in row.cells):
            found.update(dict.fromkeys(cell.files() if isinstance(cell, Piece) else [cell]))
    return list(found)


def read_in(table: Manifest, settings: Settings) -> ReadIn:
    """Compute what features are not in the cache. Raises ManifestError as `prepare` does."""
    problems = list(table.problems)
    if problems and not (settings.skip_bad and table.rows):
        raise ManifestError(table.complaint(problems))
    ends, windows = dict(settings.front_ends or {}), settings.windows
    clips: dict[str, Clips] = {}
    bad: defaultdict[int, list[str]] = defaultdict(list)
    columns = [name for name, kind in table.columns.items() if kind in FILES]
    cells = {name: [(row, row.cells[name]) for row in table.rows if name in row.cells] for name in columns}
    if settings.front_ends is None:
        _check_training_rows(table, [row for row in table.rows if row.split == "train"])
        ends |= {
            name: settings.start.get(name) or _new_front_end(table, name, [file for _, file in found], settings.audio)
            for name, found in cells.items()
        }
    rates = {name: end.config.frames_per_second for name, end in ends.items() if isinstance(end, LogMel)}
    if settings.speeds and not rates:
        raise ManifestError(f"{table.path}: speeds are for recordings, and there are none")
    framed = [name for name, end in ends.items() if isinstance(end, FileFrontEnd)]
    times = clocks({name: rates.get(name) for name in framed}, windows, table.path) if windows.on else {}
    for name, found in cells.items():
        played = [file for row, file in found if settings.speeds and row.split == "train" and name in rates]
        clips[name] = Clips.of(ends[name], name, [file for _, file in found], played, settings)
        for row, file in found:
            if clips[name].problem(file):
                bad[row.row].append(f"{name} {file}: {clips[name].problem(file)}")
    rows = [row for row in table.rows if row.row not in bad]
    if windows.on:
        whole, (rows, wrong) = rows, windowed(table, rows, lambda n, cell: clips[n].clip(cell), times, windows)
        bad |= {row: [problem] for row, problem in wrong.items()}
        if settings.front_ends is None and not wrong and rows == whole:
            raise ManifestError(
                f"{table.path}: no item is longer than windows.length, {windows.longest:g} seconds, so that nothing is "
                "cut: lower it, or leave it out"
            )
    problems += [Problem(row.row, row.id, "; ".join(bad[row.row])) for row in table.rows if row.row in bad]
    problems.sort()
    if bad and not (settings.skip_bad and rows):
        raise ManifestError(table.complaint(problems))
    return ReadIn(table, rows, problems, ends, clips)


def corpus_of(data: ReadIn, settings: Settings) -> Corpus:
    """Fit the front ends, unless they are given, and encode every item. Raises ManifestError as `prepare` does."""
    ends: Mapping[str, FrontEnd] = data.ends
    if settings.front_ends is None:
        ends = _fit(data, [row for row in data.rows if row.split == "train"], settings)
    datasets = {
        split: _dataset(
            [row for row in data.rows if row.split == split], ends, data.clips,
            settings.speeds if split == "train" else (),
        )
        for split in SPLITS
    }  # fmt: skip
    unknown = _unknown(ends, data.rows)
    return Corpus(dict(ends), datasets, data.table, data.problems, unknown, settings.windows, settings.speeds)


@dataclass(frozen=True)
class Clips:
    """The frames of one modality's files: a store, and the digests by which it knows them.

    digests: {speed: {path or piece: digest}}, all at speed 1, some also at others.
    """

    store: Store
    digests: dict[float, dict[Clip, str]]

    @classmethod
    def of(cls, front_end: FrontEnd, name: str, files: list[Clip], played: list[Clip], settings: Settings) -> Clips:
        """played: the files that are wanted at other speeds, too."""
        if not isinstance(front_end, FileFrontEnd):
            raise TypeError(f"{name}: a front end of kind {front_end.kind} reads no files")
        plain = digests(files, name, settings.cache_dir)
        found, everything = {1.0: plain}, dict(plain)
        for speed in settings.speeds:
            pieces = {file: Played(file, plain[file], speed) for file in played}
            found[speed] = {file: piece.digest() for file, piece in pieces.items()}
            everything |= {piece: found[speed][file] for file, piece in pieces.items()}
        return cls(compute(front_end, everything, name, settings.cache_dir, settings.workers), found)

    def problem(self, file: Clip) -> str | None:
        told = (self.store.problems.get(found[file]) for found in self.digests.values() if file in found)
        return next((problem for problem in told if problem), None)

    def span(self, cell: Clip | Part, speed: float = 1.0) -> tuple[int, int]:
        """First row and number of rows in `store.values`."""
        if not isinstance(cell, Part):
            return self.store.span(self.digests[speed][cell])
        start, steps = self.store.span(self.digests[speed][cell.clip])
        first, stop = min(round(cell.first / speed), steps - 1), round(cell.stop / speed)
        if cell.stop == self.store.span(self.digests[1.0][cell.clip])[1]:
            stop = steps  # a last part holds all of the rest
        return start + first, max(1, min(stop, steps) - first)

    def clip(self, cell: Clip | Part) -> np.ndarray:
        """[T, C] in the units of the features."""
        start, steps = self.span(cell)
        return self.store.values[start : start + steps]

    def column(
        self, cells: Sequence[Clip | Part | None], standard: Standard, holes: bool, speeds: tuple[float, ...] = (1.0,)
    ) -> Column:
        """The cells as a column at one speed after the other, None being missing; with `holes` frames may be NaN."""
        starts, lengths = np.zeros((2, len(speeds), len(cells)), np.int64)
        for row, speed in enumerate(speeds):
            for item, cell in enumerate(cells):
                if cell is not None:
                    starts[row, item], lengths[row, item] = self.span(cell, speed)
        return Column(self.store.values, starts.reshape(-1), lengths.reshape(-1), standard, holes)


def _new_front_end(table: Manifest, name: str, files: list[Clip], audio: LogMelConfig) -> LogMel | FrameArrays:
    if table.columns[name] == "audio":
        front_end = LogMel(audio)
        _ = front_end.basis  # settings that cannot work are known before any file is read
        return front_end
    channels = Counter(found for found in map(_channels, files) if found)
    if not channels:
        first = "".join(f"; the first: {trouble}" for trouble in map(_trouble, files[:1]))
        raise ManifestError(f"{table.path}: no cell in column {name!r} is an array [T, C]{first}")
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


def _trouble(clip: Clip) -> str | None:
    """Why a clip is no array [T, C]."""
    front_end = FrameArrays(1)
    try:
        _ = clip.read(front_end) if isinstance(clip, Piece) else front_end.read(clip)
    except FramesError as error:
        return str(error).replace("the array:", f"{clip}:")
    return None


def _check_training_rows(table: Manifest, rows: Sequence[Row]) -> None:
    """Raise ManifestError where there are no training `rows`, or none with one of the columns."""
    if not rows:
        raise ManifestError(f"{table.path}: no row is in the split train, so there is nothing to learn from")
    for name in table.columns:
        if not any(name in row.cells for row in rows):
            raise ManifestError(f"{table.path}: column {name!r} is empty in every row of the split train")


def _fit(data: ReadIn, rows: list[Row], settings: Settings) -> dict[str, FrontEnd]:
    """Vocabularies learnt and frames standardised on the training `rows`; in the order of the table's columns.

    What there is to start from keeps its standardisation, and its vocabulary with new symbols added.
    """
    _check_training_rows(data.table, rows)
    fitted: dict[str, FrontEnd] = {}
    for name, kind in data.table.columns.items():
        cells, start = [row.cells[name] for row in rows if name in row.cells], settings.start.get(name)
        if isinstance(start, Category):
            fitted[name] = start.extended(Category.train(cells))
        elif isinstance(start, Labels):
            fitted[name] = start.extended(Labels.train(cells))
        elif isinstance(start, Tokenizer):
            fitted[name] = start.extended(type(start).train(cells, settings.text.vocabulary, settings.text.least))
        elif start is not None:
            fitted[name] = start
        elif kind == "tokens":
            fitted[name] = train_tokenizer(cells, settings.text, name)
        elif kind in WORDS:
            fitted[name] = WORDS[kind].train(cells)
        else:
            front_end = data.ends[name]
            assert isinstance(front_end, FileFrontEnd)
            front_end.fit(data.clips[name].clip(file) for file in cells)
            fitted[name] = front_end
    return fitted


def _dataset(
    rows: list[Row], front_ends: Mapping[str, FrontEnd], clips: Mapping[str, Clips], speeds: tuple[float, ...]
) -> SequenceDataset:
    columns, played = {}, {}
    for name, front_end in front_ends.items():
        cells = [row.cells.get(name) for row in rows]
        if not isinstance(front_end, FileFrontEnd):
            columns[name] = _encoded(cells, front_end)
        elif name in clips:
            columns[name] = clips[name].column(cells, front_end.fitted, isinstance(front_end, FrameArrays))
            if speeds and isinstance(front_end, LogMel):
                played[name] = clips[name].column(cells, front_end.fitted, False, (1.0, *speeds))
        else:
            columns[name] = Column.of(len(rows) * [None], no_steps(front_end))
    weighted = any(row.weight is not None for row in rows)
    weights = np.array([1.0 if row.weight is None else row.weight for row in rows]) if weighted else None
    return SequenceDataset([row.id for row in rows], [row.label for row in rows], columns, weights, speeds=played)


def _encoded(texts: Iterable[str | None], tokenizer: Tokenizer | Category) -> Column:
    """Texts as a column of the smallest type that holds their tokens, None being missing."""
    flat, lengths = array("i"), array("q")
    for text in texts:
        tokens = [] if text is None else tokenizer.encode(text).tolist()
        flat.extend(tokens)
        lengths.append(len(tokens))
    counts = np.array(lengths, np.int64)
    kind = np.uint16 if tokenizer.vocabulary_size <= 1 << 16 else np.int32
    return Column(np.array(flat, kind), np.cumsum(counts) - counts, counts)


def no_steps(front_end: FrontEnd) -> torch.Tensor:
    """A sequence of no steps, of the type and channels that the front end gives."""
    return torch.zeros(0, front_end.channels) if isinstance(front_end, FileFrontEnd) else torch.zeros(0).long()


def _unknown(front_ends: Mapping[str, FrontEnd], rows: list[Row]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for name, front_end in front_ends.items():
        if isinstance(front_end, FileFrontEnd):
            continue
        symbols: Counter[str] = Counter()
        for row in rows:
            if name in row.cells:
                symbols.update(front_end.unknown(row.cells[name]))
        if symbols:
            found[name] = symbols
    return found
