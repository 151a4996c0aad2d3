"""Does it understand a voice that it has never heard? Six trainings, each without one speaker of the spoken digits.

    python -m benchmarks.quality.speakers --data-dir DIR --rows default                     # on validation
    python -m benchmarks.quality.speakers --data-dir DIR --rows default --split test

Rows, budget and judges are those of benchmarks/quality/objectives.py; the judges know all six voices, from recordings
that nothing is measured on. Beside them stands a classifier: the same encoder of audio and decoder of text, trained
only to write the word that it hears, as long. Finished runs are lines of results/speakers.jsonl.
"""

from __future__ import annotations

import csv
import functools
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Literal

import lightning
import torch

from benchmarks.ledger import Ledger, Record
from benchmarks.quality import trial
from benchmarks.quality.corpus_and_judges import Place
from benchmarks.quality.objectives import BASE, RESULTS, ROWS, parsed, runs_of
from benchmarks.quality.objectives_page import cells, joint, label, with_own
from benchmarks.quality.parallel_runs import Run, take_turns
from benchmarks.quality.spoken_digits import heard
from benchmarks.quality.trial import Setup, probe, seconds_an_item, shortened
from mmseqvae.config import CACHE_DIR
from mmseqvae.data import Corpus, make_loader, prepare
from mmseqvae.evaluation.summary import written
from mmseqvae.files import write_text
from mmseqvae.metrics import Share
from mmseqvae.modality import Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.pipeline.trained_model import Trained
from mmseqvae.recipe import write_table
from mmseqvae.training.callbacks import callbacks_of
from mmseqvae.training.lightning_module import TrainingModule
from recipes import spoken_digits as recipe

CLASSIFIER = "classifier"


def main(
    data_dir: Path | None = None,
    rows: list[str] = ["default"],  # noqa: B006
    seeds: list[int] = [0],  # noqa: B006
    split: Literal["valid", "test"] = "valid",
    seconds: float = 120,
    options: list[str] | None = None,
    side_by_side: int = 2,
    draws: int = 50,
    pairs: int = 1000,
    cache_dir: Path = Path(CACHE_DIR),
    out: Path = Path("runs/speakers"),
    results: Path = RESULTS,
) -> None:
    """Train and judge what is not in the results yet, and write the table of everything that is.

    Args:
        data_dir: folder with the recordings of the Free Spoken Digit Dataset; without it they are downloaded.
        rows: of benchmarks/quality/objectives.py.
        seeds: one training of every fold each.
        split: what of the left-out speaker is measured on; settings are chosen on valid.
        seconds: of processor time that a training may take, on one thread.
        options: settings of all rows and of the classifier as NAME=VALUE, such as objective.beta=3.
        side_by_side: runs at a time, one thread each.
        draws: recordings of each word that are generated and judged.
        pairs: matching pairs that are generated and judged, from each prior.
        cache_dir: where recordings, features and judges are kept.
        out: folder of the trained models, which are kept and used again.
        results: folder of the results.
    """
    common = {"split": split, "seconds": seconds, "draws": draws, "pairs": pairs}
    runs = runs_of(rows, options, seeds, **common)
    networks = {name: value for name, value in map(parsed, options or []) if not name.startswith("objective.")}
    settings = BASE | networks | {"objective.name": "elbo", "objective.beta": 0.0}
    runs += [{"row": CLASSIFIER, "settings": settings, "seed": seed, **common} for seed in seeds]
    ledger = Ledger(results / "speakers.jsonl")
    place = Place.prepare(data_dir, split == "valid", split, cache_dir, out)
    voices = sorted({row["speaker"] for row in rows_of(place.manifest)})
    folds = [run | {"left_out": voice} for voice in voices for run in runs]
    for voice in voices:
        fold(place, voice)
    work = functools.partial(tried, place)
    take_turns(work, folds, ledger, side_by_side, functools.partial(trial.folder_of, out), "speakers")
    text = page(ledger.records())
    print(text)
    write_text(results / "speakers.md", text + "\n")


def tried(place: Place, run: Run) -> Record:
    """Train without one speaker and judge by recordings of that speaker."""
    corpus = fold(place, run["left_out"])
    if run["row"] == CLASSIFIER:
        return classified(run, corpus)
    return trial.tried(run, corpus, corpus.datasets["test"], place.judges, place.out)[1]


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with open(manifest, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@functools.cache
def fold(place: Place, left_out: str) -> Corpus:
    """The training items of all other speakers; as "test" what the split has of the one left out."""
    rows = [
        row | {"split": "test" if row["speaker"] == left_out else "train"}
        for row in rows_of(place.manifest)
        if row["split"] == (place.split if row["speaker"] == left_out else "train")
    ]
    manifest = write_table(place.manifest.with_name(f"{place.manifest.stem}-without-{left_out}.csv"), rows)
    return prepare(manifest, audio=recipe.AUDIO, cache_dir=place.cache_dir)


def classified(run: Run, corpus: Corpus) -> Record:
    """The encoder of audio and the decoder of text alone, within the same budget: how often the word is right.

    Its objective is E_{q(z | audio)} log p(text | z), without any KL: the noise of z is the classifier's to choose.
    """
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    setup = Setup.of(run["settings"])

    def untrained() -> TrainingModule:
        module = probe(corpus, setup)
        parts = module.model.modalities
        kept = {
            "audio": Modality(parts.modality("audio").encoder),
            "text": Modality(None, parts.modality("text").decoder),
        }
        return TrainingModule(MultimodalVAE(kept), setup.objective, setup.training, {}, module.total_steps)

    train = corpus.datasets["train"]
    whole = max(1, round(run["seconds"] / (seconds_an_item(untrained(), train) * len(train))))
    setup = shortened(setup, len(train), whole, run["seed"])
    module = untrained()
    loader = make_loader(train, setup.training.batch_size, seed=run["seed"])
    module.total_steps = len(loader) * setup.training.epochs
    with tempfile.TemporaryDirectory() as folder:
        lightning.Trainer(
            accelerator="cpu", devices=1, max_epochs=setup.training.epochs,
            gradient_clip_val=setup.training.gradient_clip, use_distributed_sampler=False, enable_model_summary=False,
            enable_progress_bar=False, logger=False,
            callbacks=callbacks_of(Path(folder), setup.training, module.total_steps, False), num_sanity_val_steps=0,
        ).fit(module, loader)  # fmt: skip
    trained = Trained(module.model.eval(), corpus.front_ends, {}, setup.model)
    found = written(trained, corpus.datasets["test"], "text", "audio", run["seed"])
    return {"training": {"epochs": setup.training.epochs}, "coherence": {"audio_to_text": found}}


# ------------------------------------------------------------------------------------------------------- the table

HEAD = """# One speaker left out

`python -m benchmarks.quality.speakers --data-dir DIR`

Six trainings, each without one of the speakers, whose recordings of the split are then heard; the table has all folds
together (median over seeds), below it each fold. The classifier is the same encoder of audio and decoder of text,
trained as long to write the word and nothing else. To be reached: audio -> text at least that of the classifier minus
0.03, text -> audio 0.95."""

SHARES = {
    "a->t": ("coherence", "audio_to_text", "exact"),
    "t->a .5": ("coherence", "text_to_audio", "noise 0.5", "log_mel"),
    "t->a 1": ("coherence", "text_to_audio", "noise 1", "log_mel"),
    "a->a": ("coherence", "audio_to_audio", "digit_kept", "log_mel"),
    "joint, own": joint("own"),
    "joint, mixture": joint("fitted"),
}


def page(records: Iterable[Record]) -> str:
    """Shares of all folds together, and audio to text of each."""
    runs: dict[tuple[str, str], dict[int, dict[str, Record]]] = {}
    for record in records:
        run = record["run"]
        seeds = runs.setdefault((run["split"], label(run, ROWS)), {})
        full = record if run["row"] == CLASSIFIER else with_own(record)
        seeds.setdefault(run["seed"], {})[run["left_out"]] = full
    voices = sorted({voice for seeds in runs.values() for folds in seeds.values() for voice in folds})
    lines = [HEAD, "", cells("split", "row", "seeds", "folds", *SHARES), "|---" * (4 + len(SHARES)) + "|"]
    for (split, name), seeds in sorted(runs.items()):
        folds = min(map(len, seeds.values()))
        together = (middle([pooled(folds.values(), path) for folds in seeds.values()]) for path in SHARES.values())
        lines.append(cells(split, name, len(seeds), folds, *together))
    lines += ["", "Audio to text by the speaker who is left out:", "", cells("split", "row", *voices),
              "|---" * (2 + len(voices)) + "|"]  # fmt: skip
    for (split, name), seeds in sorted(runs.items()):
        each = ([pooled([folds[voice]], SHARES["a->t"]) for folds in seeds.values() if voice in folds]
                for voice in voices)  # fmt: skip
        lines.append(cells(split, name, *map(middle, each)))
    return "\n".join(lines)


def pooled(records: Iterable[Record], path: tuple[str, ...]) -> Share:
    """The share of several records together; an empty one where they have it not."""
    found = [share for share in (heard(*path)(record) for record in records) if share is not None]
    return Share(sum(share["hits"] for share in found), sum(share["of"] for share in found))


def middle(shares: list[Share]) -> str:
    """The median of shares with half the interval of the one that has it."""
    known = sorted((share for share in shares if share.total), key=lambda share: share.value)
    if not known:
        return ""
    low, high = known[(len(known) - 1) // 2].interval
    return f"{median(share.value for share in known):.3f} ±{(high - low) / 2:.3f}"


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.quality.speakers")
