"""The commands forecast and classify. Nothing heavy is imported before one of them runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from mmseqvae.cli.parser import pairs, refuse_file
from mmseqvae.config import CACHE_DIR
from mmseqvae.files import write_csv, write_json

AT_ONCE = 64  # items


def forecast(
    run: Path,
    steps: int,
    manifest: Path | None = None,
    split: Literal["train", "valid", "test"] = "test",
    frames: list[str] | None = None,
    given: list[str] | None = None,
    want: list[str] | None = None,
    samples: int = 100,
    quantiles: list[float] | None = None,
    proposals: int = 1,
    backtest: bool = False,
    out: Path | None = None,
    skip_bad: bool = False,
    cache_dir: Path = Path(CACHE_DIR),
    seed: int = 0,
) -> None:
    """Write what a trained model expects next: OUT/NAME.csv with mean and quantiles a step, or texts that go on.

    Args:
        run: the run directory of a trained model.
        steps: how many steps.
        manifest: a table or folder of prefixes, one row an item.
        split: which rows of it.
        frames: NAME=FILE.npy of one item's prefixes, instead of a manifest; frames of NaN are holes.
        given: NAME=VALUE of what else is known of it, VALUE being a text or a label.
        want: modalities to go on with, by default those of frames that are there.
        samples: draws an item.
        quantiles: of the draws, by default .1 .5 .9.
        proposals: latents from which each draw's is taken, by how well it explains the prefix.
        backtest: hide the last STEPS steps of every item, forecast these, and measure it; needs a manifest.
        out: folder for the tables, by default RUN/forecast.
        skip_bad: leave bad rows out rather than stop.
        cache_dir: where computed features are kept.
        seed: of everything random.
    """
    levels = [0.1, 0.5, 0.9] if quantiles is None else quantiles
    if not all(0 <= level <= 1 for level in levels):
        raise ValueError(f"--quantiles must lie in [0, 1], got {levels}")
    if min(steps, samples, proposals) < 1:
        raise ValueError(f"STEPS, --samples and --proposals must be at least 1, got {steps}, {samples}, {proposals}")
    item = pairs(given or [], "--given", pairs(frames or [], "--frames"))
    if (manifest is None) == (not item) or (backtest and manifest is None):
        raise ValueError(
            "give a manifest or --frames NAME=FILE.npy of one item" + (", and --backtest a manifest" * backtest)
        )
    out = out or run / "forecast"
    refuse_file(out)

    from mmseqvae.cli.common import check_names, load_run, read_run
    from mmseqvae.evaluation.backtest import Backtest, header, lines

    if manifest is None:
        trained = load_run(run)
        check_names(item, [*trained.model.readable, *trained.model.covariates], "is given")
        parts = iter([(["1"], trained.encode([item]))])
    else:
        trained, corpus = read_run(run, manifest, cache_dir, skip_bad)
        dataset = corpus.datasets[split]
        if not len(dataset):
            raise ValueError(f"{manifest}: no row is in the split {split}")
        starts = range(0, len(dataset), AT_ONCE)
        parts = (
            (dataset.ids[i : i + AT_ONCE], dataset.__getitems__(range(i, min(i + AT_ONCE, len(dataset)))))
            for i in starts
        )
    check_names(want or [], trained.model.writable, "is wanted")
    generator, rows, figures = trained.model.generator(seed), {}, Backtest(steps, want)  # type: ignore[var-annotated]
    if backtest:
        figures.check(dataset, str(manifest), split)
    for ids, batch in parts:
        shown = figures.hide(batch) if backtest else batch
        made = trained.forecast_batch(shown, steps, samples, want, proposals, generator)
        for name, draws in made.items():
            rows.setdefault(name, [header(trained, name, levels)]).extend(lines(trained, name, ids, draws, levels))
            if backtest:
                figures.note(trained, name, draws, batch, shown)
    for name, table in rows.items():
        print(write_csv(out / f"{name}.csv", table))
    if backtest:
        write_json(out / "metrics.json", figures.result())
        print(json.dumps(figures.result(), indent=1))


def classify(
    run: Path,
    manifest: Path,
    label: str = "label",
    given: list[str] | None = None,
    split: Literal["train", "valid", "test"] = "test",
    probe: Path | None = None,
    out: Path | None = None,
    skip_bad: bool = False,
    cache_dir: Path = Path(CACHE_DIR),
    seed: int = 0,
) -> None:
    """Fit a linear classifier to posterior means of the split train and measure it on another, or apply a saved one.

    Args:
        run: the run directory of a trained model.
        manifest: a table or folder like the one that the model was trained on.
        label: the column of the classes.
        given: modalities to read, by default all but the column of the classes.
        split: which rows it is measured on; the split valid chooses its settings.
        probe: a probe.json that was written before, to be applied instead of fitting one.
        out: folder for probe.json, metrics.json, predictions.csv and the confusion matrix (.csv, .png), by default
            RUN/classified.
        skip_bad: leave bad rows out rather than stop.
        cache_dir: where computed features are kept.
        seed: of the split of validation items.
    """
    out = out or run / "classified"
    refuse_file(out)
    from mmseqvae.cli.common import read_run
    from mmseqvae.evaluation.probe import Probe, column_of
    from mmseqvae.evaluation.probe import classify as classified
    from mmseqvae.reporting.confusion_matrix import write_confusion

    saved = None if probe is None else Probe.load(probe)
    trained, corpus = read_run(run, manifest, cache_dir, skip_bad, given)
    fitted_to = None if saved is None else saved.given
    names = given or fitted_to or [name for name in trained.model.readable if name != label]
    if fitted_to is not None and sorted(names) != sorted(fitted_to):
        raise ValueError(
            f"{probe} was fitted to posteriors of {fitted_to}, and --given names {names}: leave --given out"
        )
    if label in names:
        raise ValueError(f"--given {label} is what is to be told: leave it out")
    known = column_of(corpus, label)
    if not known and saved is None:
        raise ValueError(f"{manifest}: nothing is labelled in the column {label!r}: name another by --label")
    fitted, figures, rows = classified(trained, corpus, known, names, split, saved, seed)
    fitted.save(out / "probe.json")
    write_csv(out / "predictions.csv", [("id", "label", "predicted", "probability"), *rows])
    if figures["items"]:
        write_confusion(figures, out)
    write_json(out / "metrics.json", {"label": label, "given": names, "split": split, **figures})
    print(json.dumps({k: v for k, v in figures.items() if k not in ("classes", "confusion")}, indent=1))
    print(out / "predictions.csv")
