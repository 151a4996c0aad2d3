"""A manifest, one row an item, read and checked as a whole before anything long begins.

`read_manifest` reads tables of text; `mmseqvae.data.sources` everything else, through the same checks (`manifest_of`).
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, overload

from mmseqvae.data.clips import MISSING, Broken, Piece, file_trouble, piece_of
from mmseqvae.files import SOUNDS

SPLITS = ("train", "valid", "test")
KNOWN = {"text": "tokens", "audio": "audio"}  # modalities that need no option, and their kinds
PLAIN = ("id", "split", "label")  # columns that are no modality, nor is WEIGHT
WEIGHT = "weight"  # how often an item is drawn where sampling goes by weights
FILES = ("audio", "frames")  # kinds whose cells are paths
CATEGORIES = ("labels", "covariate")  # kinds whose cells are one of few values; white space around them is none of it
SHOWN = 10  # problems that an error spells out


class ManifestError(ValueError):
    """A manifest that cannot be used; the message names the manifest, the row and the file."""


class Problem(NamedTuple):
    """What is wrong with a row. `row` is its line in the manifest, the header being line 1, or counts items from 1."""

    row: int
    id: str
    problem: str


@dataclass(frozen=True, slots=True)
class Row:
    """An item. `cells` holds only what is present: strings, of kinds audio and frames also a `Piece`.

    Paths are absolute or start at the manifest. weight: of the column `weight`, 1 where its cell is empty.
    """

    row: int
    id: str
    split: str
    label: str | None
    cells: dict[str, Any]
    weight: float | None = None


class LateRows(Sequence[Row]):
    """The rows of a manifest, read when they are first asked for."""

    def __init__(self, read: Callable[[], Manifest]) -> None:
        self._read = read

    @cached_property
    def _rows(self) -> Sequence[Row]:
        return self._read().rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, item: int) -> Row: ...
    @overload
    def __getitem__(self, item: slice) -> Sequence[Row]: ...
    def __getitem__(self, item: int | slice) -> Row | Sequence[Row]:
        return self._rows[item]


@dataclass(frozen=True)
class Manifest:
    """columns: modalities and covariates found, name -> kind; unused: other columns; problems: rows not in `rows`.

    unit: what `row` counts, such as lines. unread: suffixes or names of the files of a folder that hold no item.
    """

    path: Path
    rows: Sequence[Row]
    columns: dict[str, str]
    unused: list[str]
    problems: list[Problem]
    unit: str = "line"
    unread: list[str] = field(default_factory=list)

    def complaint(self, problems: Sequence[Problem]) -> str:
        """All problems as one message, the first ten spelt out."""
        lines = [f"{self.path}: {len(problems)} row(s) cannot be used"]
        lines += [f"  {self.unit} {problem.row} (id {problem.id}): {problem.problem}" for problem in problems[:SHOWN]]
        if len(problems) > SHOWN:
            lines.append(f"  ... and {len(problems) - SHOWN} more")
        if self.unit == "line" and any(MISSING in problem.problem for problem in problems[:SHOWN]):
            lines.append(f"Relative paths start at the folder of the table, {self.path.parent.resolve()}.")
        lines.append("Correct them, or leave such rows out (--skip-bad of mmseqvae train, skip_bad=True of prepare).")
        return "\n".join(lines)


def read_manifest(path: str | Path, wanted: Mapping[str, str] = KNOWN, required: Collection[str] = ()) -> Manifest:
    """Read a .csv, .tsv or .jsonl manifest in UTF-8.

    wanted: columns to look for, name -> "tokens" (text), "labels" (a label), "audio" (sound file), "frames" (.npy file)
    or "covariate" (no modality, but what conditions them). required: those among them that must be there.
    An empty cell (in JSONL also null or no entry) is a missing modality. Paths start at the manifest's folder; a cell
    FILE.npz:KEY is one array of an archive, KEY being the column's name where it is left out, and frames may also be
    lists of numbers in JSONL. Without
    an `id` column the rows are numbered from 1. An empty `split` is chosen by a hash of the id, see `hashed_split`.

    Bad rows are collected in `problems`. Raises ManifestError where there is no table to begin with: no such file,
    another suffix, not UTF-8, no rows, no modality column, a required column that is absent.
    """
    path = Path(path)
    readers = {".csv": _read_table, ".tsv": _read_table, ".jsonl": _read_json_lines}
    if not path.is_file():
        raise ManifestError(f"{path}: there is no such manifest")
    if path.suffix.lower() not in readers:
        raise ManifestError(f"{path}: a manifest ends in {', '.join(readers)}")
    if not path.stat().st_size:
        raise ManifestError(f"{path}: file is empty")
    try:
        return manifest_of(path, readers[path.suffix.lower()](path), wanted, required, path.parent)
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: {_not_unicode(path)}: save the table as UTF-8") from error


def manifest_of(
    path: Path,
    table: Iterable[tuple[int, Any]],
    wanted: Mapping[str, str],
    required: Collection[str],
    folder: Path,
    unit: str = "line",
) -> Manifest:
    """The rows of a table, checked. Raises ManifestError as `read_manifest` does.

    table: the number of every row with its cells, or with a string that tells what is wrong with it. path: what
    messages call the table. folder: where relative paths start.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    taken: dict[str, int] = {}
    found: dict[str, Any] = {}  # columns in the order in which they appear, and their first cells
    for number, (line, cells) in enumerate(table, start=1):  # one after the other: cells may be large
        if isinstance(cells, str):
            problems.append(Problem(line, "unknown", cells))
            continue
        found |= {name: cell for name, cell in cells.items() if name not in found}
        row, wrong = _read_row(folder, line, str(number), cells, wanted)
        if row.id in taken:
            wrong.append(f"the id is taken by {unit} {taken[row.id]}")
        taken.setdefault(row.id, line)
        if wrong:
            problems.append(Problem(line, row.id, "; ".join(wrong)))
        else:
            rows.append(row)
    if not rows and not problems:
        raise ManifestError(f"{path}: holds no rows")
    absent = [name for name in required if name not in found]
    if absent:
        raise ManifestError(f"{path}: has no column {', '.join(map(repr, absent))}; its columns are {list(found)}")
    columns = {name: kind for name, kind in wanted.items() if name in found}
    modalities = _modalities(columns)
    if found and not modalities:
        raise ManifestError(
            f"{path}: none of the modalities {_modalities(wanted)} is among its columns {list(found)}: "
            "name some of them as frames, tokens or labels (--frames, --tokens, --labels), or call the column of texts "
            "text and that of sound files audio"
            + ("; cells stand between commas, in a .tsv between tabs" if len(found) == 1 else "")
        )
    empty = f"has no modality at all ({', '.join(modalities)} are empty)"
    problems += [Problem(row.row, row.id, empty) for row in rows if row.cells.keys().isdisjoint(modalities)]
    problems.sort()
    rows = [row for row in rows if not row.cells.keys().isdisjoint(modalities)]
    unused = [name for name in found if name not in columns and name not in (*PLAIN, WEIGHT)]
    for name in unused if "audio" in wanted and "audio" not in found else ():
        if isinstance(found[name], str) and found[name].lower().endswith(SOUNDS):
            raise ManifestError(
                f"{path}: column {name!r} names sound files, such as {found[name]}, and there is no column 'audio': "
                "call it audio, or leave it out"
            )
    return Manifest(path, rows, columns, unused, problems, unit)


def hashed_split(identity: str) -> str:
    """train, valid or test for 90, 5 and 5 % of ids, by SHA-256: other rows and their order change nothing."""
    share = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.90 else "valid" if share < 0.95 else "test"


def _read_table(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The line and the cells of every row, or what is wrong with it."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        begins = 1
        try:
            header = [name.strip() for name in next(lines, [])]
            begins = lines.line_num + 1
            if len(set(header)) < len(header) or "" in header:
                raise ManifestError(f"{path}: column names must differ and not be empty, they are {header}")
            for cells in lines:
                begins = lines.line_num + 1  # the next row
                if not cells:
                    continue  # a blank line
                if len(cells) == len(header):
                    yield lines.line_num, dict(zip(header, cells, strict=True))
                else:
                    yield lines.line_num, f"has {len(cells)} cells, the header has {len(header)}"
        except csv.Error as error:
            raise ManifestError(
                f"{path}: the row that begins at line {begins} is malformed ({error}): mind its quotation marks"
            ) from error


def _not_unicode(path: Path) -> str:
    """The first line that is not UTF-8, and why."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {number} is not UTF-8 text (byte {error.start + 1} of it is 0x{line[error.start]:02x})"
    return "is not UTF-8 text"


def _read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                cells = json.loads(text)
            except json.JSONDecodeError as error:
                yield line, f"is not JSON: {error.msg} at column {error.colno}"
                continue
            yield line, cells if isinstance(cells, dict) else f"must be a JSON object, is {type(cells).__name__}"


def _read_row(
    folder: Path, line: int, number: str, cells: Mapping[str, Any], columns: Mapping[str, str]
) -> tuple[Row, list[str]]:
    """The row, and what is wrong with it."""
    wrong = []
    plain: dict[str, str | None] = {}
    for name in PLAIN:
        value = cells.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            wrong.append(f"{name} must be a string or a whole number, is {type(value).__name__}")
            value = None
        plain[name] = None if value is None else str(value).strip() or None
    if "id" in cells and plain["id"] is None and not wrong:
        wrong.append("the id is empty")
    identity = plain["id"] or number
    if not _is_unicode(identity):
        wrong.append("the id is not valid Unicode (a lone surrogate)")
        identity = ascii(identity)
    split = plain["split"] or hashed_split(identity)
    if split not in SPLITS:
        wrong.append(f"split is {split!r}, must be one of {', '.join(SPLITS)}")

    present: dict[str, Any] = {}
    for name, kind in columns.items():
        value = cells.get(name)
        if value is None:
            continue
        if isinstance(value, Broken):
            wrong.append(f"{name} {value.problem}")
            continue
        if kind in FILES:
            value = piece_of(value, kind, name, folder)
        if kind in CATEGORIES and isinstance(value, str | int) and not isinstance(value, bool):
            value = str(value).strip()
        if isinstance(value, Piece) and kind in FILES:
            present[name] = value
            wrong += [f"{name} {value}: {trouble}" for trouble in [value.trouble()] if trouble]
        elif isinstance(value, Broken):
            wrong.append(f"{name} {value.problem}")
        elif not isinstance(value, str):
            wrong.append(f"{name} must be a string, is {type(value).__name__}")
        elif kind not in FILES:
            if value and not value.isspace():
                present[name] = value
            if not _is_unicode(value):
                wrong.append(f"{name} is not valid Unicode (a lone surrogate)")
        elif value.strip():
            file = folder / value.strip()
            present[name] = str(file)
            trouble = file_trouble(file)
            if trouble:
                wrong.append(f"{name} {file}: {trouble}")
    weight = _weight(cells[WEIGHT]) if WEIGHT in cells and WEIGHT not in columns else None
    if weight is not None and not 0 <= weight < math.inf:
        wrong.append(f"weight must be a number >= 0, is {cells[WEIGHT]!r}")
    return Row(line, identity, split, plain["label"], present, weight), wrong


def _weight(value: Any) -> float:
    """The number in a cell; 1 where it is empty, NaN where it is none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return 1.0
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


def _modalities(columns: Mapping[str, str]) -> list[str]:
    return [name for name, kind in columns.items() if kind != "covariate"]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
