"""Items out of one flat array into a padded buffer, in one pass over memory that numba compiles at its first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

Array = Any  # numpy arrays, C-contiguous
# A slice assigned in Python costs a microsecond or two, more than copying what an item holds; a batch has many items.


def compiled(function: Callable[..., Any]) -> Any:
    """Machine code that keeps to the order and rounding as written, kept between processes where there is a folder."""
    try:
        return njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # what numba raises where there is none
        return njit(nogil=True, error_model="numpy")(function)


@compiled
def fill(buffer: Array, flat: Array, starts: Array, lengths: Array) -> None:
    """buffer [B, T, C]: `flat[starts[b] : starts[b] + lengths[b]]` of flat [steps, C] in row b, then zeros.

    Nothing is checked: `starts` and `lengths` [B] must lie within `flat`, and T be at least every length.
    """
    for row in range(len(lengths)):
        start, length = starts[row], lengths[row]
        buffer[row, :length] = flat[start : start + length]
        buffer[row, length:] = 0


@compiled
def fill_standardised(buffer: Array, flat: Array, starts: Array, lengths: Array, mean: Array, std: Array) -> None:
    """The same with mean [C] subtracted, then divided by std [C]; the padding is 0 all the same."""
    for row in range(len(lengths)):
        start, length = starts[row], lengths[row]
        for step in range(length):
            for channel in range(len(mean)):
                buffer[row, step, channel] = (flat[start + step, channel] - mean[channel]) / std[channel]
        buffer[row, length:] = 0
