"""What every recipe must do: run from data to its run directory in two steps, and again from there."""

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from mmseqvae.config import ModelConfig, TrainingConfig

TINY = ModelConfig(
    latent=3, token_embedding=4, token_encoder=4, token_decoder=4, frame_encoder=4, frame_inputs=4, frame_decoder=4
)


def runs_and_runs_again(name: str, made: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`made`: the arguments with which the recipe runs on made data."""
    recipe = importlib.import_module(name)
    assert f"python -m {name}" in recipe.__doc__
    assert {"out", "cache_dir", "seed", "training"} <= inspect.signature(recipe.main).parameters.keys()
    out = tmp_path / "run"
    settings = TrainingConfig(epochs=2, batch_size=24, components=2, threads=1)
    arguments = {"model": TINY, **made, "out": out, "cache_dir": tmp_path / "cache"}

    recipe.main(**arguments, training=settings)
    for part in ("config.json", "model.safetensors", "metrics.json", "samples", "pictures", "checkpoints",
                 "tensorboard", "skipped.csv"):  # fmt: skip
        assert (out / part).exists(), part
    assert not list(out.rglob(".*"))  # no temporary file is left
    first = capsys.readouterr().out
    assert f"mmseqvae generate {out}" in first
    json.loads((out / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    recipe.main(**arguments, training=settings)  # all is there
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert capsys.readouterr().out == first

    (out / "metrics.json").unlink()  # the model is kept, the figures are made again and are the same
    recipe.main(**arguments, training=settings)
    assert (out / "model.safetensors").stat().st_mtime_ns == before[out / "model.safetensors"]
    assert capsys.readouterr().out == first

    with pytest.raises(ValueError, match="other settings or data"):
        recipe.main(**arguments, training=settings, seed=5)
