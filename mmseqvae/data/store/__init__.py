"""What is kept on disk: features in shards, written whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmseqvae import lazy

if not TYPE_CHECKING:
    __getattr__ = lazy(__name__, {})  # names of the release before
