"""Do penalties or early stopping close the gap between what was trained on and what was not?

    python -m benchmarks.quality.regularisation --data-dir DIR --seconds 300                    # on validation

L1, L2 and early stopping of one row of benchmarks/quality/objectives.py, with its budget and judges: likelihood and
audio to text on 300 training items beside those of the split. 300 recordings are held back in every case, since early
stopping watches them; where it is measured on the split "valid" they are the same. Finished runs are lines of
results/regularisation.jsonl.
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
from benchmarks.quality.objectives_page import COLUMNS, Column, cells, label, middle, with_own, with_own_nll
from benchmarks.quality.parallel_runs import Run, take_turns
from benchmarks.quality.trial import NLL_DRAWS
from mmseqvae.config import CACHE_DIR
from mmseqvae.data import SequenceDataset
from mmseqvae.evaluation.summary import likelihood, written
from mmseqvae.files import write_text

PENALTIES: dict[str, dict[str, Any]] = {
    "none": {},
    "l1 0.0003": {"training.l1": 3e-4},
    "l1 0.003": {"training.l1": 3e-3},
    "l2 0.01": {"training.l2": 0.01},
    "l2 0.1": {"training.l2": 0.1},
    "early stopping": {"training.patience": 5},
}


def main(
    data_dir: Path | None = None,
    row: str = "default",
    penalties: list[str] = list(PENALTIES),  # noqa: B006
    seeds: list[int] = [0],  # noqa: B006
    split: Literal["valid", "test"] = "valid",
    seconds: float = 120,
    options: list[str] | None = None,
    side_by_side: int = 2,
    draws: int = 50,
    pairs: int = 1000,
    cache_dir: Path = Path(CACHE_DIR),
    out: Path = Path("runs/regularisation"),
    results: Path = RESULTS,
) -> None:
    """Train and judge what is not in the results yet, and write the table of everything that is.

    Args:
        data_dir: folder with the recordings of the Free Spoken Digit Dataset; without it they are downloaded.
        row: of benchmarks/quality/objectives.py.
        penalties: which of them to run.
        seeds: one training each.
        split: what is measured on; settings are chosen on valid.
        seconds: of processor time that a training may take, on one thread.
        options: further settings as NAME=VALUE, such as objective.beta=3.
        side_by_side: runs at a time, one thread each.
        draws: recordings of each word that are generated and judged.
        pairs: matching pairs that are generated and judged, from each prior.
        cache_dir: where recordings, features and judges are kept.
        out: folder of the trained models, which are kept and used again.
        results: folder of the results.
    """
    if strange := sorted(set(penalties) - set(PENALTIES)):
        raise ValueError(f"--penalties names {strange}; there are {', '.join(PENALTIES)}")
    plain = runs_of([row], options, seeds, split=split, seconds=seconds, draws=draws, pairs=pairs)
    runs = [
        run | {"penalty": name, "settings": run["settings"] | PENALTIES[name]} for name in penalties for run in plain
    ]
    ledger = Ledger(results / "regularisation.jsonl")
    if ledger.left(runs):
        place = Place.prepare(data_dir, True, split, cache_dir, out)
        work = functools.partial(tried, place)
        take_turns(work, runs, ledger, side_by_side, functools.partial(trial.folder_of, out), "regularisation")
    text = page(ledger.records())
    print(text)
    write_text(results / "regularisation.md", text + "\n")


def tried(place: Place, run: Run) -> Record:
    """Train and judge one run, and measure on as many training items what it knows of them."""
    corpus, seed = place.corpus, run["seed"]
    measured = corpus.datasets[place.split]
    trained, found = trial.tried(run, corpus, measured, place.judges, place.out)
    seen = some(corpus.datasets["train"], len(measured), seed=0)
    learnt = {
        "likelihood": likelihood(trained, seen, NLL_DRAWS, seed, progress=False),
        "coherence": {"audio_to_text": written(trained, seen, "text", "audio", seed)},
    }
    return found | {"learnt": learnt}


def some(dataset: SequenceDataset, count: int, seed: int) -> SequenceDataset:
    """That many items, drawn without replacement."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:count])
    columns = {
        name: replace(column, starts=column.starts[rows], lengths=column.lengths[rows])
        for name, column in dataset.columns.items()
    }
    return SequenceDataset([dataset.ids[row] for row in rows], [dataset.labels[row] for row in rows], columns)


# ------------------------------------------------------------------------------------------------------- the table

HEAD = """# Penalties and early stopping

`python -m benchmarks.quality.regularisation --data-dir DIR`

L1: sum |w|, L2: sum w^2 / 2 over weight matrices, times the number given, in nats; early stopping: after 5 epochs
without a better bound on the 300 recordings held back. "Seen" are 300 training items, the rest is the split. NLL:
joint, nats an item, 100 draws, under the prior that the model was trained with."""

SEEN = {
    "NLL": Column("seen: NLL", ("learnt", "likelihood", "priors", "own", "nll"), None, 1),
    "a->t": Column("seen: a->t", ("learnt", "coherence", "audio_to_text", "exact")),
}
SHOWN = ("a->t", "NLL, own", "+-", "t->a .5", "diversity", "a->a", "joint, own", "joint, mixture", "epochs", "seconds")


def page(records: Iterable[Record]) -> str:
    """A line a row and penalty: medians over seeds."""
    named = {column.name: column._replace(least=None, greatest=None) for column in COLUMNS}
    columns = [*SEEN.values(), *(named[name] for name in SHOWN)]
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        run = record["run"]
        usual = {name: value for name, value in run["settings"].items() if name not in PENALTIES[run["penalty"]]}
        name = f"{label(run | {'settings': usual}, ROWS)}: {run['penalty']}"
        full = with_own(record)
        learnt = {**record["learnt"], "likelihood": with_own_nll(record["learnt"]["likelihood"])}
        found.setdefault((run["split"], name), []).append(full | {"learnt": learnt})
    lines = [HEAD, "", cells("split", "row", "seeds", "gap", *(c.name for c in columns)),
             "|---" * (4 + len(columns)) + "|"]  # fmt: skip
    for (split, name), seeds in found.items():
        gap = Column("gap", ("gap",), None, 1)
        gaps = [{"gap": named["NLL, own"].of(seed) - SEEN["NLL"].of(seed)} for seed in seeds]
        lines.append(cells(split, name, len(seeds), middle(gap, gaps), *(middle(column, seeds) for column in columns)))
    return "\n".join(lines)


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.quality.regularisation")
