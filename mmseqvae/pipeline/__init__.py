"""A trained model in user units, and the folder that it is kept in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmseqvae import lazy

if TYPE_CHECKING:
    from mmseqvae.pipeline.trained_model import Trained as Trained
    from mmseqvae.pipeline.trained_model import load as load

_HOME = {
    "Trained": "trained_model",
    "load": "trained_model",
}
__all__ = sorted(_HOME)
if not TYPE_CHECKING:
    __getattr__ = lazy(__name__, _HOME)
