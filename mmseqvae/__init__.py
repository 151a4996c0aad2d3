"""Variational autoencoders over several sequences at once. Names load lazily: the encoders bring no training code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmseqvae.config import AugmentConfig as AugmentConfig
    from mmseqvae.config import LogMelConfig as LogMelConfig
    from mmseqvae.config import ModalityConfig as ModalityConfig
    from mmseqvae.config import ModelConfig as ModelConfig
    from mmseqvae.config import ObjectiveConfig as ObjectiveConfig
    from mmseqvae.config import TextConfig as TextConfig
    from mmseqvae.config import TrainingConfig as TrainingConfig
    from mmseqvae.config import WindowConfig as WindowConfig
    from mmseqvae.data.data_warning import DataWarning as DataWarning
    from mmseqvae.data.preparation import prepare as prepare
    from mmseqvae.decoders import FrameDecoder as FrameDecoder
    from mmseqvae.decoders import TokenDecoder as TokenDecoder
    from mmseqvae.decoding import FrameSampling as FrameSampling
    from mmseqvae.decoding import TokenSampling as TokenSampling
    from mmseqvae.distributions.gaussian import Gaussian as Gaussian
    from mmseqvae.encoders import FrameEncoder as FrameEncoder
    from mmseqvae.encoders import TokenEncoder as TokenEncoder
    from mmseqvae.evaluation.probe import Probe as Probe
    from mmseqvae.evaluation.probe import fit_probe as fit_probe
    from mmseqvae.features.log_mel import LogMel as LogMel
    from mmseqvae.inference.forecasting import Draws as Draws
    from mmseqvae.modality import Modality as Modality
    from mmseqvae.model import MultimodalVAE as MultimodalVAE
    from mmseqvae.objectives import coordinated as coordinated
    from mmseqvae.objectives import elbo as elbo
    from mmseqvae.pipeline.build import CorpusInfo as CorpusInfo
    from mmseqvae.pipeline.trained_model import Trained as Trained
    from mmseqvae.pipeline.trained_model import load as load
    from mmseqvae.sequence import Sequence as Sequence
    from mmseqvae.tokenizers.characters import Tokenizer as Tokenizer
    from mmseqvae.training.trainer import fit as fit

__version__ = "0.2.0"

_HOME = {
    "Sequence": "sequence",
    "Gaussian": "distributions.gaussian",
    "TokenEncoder": "encoders",
    "FrameEncoder": "encoders",
    "TokenDecoder": "decoders",
    "FrameDecoder": "decoders",
    "TokenSampling": "decoding",
    "FrameSampling": "decoding",
    "Modality": "modality",
    "CorpusInfo": "pipeline.build",
    "MultimodalVAE": "model",
    "coordinated": "objectives",
    "elbo": "objectives",
    "Tokenizer": "tokenizers.characters",
    "LogMel": "features.log_mel",
    "LogMelConfig": "config",
    "TextConfig": "config",
    "ModelConfig": "config",
    "ModalityConfig": "config",
    "ObjectiveConfig": "config",
    "TrainingConfig": "config",
    "WindowConfig": "config",
    "AugmentConfig": "config",
    "DataWarning": "data.data_warning",
    "prepare": "data.preparation",
    "fit": "training.trainer",
    "Trained": "pipeline.trained_model",
    "load": "pipeline.trained_model",
    "Draws": "inference.forecasting",
    "Probe": "evaluation.probe",
    "fit_probe": "evaluation.probe",
}


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names are imported when they are first asked for.

    Names that it had in the release before are found as well, with a warning.

    Args:
        package: its name.
        homes: {name: module below the package that defines it}.
    """

    def find(name: str) -> Any:
        if name in homes:
            return getattr(import_module(f"{package}.{homes[name]}"), name)
        from mmseqvae.config.renamed_modules import by_old_name

        return by_old_name(package, name)

    return find


class OldNames:
    """Asked last for a module to import: those of the release before are still found, with a warning."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not name.startswith(f"{__name__}."):
            return None
        from mmseqvae.config import renamed_modules

        return renamed_modules.find_spec(name)


sys.meta_path.append(OldNames)
if not TYPE_CHECKING:  # so that a type checker knows which names there are not
    __getattr__ = lazy(__name__, _HOME)
__all__ = sorted(_HOME)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
