"""How good a trained model is: likelihood, metrics, cross-generation, text, forecasts and probes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmseqvae import lazy

if TYPE_CHECKING:
    from mmseqvae.evaluation.cross_generation import cross_generation as cross_generation
    from mmseqvae.evaluation.language_model_baseline import LanguageModel as LanguageModel
    from mmseqvae.evaluation.probe import Probe as Probe
    from mmseqvae.evaluation.probe import fit_probe as fit_probe
    from mmseqvae.evaluation.summary import evaluate as evaluate
    from mmseqvae.evaluation.summary import likelihood as likelihood

_HOME = {
    "evaluate": "summary",
    "likelihood": "summary",
    "cross_generation": "cross_generation",
    "Probe": "probe",
    "fit_probe": "probe",
    "LanguageModel": "language_model_baseline",
}
__all__ = sorted(_HOME)
if not TYPE_CHECKING:
    __getattr__ = lazy(__name__, _HOME)
