"""How few pairs will do? 100, 10 and 2 % of the recordings keep their word, the others come apart.

    python -m benchmarks.quality.few_pairs --data-dir DIR --rows default                        # on validation
    python -m benchmarks.quality.few_pairs --data-dir DIR --rows default --split test --seeds 0 1 2

Rows, budget and judges are those of benchmarks/quality/objectives.py. Every word keeps the same share of its pairs; of
the others, recording and text stay in training as items of one modality. Finished runs are lines of
results/pairs.jsonl.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.ledger import Ledger, Record
from benchmarks.quality import trial
from benchmarks.quality.corpus_and_judges import Place
from benchmarks.quality.objectives import RESULTS, ROWS, runs_of
from benchmarks.quality.objectives_page import COLUMNS, Column, cells, label, middle, with_own
from benchmarks.quality.parallel_runs import Run, take_turns
from mmseqvae.config import CACHE_DIR
from mmseqvae.data import SequenceDataset
from mmseqvae.files import write_text


def main(
    data_dir: Path | None = None,
    rows: list[str] = ["default"],  # noqa: B006
    shares: list[float] = [1.0, 0.1, 0.02],  # noqa: B006
    seeds: list[int] = [0],  # noqa: B006
    split: Literal["valid", "test"] = "valid",
    seconds: float = 120,
    options: list[str] | None = None,
    side_by_side: int = 2,
    draws: int = 50,
    pairs: int = 1000,
    cache_dir: Path = Path(CACHE_DIR),
    out: Path = Path("runs/pairs"),
    results: Path = RESULTS,
) -> None:
    """Train and judge what is not in the results yet, and write the table of everything that is.

    Args:
        data_dir: folder with the recordings of the Free Spoken Digit Dataset; without it they are downloaded.
        rows: of benchmarks/quality/objectives.py.
        shares: of the pairs that are kept.
        seeds: one training each; they also choose the pairs.
        split: what is measured on; settings are chosen on valid.
        seconds: of processor time that a training may take, on one thread.
        options: settings of all rows as NAME=VALUE, such as objective.beta=3.
        side_by_side: runs at a time, one thread each.
        draws: recordings of each word that are generated and judged.
        pairs: matching pairs that are generated and judged, from each prior.
        cache_dir: where recordings, features and judges are kept.
        out: folder of the trained models, which are kept and used again.
        results: folder of the results.
    """
    if wrong := [share for share in shares if not 0 < share <= 1]:
        raise ValueError(f"--shares must lie in (0, 1], got {wrong}")
    common = {"split": split, "seconds": seconds, "draws": draws, "pairs": pairs}
    runs = [run | {"share": share} for share in shares for run in runs_of(rows, options, seeds, **common)]
    ledger = Ledger(results / "pairs.jsonl")
    if ledger.left(runs):
        place = Place.prepare(data_dir, split == "valid", split, cache_dir, out)
        work = functools.partial(tried, place)
        take_turns(work, runs, ledger, side_by_side, functools.partial(trial.folder_of, out), "pairs")
    text = page(ledger.records())
    print(text)
    write_text(results / "pairs.md", text + "\n")


def tried(place: Place, run: Run) -> Record:
    """Train and judge one run."""
    whole = place.corpus.datasets["train"]
    broken = broken_pairs(whole, run["share"], run["seed"])
    corpus = replace(place.corpus, datasets=place.corpus.datasets | {"train": broken})
    found = trial.tried(run, corpus, corpus.datasets[place.split], place.judges, place.out, recordings=whole)[1]
    return found | {"items": {"pairs": int(both(broken).sum()), "all": len(broken)}}


def both(dataset: SequenceDataset) -> np.ndarray:
    """[N] bool: the item has all modalities."""
    there = [dataset.lengths(name) > 0 for name in dataset.columns]
    return np.logical_and.reduce(there)


def broken_pairs(dataset: SequenceDataset, share: float, seed: int) -> SequenceDataset:
    """The pairs that are kept, then what is left of the others: one item for each modality.

    Of every label the same share is kept, chosen by the seed, at least one. Raises ValueError for an item that is no
    pair to begin with.
    """
    if not both(dataset).all():
        raise ValueError("pairs can be broken where every item has all modalities only")
    random = np.random.default_rng(seed)
    labels = np.array([str(name) for name in dataset.labels])
    kept: list[int] = []
    for name in sorted(set(labels)):
        rows = random.permutation(np.flatnonzero(labels == name))
        kept += rows[: max(1, round(share * len(rows)))].tolist()
    others = np.setdiff1d(np.arange(len(dataset)), kept)
    pairs, parts = np.sort(kept), list(dataset.columns)
    rows = np.concatenate([pairs, *[others] * len(parts)])
    has = np.concatenate([np.full(len(pairs), -1), *(np.full(len(others), part) for part in range(len(parts)))])
    columns = {}
    for part, (name, column) in enumerate(dataset.columns.items()):
        lengths = np.where((has == -1) | (has == part), column.lengths[rows], 0)
        columns[name] = replace(column, starts=column.starts[rows], lengths=lengths)
    ids = [dataset.ids[row] + ("" if only < 0 else f" {parts[only]}") for row, only in zip(rows, has, strict=True)]
    return SequenceDataset(ids, [dataset.labels[row] for row in rows], columns)


# ------------------------------------------------------------------------------------------------------- the table

HEAD = """# How few pairs will do

`python -m benchmarks.quality.few_pairs --data-dir DIR`

As in `objectives.md`, but only a share of the training recordings keeps its word, the same of every word; of the others
recording and text are items of their own. To be reached with 10 %: audio -> text 0.95, text -> audio 0.94."""

SHOWN = {"t->a .5", "t->a 1", "diversity", "a->t", "a->a", "joint, own", "joint, mixture", "digits, mixture",
         "NLL, own", "epochs", "seconds"}  # fmt: skip
PAIRS = Column("pairs", ("items", "pairs"), None, 0)


def page(records: Iterable[Record]) -> str:
    """A line a row and share: medians over seeds."""
    columns = [PAIRS, *(column._replace(least=None, greatest=None) for column in COLUMNS if column.name in SHOWN)]
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        run = record["run"]
        found.setdefault((run["split"], label(run, ROWS), -run["share"]), []).append(with_own(record))
    lines = [HEAD, "", cells("split", "row", "share", "seeds", *(c.name for c in columns)),
             "|---" * (4 + len(columns)) + "|"]  # fmt: skip
    for (split, name, share), seeds in sorted(found.items()):
        lines.append(cells(split, name, f"{-share:.0%}", len(seeds), *(middle(column, seeds) for column in columns)))
    return "\n".join(lines)


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.quality.few_pairs")
