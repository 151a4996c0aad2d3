"""Files to frames and back: arrays, log-mels, waveforms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmseqvae import lazy

if TYPE_CHECKING:
    from mmseqvae.features.arrays import FrameArrays as FrameArrays
    from mmseqvae.features.log_mel import LogMel as LogMel

_HOME = {
    "FrameArrays": "arrays",
    "LogMel": "log_mel",
}
__all__ = sorted(_HOME)
if not TYPE_CHECKING:
    __getattr__ = lazy(__name__, _HOME)
