"""Which way to share a latent is best? Every objective with the same networks, budget and judges, on spoken digits.

    python -m benchmarks.quality.objectives --data-dir DIR  # one seed each, on validation
    python -m benchmarks.quality.objectives --data-dir DIR --options objective.beta=3  # the same with another setting
    python -m benchmarks.quality.objectives --data-dir DIR --split test --rows default mopoe --seeds 0 1 2

A row is trained for two minutes of processor time on one thread, then judged as the recipe is. Every finished run is a
line of benchmarks/results/objectives.jsonl and is not run again; the table of all of them, MultiVae's models among them
(benchmarks/peers/accuracy.py), is objectives.md, the picture objectives.png. On the split "valid" (takes 5 to 9 of
every digit and voice) neither the model nor the judges learnt from what they are measured on; "test" (takes 0 to 4)
trains on both.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Literal

from benchmarks.ledger import Ledger, Record
from benchmarks.quality import trial
from benchmarks.quality.corpus_and_judges import Place
from benchmarks.quality.objectives_page import page, picture
from benchmarks.quality.parallel_runs import Run, take_turns
from benchmarks.quality.trial import Setup, folder_of
from mmseqvae.config import CACHE_DIR
from mmseqvae.files import write_text

RESULTS = Path(__file__).parents[1] / "results"

# What every row says, so that a run is known by it whatever the library's defaults for these become. What is named
# nowhere (widths, learning rate, warm-ups) is the library's: where that changes, remove the lines made before.
BASE: dict[str, Any] = {
    "model.fusion": "poe", "model.prior": "standard", "model.latent": 32,
    "objective.beta": 1.0, "objective.token_weight": 40.0, "training.unimodal_posteriors": "none",
}  # fmt: skip


def row(objective: str, fusion: str = "poe", prior: str = "standard", **options: Any) -> dict[str, Any]:
    """Settings of a row. prior: "mixture-40" and the like name the components."""
    kind, _, components = prior.partition("-")
    sized = {"model.prior_components": int(components)} if components else {}
    return {**BASE, "objective.name": objective, "model.fusion": fusion, "model.prior": kind, **sized,
            **{f"objective.options.{name}": value for name, value in options.items()}}  # fmt: skip


# What the decoders read is 32 dimensions everywhere, also where half of them are private.
PRIVATE = {"model.latent": 16, "model.private": 16}

# Flexible q(z | x_m), fitted after the training of the row without.
AFTER_MIXTURE, AFTER_FLOW = {"training.unimodal_posteriors": "mixture"}, {"training.unimodal_posteriors": "flow"}

TIED = {
    "coordination": 0.3,
    "draws": 1,
    "self_reconstruction": 0.3,
}  # the library's defaults


def tied(fusion: str = "poe", prior: str = "standard", **options: Any) -> dict[str, Any]:
    """`coordinated` with the library's options but for those that are named."""
    return row("coordinated", fusion, prior, **TIED | options)


ROWS: dict[str, dict[str, Any]] = {
    "elbo": row("elbo"),
    "mvae": row("mvae"),
    "mmvae": row("mixture", "moe"),
    "mmvae-loose": row("mixture", "moe", tight=False),
    "mmvae-iwae": row("importance", "moe", draws=4, gradient="iwae"),
    "mmvae-dreg": row("importance", "moe", draws=4),
    "mmvae-dreg-loose": row("importance", "moe", draws=4, tight=False),
    "mopoe": row("mixture", "mopoe", tight=False, stratified=False),
    "mopoe-tight": row("mixture", "mopoe"),
    "mvtcae": row("mvtcae", "poe-without-base"),
    "jmvae": row("jmvae", "joint"),
    "telbo": row("telbo", "joint"),
    "jnf": row("elbo", "joint") | AFTER_FLOW,
    "cvae": row("cvae", "joint"),
    "crmvae": tied(token_reconstruction=0.0, self_reconstruction=1.0, coordination=1.0),
    "dmvae": row("dmvae") | PRIVATE,
    "mmvae-plus": row("mmvae_plus", "moe") | PRIVATE,
    "coordinated": tied(),
    "coordinated-1": tied(coordination=1.0),
    "coordinated-0.1": tied(coordination=0.1),
    "coordinated-two-draws": tied(draws=2),
    "coordinated-no-own": tied(self_reconstruction=0.0),
    "coordinated-cross": tied(cross_reconstruction=0.1),
    "coordinated-detached": tied(detach=True),
    "coordinated-generalised": tied("generalised-poe"),
    "coordinated-attention": tied("attention"),
    "coordinated-joint": tied("joint"),
    "coordinated-private": tied() | PRIVATE,
    "coordinated-after-mixture": tied() | AFTER_MIXTURE,
    "coordinated-after-flow": tied() | AFTER_FLOW,
    "vamp-50": tied(prior="vamp-50"),
    "mixture-100": tied(prior="mixture-100"),
    "default": tied(prior="mixture-100") | AFTER_MIXTURE,
    "no-own-mixture-100-after-mixture": tied(prior="mixture-100", self_reconstruction=0.0) | AFTER_MIXTURE,
    "mixture-100-after-flow": tied(prior="mixture-100") | AFTER_FLOW,
    "mixture-40-after-mixture": tied(prior="mixture-40") | AFTER_MIXTURE,
    "mixture-100-joint-after-mixture": tied("joint", "mixture-100") | AFTER_MIXTURE,
    "mvtcae-mixture-100-after-mixture": row("mvtcae", "poe-without-base", "mixture-100") | AFTER_MIXTURE,
    "importance-mixture-100-after-mixture": row("importance", "poe", "mixture-100", draws=2) | AFTER_MIXTURE,
    "mmvae-dreg-mixture-100": row("importance", "moe", "mixture-100", draws=4),
}


def main(
    data_dir: Path | None = None,
    rows: list[str] | None = None,
    seeds: list[int] = [0],  # noqa: B006
    split: Literal["valid", "test"] = "valid",
    seconds: float = 120,
    options: list[str] | None = None,
    side_by_side: int = 2,
    draws: int = 50,
    pairs: int = 1000,
    cache_dir: Path = Path(CACHE_DIR),
    out: Path = Path("runs/objectives"),
    results: Path = RESULTS,
) -> None:
    """Train and judge what is not in the results yet, and write table and picture of everything that is.

    Args:
        data_dir: folder with the recordings of the Free Spoken Digit Dataset; without it they are downloaded.
        rows: which of them to run, by default all.
        seeds: one training of each row for each.
        split: what is measured on; settings are chosen on valid.
        seconds: of processor time that a training may take, on one thread.
        options: settings of all rows as NAME=VALUE, such as objective.beta=3 or training.learning_rate=0.001.
        side_by_side: runs at a time, one thread each.
        draws: recordings of each word that are generated and judged.
        pairs: matching pairs that are generated and judged, from each prior.
        cache_dir: where recordings, features and judges are kept.
        out: folder of the trained models, which are kept and used again.
        results: folder of the results.
    """
    common = {"split": split, "seconds": seconds, "draws": draws, "pairs": pairs}
    runs = runs_of(list(ROWS) if rows is None else rows, options, seeds, **common)
    ledger = Ledger(results / "objectives.jsonl")
    if ledger.left(runs):
        place = Place.prepare(data_dir, split == "valid", split, cache_dir, out)
        take_turns(functools.partial(tried, place), runs, ledger, side_by_side, functools.partial(folder_of, out))
    peers = Ledger(results / "peers.jsonl").records()
    text = page(ledger.records(), peers, ROWS)
    print(text)
    write_text(results / "objectives.md", text + "\n")
    for measured in sorted({record["run"]["split"] for record in ledger.records()}):
        name = "objectives.png" if measured == "test" else f"objectives-{measured}.png"
        picture(ledger.records(), peers, ROWS, measured, results / name)


def runs_of(rows: list[str], options: list[str] | None, seeds: list[int], **common: Any) -> list[Run]:
    """Runs of rows with further settings. Raises ValueError for rows and settings that are not known."""
    if strange := sorted(set(rows) - set(ROWS)):
        raise ValueError(f"--rows names {strange}; there are {', '.join(ROWS)}")
    further = dict(map(parsed, options or []))
    runs = [{"row": name, "settings": ROWS[name] | further, "seed": seed, **common} for seed in seeds for name in rows]
    for run in runs:
        Setup.of(run["settings"])  # mistakes are known before hours of work
    return runs


def parsed(option: str) -> tuple[str, Any]:
    """ "objective.beta=3" -> ("objective.beta", 3); what is no number, true or false is text."""
    name, equals, value = option.partition("=")
    if not equals:
        raise ValueError(f"--options takes NAME=VALUE, got {option!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def tried(place: Place, run: Run) -> Record:
    """Train and judge one run."""
    return trial.tried(run, place.corpus, place.corpus.datasets[place.split], place.judges, place.out)[1]


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.quality.objectives")
