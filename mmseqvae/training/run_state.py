"""How far a training in its run directory is: settings in training.json, a checkpoint, and finished.json at its end."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmseqvae.config import AugmentConfig, ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.config.renamed_options import current_settings
from mmseqvae.files import replacing, write_json
from mmseqvae.pipeline.run_folder import CONFIG, WEIGHTS

SETTINGS, FINISHED = "training.json", "finished.json"
SHOWN = 3  # differences that an error names


@dataclass(frozen=True)
class RunState:
    """finished: for as many epochs as are asked for. checkpoint: where a training goes on, None where it begins."""

    finished: bool
    checkpoint: Path | None


def state_of_run(out: Path, noted: Mapping[str, Any]) -> RunState:
    """How far the training in `out` is that has these settings and data; where there is none, they are noted there.

    More epochs than before are no other settings: a training that was finished, or not, then goes on.

    Raises:
        ValueError: where `out` holds a training with other settings, on other data, on another number of processes, or
            for more epochs, or where nothing is left of it to go on from.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoints" / "last.ckpt"
    done = epochs_done(out)
    if done is None and not checkpoint.exists():
        write_json(out / SETTINGS, noted)
        return RunState(False, None)
    there = _settings_in(out)
    _refuse_others(out, there, noted)
    before, wanted = there["training"]["epochs"], noted["training"]["epochs"]
    if wanted < before:
        raise ValueError(
            f"{out} holds a training of {before} epochs, and {wanted} are asked for: epochs can be raised, not "
            "lowered: choose another --out, or delete the folder"
        )
    if done == wanted:
        return RunState(True, None)
    if there["processes"] != noted["processes"]:
        raise ValueError(
            f"{out} holds a training on {there['processes']} process(es), which cannot go on with "
            f"{noted['processes']}: use as many, choose another --out, or delete the folder"
        )
    if not checkpoint.exists():
        raise ValueError(f"{checkpoint} is gone, so the training in {out} cannot go on: start another one from it")
    if done is not None and not (out / FINISHED).exists():  # what the model has, before the settings ask for more
        note_finished(out, done, None)
    write_json(out / SETTINGS, noted)
    return RunState(False, checkpoint)


def epochs_done(out: Path) -> int | None:
    """For how many epochs the finished model in `out` was trained; None where there is none."""
    if (finished := _finished_in(out)) is not None:
        return int(finished["epochs"])
    if all((out / name).exists() for name in (CONFIG, WEIGHTS, SETTINGS)):  # of a release that did not say
        return int(_settings_in(out)["training"]["epochs"])
    return None


def note_finished(out: Path, epochs: int, seconds: float | None) -> None:
    """Written last: the model in `out` is whole. seconds: of all parts of its training, None where nobody counted."""
    write_json(out / FINISHED, {"epochs": epochs, "seconds": seconds})


def training_seconds(out: Path) -> float | None:
    """How long the finished training in `out` took, all its parts together; None where nobody noted it."""
    finished = _finished_in(out)
    return None if finished is None else finished["seconds"]


def _finished_in(out: Path) -> dict[str, Any] | None:
    """What `note_finished` wrote; None where it wrote nothing."""
    if not (out / FINISHED).exists():
        return None
    noted: dict[str, Any] = json.loads((out / FINISHED).read_text(encoding="utf-8"))
    return noted


def _settings_in(out: Path) -> dict[str, Any]:
    if not (out / SETTINGS).exists():
        raise ValueError(f"{out} holds a training whose {SETTINGS} is gone: choose another --out, or delete the folder")
    return {"processes": 1, **current_settings(json.loads((out / SETTINGS).read_text(encoding="utf-8")))}


def _refuse_others(out: Path, there: Mapping[str, Any], noted: Mapping[str, Any]) -> None:
    mine, theirs = (_flat({**found, "processes": 0}) for found in (noted, there))
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name) and name != "training.epochs"]
    if names:
        shown = [f"{name} was {_short(theirs.get(name))} and is {_short(mine.get(name))}" for name in names[:SHOWN]]
        raise ValueError(
            f"{out} holds a training with other settings or data ({'; '.join(shown)}"
            + (f"; {len(names) - SHOWN} more" if len(names) > SHOWN else "")
            + "): choose another --out, or delete the folder"
        )


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    """{"training": {"epochs": 3}} -> {"training.epochs": 3}; a front end is one value."""
    if not isinstance(settings, Mapping) or not settings or name.count(".") == (1 if name.startswith("front") else 9):
        return {name: list(settings) if isinstance(settings, tuple) else settings}
    parts = (_flat(value, f"{name}.{key}" if name else str(key)) for key, value in settings.items())
    return {key: value for part in parts for key, value in part.items()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def settings(
    model: Mapping[str, Any] | ModelConfig, objective: ObjectiveConfig, training: TrainingConfig
) -> dict[str, Any]:
    """What tells two trainings on the same data apart, as plain data; the number of threads does not.

    model: its configuration, or what tells a model of the user's own from others. What is off and newer than runs that
    may be there is not named.
    """
    told = asdict(replace(training, threads=None))
    if training.augment == AugmentConfig():
        del told["augment"]
    networks = asdict(model) if isinstance(model, ModelConfig) else dict(model)
    if not networks.get("modalities", True):
        del networks["modalities"]
    return {"model": networks, "objective": asdict(objective), "training": told}


def write_skipped(out: Path, skipped: Many[Any]) -> None:
    """`skipped.csv`: the rows that were left out and why; only a header where there are none."""
    with replacing(out / "skipped.csv") as part, part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("row", "id", "problem"), *skipped])
