"""The command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmseqvae import lazy

if TYPE_CHECKING:
    from mmseqvae.cli.commands import main as main
    from mmseqvae.cli.parser import run as run

_HOME = {
    "main": "commands",
    "run": "parser",
}
__all__ = sorted(_HOME)
if not TYPE_CHECKING:
    __getattr__ = lazy(__name__, _HOME)
