"""The folder of a trained model: its weights, and settings as plain data. Nothing in it names code, or runs any."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmseqvae.config.renamed_options import current_settings
from mmseqvae.files import replacing, write_json
from mmseqvae.inference.unimodal_posteriors import Conditional
from mmseqvae.model import MultimodalVAE
from mmseqvae.priors.base import Prior
from mmseqvae.priors.flows import Flow
from mmseqvae.priors.mixtures import Mixture

FORMAT_VERSION = 3
READABLE = (1, 2, 3)
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_run(folder: Path, model: MultimodalVAE, settings: dict[str, Any]) -> None:
    """Write weights and settings, each under a temporary name first, the settings last."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(folder / WEIGHTS) as part:
        save_file(weights, part)
    conditionals = {
        name: {"kind": conditional.kind, "components": conditional.components}
        for name, conditional in model.conditionals.items()
    }
    fitted = {"fitted": fitted_to_dict(model.fitted), "conditionals": conditionals}
    write_json(folder / CONFIG, {"format_version": FORMAT_VERSION, **settings, **fitted})


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that `write_run` wrote, those of older releases in today's form.

    Raises FileNotFoundError where the folder or a file is missing, ValueError where the settings are damaged or of
    another format version.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not the folder of a trained model: {name} is missing")
    with damaged(folder / CONFIG):
        state: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        version = state["format_version"]
    if version not in READABLE:
        raise ValueError(f"{folder / CONFIG} has format_version {version}; this release reads {READABLE}")
    with damaged(folder / CONFIG):
        if version == 1:  # a mixture was all that could be fitted
            state["fitted"] = {"kind": "mixture", "components": state["components"]}
            state["conditionals"] = {}
        return {"windows": {}, **current_settings(state)}


def make_room(model: MultimodalVAE, settings: dict[str, Any]) -> None:
    """Give a model the parts that were fitted after training, empty, so that their weights have a place."""
    model.fitted = fitted_from_dict(settings["fitted"], model.latent)
    for name, how in settings["conditionals"].items():
        model.conditionals[name] = Conditional(model.latent, **how)


def read_weights(folder: Path, model: MultimodalVAE) -> None:
    """Load the weights in `folder`. Raises ValueError where they are damaged or those of another model."""
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged or does not fit {CONFIG}: {error}") from error


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of this file (tokenizers raises a plain Exception)."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error


def fitted_to_dict(prior: Prior | None) -> dict[str, Any] | None:
    """What is needed to make room for the weights of a fitted prior."""
    if prior is None:
        return None
    if isinstance(prior, Flow):
        return {"kind": "flow", "components": prior.components}
    assert isinstance(prior, Mixture)
    return {"kind": "mixture", "components": len(prior.log_weights)}


def fitted_from_dict(state: dict[str, Any] | None, latent: int) -> Prior | None:
    if state is None or not state["components"]:
        return None
    if state["kind"] == "flow":
        return Flow(latent, state["components"])
    empty = torch.zeros(state["components"], latent)
    return Mixture(empty[:, 0], empty, empty.clone())
