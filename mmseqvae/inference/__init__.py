"""What a trained model says of data: likelihoods by importance sampling, forecasts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmseqvae import lazy

if TYPE_CHECKING:
    from mmseqvae.inference.forecasting import Draws as Draws

_HOME = {
    "Draws": "forecasting",
}
__all__ = sorted(_HOME)
if not TYPE_CHECKING:
    __getattr__ = lazy(__name__, _HOME)
