"""What a trained model says: likelihoods by importance sampling, forecasts, posteriors of one modality, steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmseqvae import lazy

if TYPE_CHECKING:
    from mmseqvae.inference.decoder_step import DecoderStep as DecoderStep
    from mmseqvae.inference.forecasting import Draws as Draws

_HOME = {
    "DecoderStep": "decoder_step",
    "Draws": "forecasting",
}
__all__ = sorted(_HOME)
if not TYPE_CHECKING:
    __getattr__ = lazy(__name__, _HOME)
