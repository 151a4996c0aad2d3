"""Runs that earlier releases wrote load for ever, and say what they said when they were written.

Each folder of tests/runs holds what a release wrote (its format's number stands in the name), and in expected.json what
the model then gave: posterior means, log-likelihoods, draws from seeds.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmseqvae

RUNS = sorted((Path(__file__).parents[1] / "runs").iterdir())


def in_own_units(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: np.float32(x) if isinstance(x, list) else x for name, x in item.items()} for item in items]


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("run", RUNS, ids=[run.name for run in RUNS])
def test_a_run_of_an_earlier_release_says_what_it_said(run: Path) -> None:
    expected, trained = json.loads((run / "expected.json").read_text(encoding="utf-8")), mmseqvae.load(run)
    items, model = in_own_units(expected["items"]), trained.model
    close(trained.embed(items), expected["embed"])
    batch = trained.encode(items)
    with torch.no_grad():
        z = model.encode(batch).posterior().mean
        for name, nats in model.log_likelihood(z, batch).items():
            close(nats, expected["nats"][name])
        close(model.log_prob(batch, draws=5, generator=model.generator(0)), expected["log_prob"])
    for name, drawn in trained.sample(2, seed=4).items():
        for item, before in zip(drawn, expected["sampled"].get(name, drawn), strict=True):
            assert item == before if isinstance(item, str) else close(item, before) is None


def test_there_are_runs_of_every_format_since_the_second() -> None:
    assert {run.name.split("-")[1] for run in RUNS} >= {"2"}
