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


class Waits(BaseException):
    """A process waits for what the first one does."""


def second_of_two(patch: pytest.MonkeyPatch) -> None:
    """Make this process the second of two as torchrun starts them, which goes on to where it waits for the first."""

    def waiting(*_: Any, **__: Any) -> None:
        raise Waits

    told = {"TORCHELASTIC_RUN_ID": "test", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in told.items():
        patch.setenv(name, value)
    patch.setattr("mmseqvae.distributed.joined", lambda: None)
    patch.setattr("torch.distributed.broadcast_object_list", waiting)
    patch.setattr(
        "mmseqvae.data.store.work_sharing.rank_of", waiting
    )  # the first process would have a share in `prepare`


def runs_and_runs_again(name: str, made: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`made`: the arguments with which the recipe runs on made data."""
    recipe = importlib.import_module(name)
    assert f"python -m {name}" in recipe.__doc__
    assert {"out", "cache_dir", "seed", "training"} <= inspect.signature(recipe.main).parameters.keys()
    out = tmp_path / "run"
    settings = TrainingConfig(epochs=2, batch_size=24, fitted_components=2, threads=1)
    arguments = {"model": TINY, **made, "out": out, "cache_dir": tmp_path / "cache"}

    with pytest.MonkeyPatch.context() as patch:
        second_of_two(patch)
        with pytest.raises(Waits):
            recipe.main(**arguments, training=settings)
    assert not out.exists()
    assert not (tmp_path / "cache").exists()  # the first process alone downloads and writes data

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
