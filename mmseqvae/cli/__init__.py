"""The command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmseqvae import lazy

if TYPE_CHECKING:
    from mmseqvae.cli.commands import embed as embed
    from mmseqvae.cli.commands import evaluate as evaluate
    from mmseqvae.cli.commands import generate as generate
    from mmseqvae.cli.commands import main as main
    from mmseqvae.cli.commands import train as train
    from mmseqvae.cli.forecast_and_classify import classify as classify
    from mmseqvae.cli.forecast_and_classify import forecast as forecast
    from mmseqvae.cli.parser import run as run

_HOME = {
    "main": "commands",
    "train": "commands",
    "generate": "commands",
    "evaluate": "commands",
    "embed": "commands",
    "forecast": "forecast_and_classify",
    "classify": "forecast_and_classify",
    "run": "parser",
}
__all__ = sorted(_HOME)
if not TYPE_CHECKING:
    __getattr__ = lazy(__name__, _HOME)
