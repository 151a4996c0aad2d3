"""Variational autoencoders over several sequences at once. Names load lazily: the encoders bring no training code."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Sequence": "sequence",
    "Gaussian": "gaussian",
    "TokenEncoder": "encoders",
    "FrameEncoder": "encoders",
    "TokenDecoder": "decoders",
    "FrameDecoder": "decoders",
    "TokenSampling": "sampling",
    "FrameSampling": "sampling",
    "Modality": "modalities",
    "MultimodalVAE": "model",
    "coordinated": "objectives",
    "elbo": "objectives",
    "Tokenizer": "text",
    "LogMel": "audio",
    "LogMelConfig": "config",
    "TextConfig": "config",
    "ModelConfig": "config",
    "ObjectiveConfig": "config",
    "TrainingConfig": "config",
    "WindowConfig": "config",
    "AugmentConfig": "config",
    "prepare": "data",
    "fit": "training",
    "Trained": "pretrained",
    "load": "pretrained",
    "Draws": "forecast",
    "Probe": "classification",
    "fit_probe": "classification",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mmseqvae.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mmseqvae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
