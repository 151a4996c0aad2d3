"""From a corpus to a trained model: the loop, the step, what watches it, and what is fitted afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmseqvae import lazy

if TYPE_CHECKING:
    from mmseqvae.training.trainer import fit as fit

_HOME = {
    "fit": "trainer",
}
__all__ = sorted(_HOME)
if not TYPE_CHECKING:
    __getattr__ = lazy(__name__, _HOME)
