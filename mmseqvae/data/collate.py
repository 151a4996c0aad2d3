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
    width = flat.shape[1]
    values, rows = flat.reshape(-1), buffer.reshape(len(buffer), -1)
    for row in range(len(lengths)):  # slices first: what a loop then counts is known not to be negative
        start, count = starts[row] * width, lengths[row] * width
        source, target = values[start : start + count], rows[row]
        for i in range(count):
            target[i] = source[i]
        for i in range(count, len(target)):
            target[i] = 0


@compiled
def fill_standardised(buffer: Array, flat: Array, starts: Array, lengths: Array, mean: Array, std: Array) -> None:
    """The same with mean [C] subtracted, then divided by std [C]; the padding is 0 all the same."""
    for row in range(len(lengths)):
        source, target = flat[starts[row] : starts[row] + lengths[row]], buffer[row]
        for step in range(len(source)):
            for channel in range(len(mean)):
                target[step, channel] = (source[step, channel] - mean[channel]) / std[channel]
        target[len(source) :] = 0
