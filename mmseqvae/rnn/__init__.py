"""Recurrent layers: over sequences in one call, conditioned on a latent, and step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmseqvae import lazy

if TYPE_CHECKING:
    from mmseqvae.rnn.conditioned_rnn import ConditionedRNN as ConditionedRNN
    from mmseqvae.rnn.layer import Recurrent as Recurrent
    from mmseqvae.rnn.layer import set_kernel as set_kernel

_HOME = {
    "Recurrent": "layer",
    "ConditionedRNN": "conditioned_rnn",
    "set_kernel": "layer",
}
__all__ = sorted(_HOME)
if not TYPE_CHECKING:
    __getattr__ = lazy(__name__, _HOME)
