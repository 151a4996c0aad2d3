"""What was ignored, left out or not understood reaches every user: a notebook as a warning, a terminal as one line."""

from __future__ import annotations

import sys
import warnings

BETWEEN = {"mmseqvae", "contextlib", "lightning", "torch"}  # packages whose frames lie between a user's call and `warn`


class DataWarning(UserWarning):
    """Something of the data or of what was asked for does not count: columns, files, rows, symbols, settings.

    `warnings.simplefilter("error", mmseqvae.DataWarning)` makes an error of it, "ignore" hides it.
    """


def warn(message: str) -> None:
    """Warn with a `DataWarning` at the line outside of this package that called into it.

    Args:
        message: one line.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, DataWarning, stacklevel=level)
