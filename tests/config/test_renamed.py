"""Options under the names of the release before: they still do, and say what they are called now."""

import inspect
import json
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.known_world.objectives import RUNS
from benchmarks.ledger import Ledger
from benchmarks.quality.objectives import ROWS
from mmseqvae.cli.parser import run
from mmseqvae.config import ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.config.renamed_options import RENAMED, current
from mmseqvae.objectives import chosen, coordinated
from mmseqvae.sequence import Sequence
from mmseqvae.testing import small_model

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "training": (
        TrainingConfig,
        {"sure": 0.5, "gaps": 0.25, "conditionals": "flow", "components": 7, "ema": 0.5, "clip": 3.0},
    ),
    "model": (ModelConfig, {"rnn": "lstm", "longest": 2.0}),
}


@pytest.mark.parametrize("part", CONFIGS)
def test_old_keywords_and_attributes_are_those_of_today_and_say_so(part: str) -> None:
    config, values = CONFIGS[part]
    assert values.keys() == RENAMED[part].keys()
    for old, value in values.items():
        new = RENAMED[part][old]
        with pytest.warns(FutureWarning, match=rf"^{part}\.{old} is now called {part}\.{new};") as told:
            assert (found := config(**{old: value})) == config(**{new: value}) != config()
        assert told[0].filename == __file__
        with pytest.warns(FutureWarning, match=rf"now called {part}\.{new};") as told:
            assert getattr(found, old) == value
        assert told[0].filename == __file__
        with pytest.warns(FutureWarning, match=new):
            assert replace(config(), **{old: value}) == found
        with pytest.raises(TypeError, match=f"{part}.{new} is given by its old name, too"), pytest.warns(FutureWarning):
            config(**{old: value, new: value})


def test_old_options_of_the_default_objective_are_those_of_today_and_others_are_left_alone() -> None:
    with pytest.warns(FutureWarning, match=r"^objective\.options\.own is now called .*\.self_reconstruction;"):
        found = ObjectiveConfig(options={"own": 0.5, "coordination": 0.1})
    assert found.options == {"self_reconstruction": 0.5, "coordination": 0.1}
    chosen(found.name, found.options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ObjectiveConfig("elbo", options={"own": 1}).options == {"own": 1}


def test_every_new_name_is_an_option_and_no_old_one_is() -> None:
    known = {part: {field.name for field in fields(config)} for part, (config, _) in CONFIGS.items()}
    known["objective.options"] = set(inspect.signature(chosen("coordinated", {})).parameters)
    assert known.keys() == RENAMED.keys()
    for part, names in RENAMED.items():
        assert set(names.values()) <= known[part]
        assert not names.keys() & known[part]


def command(
    model: ModelConfig = ModelConfig(), objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008
    training: TrainingConfig = TrainingConfig(),  # noqa: B008
) -> tuple[ModelConfig, ObjectiveConfig, TrainingConfig]:  # fmt: skip
    return model, objective, training


@pytest.mark.parametrize(
    ("words", "is_now"),
    [
        (["--training.sure", "0.5"], "--training.pseudo-label-threshold"),
        (["--training.ema=0.5"], "--training.ema-decay"),
        (["--model.rnn", "tanh"], "--model.cell"),
        (["--objective.options.own", "0.5"], "--objective.options.self_reconstruction"),
    ],
)
def test_old_options_of_the_command_line(words: list[str], is_now: str, capsys: pytest.CaptureFixture[str]) -> None:
    option, *value = words[0].split("=") + words[1:]
    found = run(command, words, "mmseqvae")
    told = f"warning: {option} is now called {is_now}; the next release will not know the old name\n"
    assert capsys.readouterr().err == told
    assert found == run(command, [is_now, *value]) != command()
    assert not capsys.readouterr().err


def test_names_of_the_users_own_keep_their_spelling() -> None:
    words = [
        "--objective.weights.my_text",
        "2",
        "--objective.weights.a-b=3",
        "--objective.options.self-reconstruction=1",
    ]
    _, objective, _ = run(command, words)
    assert objective == ObjectiveConfig(weights={"my_text": 2.0, "a-b": 3.0}, options={"self_reconstruction": 1})


def test_finished_runs_are_found_under_their_old_names(tmp_path: Path) -> None:
    """Every line of the ledgers that a run of today stands for, whose names then were others."""
    ledger, told = Ledger(RESULTS / "known_world.jsonl"), []
    for record in ledger.records():
        if (name := record["run"].get("name")) in RUNS:
            common = {field: record["run"][field] for field in ("name", "world", "seed", "seconds", "draws")}
            common |= {"test_seed": record["run"]["test_seed"]} if "test_seed" in record["run"] else {}
            found = ledger.find(common | RUNS[name].settings())
            assert found is not None
            told.append(json.dumps(found))
    assert sum("self_reconstruction" in line for line in told) > 100
    settings = [record["run"]["settings"] for record in Ledger(RESULTS / "objectives.jsonl").records()]
    assert all(settings.count(ROWS[row]) for row in ("coordinated", "crmvae", "jnf"))
    kept = {"run": {"row": "a", "settings": {"training.ema": 0.5, "objective.options.own": 1}, "own": 2}}
    (tmp_path / "runs.jsonl").write_text(json.dumps(kept), encoding="utf-8")
    asked = {"row": "a", "settings": {current("training.ema"): 0.5, current("objective.options.own"): 1}, "own": 2}
    assert Ledger(tmp_path / "runs.jsonl").left([asked]) == []


def test_the_objective_takes_its_old_arguments() -> None:
    model, batch = small_model(), {"text": Sequence(torch.tensor([[1, 0], [2, 0]]), torch.tensor([2, 2]))}
    found = []
    for options in ({"self_reconstruction": 0.7, "token_reconstruction": 0.2}, {"own": 0.7, "tokens": 0.2}):
        torch.manual_seed(0)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found.append(coordinated(model, batch, **options).objective)
        assert [("self_reconstruction" in str(w.message), w.filename) for w in told if "called" in str(w.message)] == (
            [(True, __file__), (False, __file__)] if "own" in options else []
        )
    assert torch.equal(*found)
