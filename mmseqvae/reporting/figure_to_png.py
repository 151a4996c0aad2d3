"""PNG files of matplotlib figures, whose texts may be in any script that a font of this machine has."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mmseqvae.data.data_warning import warn
from mmseqvae.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIRST = "DejaVu Sans"  # matplotlib's own
MORE = ("Noto Sans CJK", "WenQuanYi", "Noto Sans", "Noto Naskh Arabic", "Noto Emoji", "Arial Unicode", "PingFang")


def save_png(figure: Figure, path: Path, dpi: int = 100) -> Path:
    """Write the figure to `path` under a temporary name first, and return `path`.

    Symbols that no font has are boxes in the picture, which is told once a picture.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontfamily(_families())
    with warnings.catch_warnings(record=True) as told, replacing(path) as part:
        warnings.simplefilter("always")
        figure.savefig(part, format="png", dpi=dpi)
    glyphs = [warning for warning in told if "missing from font" in str(warning.message)]
    for warning in told:
        if warning not in glyphs:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if glyphs:
        warn(f"{path}: no font here has {len(glyphs)} of its symbols; one such as Noto Sans CJK would do")
    return path


@cache
def _families() -> list[str]:
    """matplotlib's own font, then those of other scripts that are installed."""
    from matplotlib import font_manager

    return [FIRST, *(name for name in sorted(font_manager.get_font_names()) if name.startswith(MORE))]
