"""The steps of `cell_equations.py` in one pass over memory each, compiled by numba at a layer's first run; float32.

A step of a small layer is a matrix product of some 50 microseconds and a dozen elementwise operations that cost as much
again, most of it in being called. Here they are one call. tanh is exact to 2e-7.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
from numba import njit
from torch import Tensor

from mmseqvae.rnn.kernels.cell_equations import Gru, Tanh

Array = Any  # numpy arrays, C-contiguous
# Contraction lets a product and a sum be one instruction; NaN and infinity keep their meaning.
COMPILED: Final[Any] = {"fastmath": {"contract", "nsz", "arcp"}, "error_model": "numpy"}

# tanh u = u (1 + s (a1 + s (a2 + s a3))) / (1 + s (b1 + s (b2 + s b3))), s = u^2: seven terms of Lambert's fraction
# u / (1 + s / (3 + s / (5 + ...))), which is exact in float32 up to 9 / 4.
A1, A2, A3 = (np.float32(c / 135135) for c in (17325, 378, 1))
B1, B2, B3 = (np.float32(c / 135135) for c in (62370, 3150, 28))
ZERO, QUARTER, HALF, ONE, TWO = (np.float32(c) for c in (0, 0.25, 0.5, 1, 2))
LAST = np.float32(9)  # from here on tanh is 1 in float32


def compiled(function: Callable[..., Any], reassociate: bool = False) -> Any:
    """Machine code, kept between processes where a folder for it can be written. reassociate: sums in any order."""
    how = {**COMPILED, "fastmath": COMPILED["fastmath"] | {"reassoc"}} if reassociate else COMPILED
    try:
        return njit(**how, cache=True)(function)
    except RuntimeError:  # what numba raises where there is none
        return njit(**how)(function)


@compiled
def tanh(x: Any) -> Any:
    x = LAST if x > LAST else x
    x = -LAST if x < -LAST else x
    u = x * QUARTER
    s = u * u
    n = u * (ONE + s * (A1 + s * (A2 + s * A3)))
    d = ONE + s * (B1 + s * (B2 + s * B3))
    n, d = TWO * n * d, d * d + n * n  # tanh 2u = 2 t / (1 + t^2), twice
    n, d = TWO * n * d, d * d + n * n
    return n / d


@compiled
def sigmoid(x: Any) -> Any:
    return HALF + HALF * tanh(HALF * x)


# The short loops over one array after another are what the compiler turns into vector instructions.


@compiled
def _tanh_forward(
    inputs: Array, draws: int, added: Array, bias: Array, mixed: Array, before: Array, q: int, outputs: Array, a: int,
    gates: Array, more: Array, p: int, rows: int,
) -> None:  # fmt: skip
    each = 1 if len(added) > 1 else 0
    for i in range(rows):
        x, b, m, after = inputs[(p + i) // draws], added[i * each], mixed[i], outputs[a + i]
        for j in range(after.shape[0]):
            after[j] = tanh(x[j] + b[j] + m[j])


@compiled
def _tanh_backward(
    d: Array, gates: Array, more: Array, p: int, before: Array, q: int, outputs: Array, gradient: Array, a: int,
    carried: Array, history: Array, total: Array, rows: int,
) -> None:  # fmt: skip
    for i in range(rows):
        change, after, dh, extra = d[p + i], outputs[a + i], carried[i], gradient[a + i]
        h, kept = before[q + i], history[p + i]
        for j in range(dh.shape[0]):
            kept[j] = h[j]
        for j in range(dh.shape[0]):
            change[j] = (dh[j] + extra[j]) * (ONE - after[j] * after[j])
        for j in range(dh.shape[0]):
            dh[j] = 0
        if len(total):
            sums = total[i]
            for j in range(sums.shape[0]):
                sums[j] += change[j]


@compiled
def _gru_forward(
    inputs: Array, draws: int, added: Array, bias: Array, mixed: Array, before: Array, q: int, outputs: Array, a: int,
    gates: Array, more: Array, p: int, rows: int,
) -> None:  # fmt: skip
    hidden, each = outputs.shape[1], 1 if len(added) > 1 else 0
    for i in range(rows):
        x, b, m, gate = inputs[(p + i) // draws], added[i * each], mixed[i], gates[p + i]
        z, n, moved, h, after = (
            gate[hidden : 2 * hidden],
            gate[2 * hidden :],
            more[p + i],
            before[q + i],
            outputs[a + i],
        )
        x_n, b_n, m_n = x[2 * hidden :], b[2 * hidden :], m[2 * hidden :]
        for j in range(2 * hidden):
            gate[j] = x[j] + b[j] + m[j]
        for j in range(2 * hidden):
            gate[j] = sigmoid(gate[j])
        for j in range(hidden):
            moved[j] = m_n[j] + bias[j]
        for j in range(hidden):
            n[j] = x_n[j] + b_n[j] + gate[j] * moved[j]
        for j in range(hidden):
            n[j] = tanh(n[j])
        for j in range(hidden):
            after[j] = n[j] + z[j] * (h[j] - n[j])


@compiled
def _gru_backward(
    d: Array, gates: Array, more: Array, p: int, before: Array, q: int, outputs: Array, gradient: Array, a: int,
    carried: Array, history: Array, total: Array, rows: int,
) -> None:  # fmt: skip
    hidden = carried.shape[1]
    for i in range(rows):
        gate, change, moved = gates[p + i], d[p + i], more[p + i]
        h, kept, dh, extra = before[q + i], history[p + i], carried[i], gradient[a + i]
        r, z, n = gate[:hidden], gate[hidden : 2 * hidden], gate[2 * hidden :]
        dn, dr, dz = change[:hidden], change[hidden : 2 * hidden], change[2 * hidden : 3 * hidden]
        du = change[3 * hidden :]
        for j in range(hidden):
            kept[j] = h[j]
        for j in range(hidden):
            dh[j] += extra[j]
        for j in range(hidden):
            dz[j] = dh[j] * (kept[j] - n[j]) * z[j] * (ONE - z[j])
        for j in range(hidden):
            dn[j] = dh[j] * (ONE - z[j]) * (ONE - n[j] * n[j])
        for j in range(hidden):
            dh[j] *= z[j]
        for j in range(hidden):
            du[j] = dn[j] * r[j]
        for j in range(hidden):
            dr[j] = du[j] * moved[j] * (ONE - r[j])
        if len(total):
            sums = total[i]
            for j in range(3 * hidden):
                sums[j] += change[j]


@partial(compiled, reassociate=True)
def product(weight: Array, x: Array, constant: Array, out: Array) -> None:
    """out [N, M] = constant + x weight^T for few rows: weight [M, K], x [N, K], constant [N or 1, M].

    A library's product is made for many rows: of one it reads the weights at half the speed of this loop, or less.
    """
    for i in range(weight.shape[0]):
        for n in range(x.shape[0]):
            total = ZERO
            for j in range(weight.shape[1]):
                total += weight[i, j] * x[n, j]
            out[n, i] = total + constant[n if constant.shape[0] > 1 else 0, i]


# Drawing, for numbers of any width; the plain versions are `gaussian.invert` and in `autoregressive.py`.

BLOCK: Final = 64  # numbers that are added up at once


@partial(compiled, reassociate=True)
def _sum(x: Any, first: int, last: int) -> Any:
    total = 0.0
    for j in range(first, last):
        total += x[j]
    return total


@compiled
def pick(probabilities: Array, uniforms: Array, found: Array) -> None:
    """found [N]: where each row of [N, V] sums up to more than its share of the whole, uniforms [N] in [0, 1)."""
    for i in range(found.shape[0]):
        p, n, start, passed = probabilities[i], probabilities.shape[1], 0, 0.0
        share = uniforms[i] * _sum(p, 0, n)
        while start + BLOCK < n:
            block = _sum(p, start, start + BLOCK)
            if passed + block > share:
                break
            passed, start = passed + block, start + BLOCK
        j = start - 1
        while passed <= share and j < n - 1:
            j += 1
            passed += p[j]
        while p[j] <= 0 and j > 0:  # where sums in another order fell short by a rounding
            j -= 1
        found[i] = j


@compiled
def pick_of_logits(logits: Array, sharpness: float, uniforms: Array, found: Array) -> None:
    """`pick` from softmax(sharpness * logits), logits [N, V]: one pass where torch's softmax costs more to call."""
    n = logits.shape[1]
    odds = np.empty((1, n))
    for i in range(logits.shape[0]):
        top = logits[i].max()
        for k in range(n):
            odds[0, k] = np.exp(sharpness * (logits[i, k] - top))
        pick(odds, uniforms[i : i + 1], found[i : i + 1])


@compiled
def note_ends(tokens: Array, end: int, t: int, limit: int, lengths: Array) -> int:
    """Lengths [N], `limit` where a row goes on, after the tokens [N] of step t; how many rows go on."""
    left = 0
    for i in range(lengths.shape[0]):
        if lengths[i] == limit:
            if tokens[i] == end:
                lengths[i] = t + 1
            else:
                left += 1
    return left


@compiled
def end_blocks(output: Array, r: int, first: int, limit: int, quantile: Array, going: Array, lengths: Array) -> int:
    """A block of `free_running.Ends` whose first frame is number `first`, logits last in [N, ...]; rows that go on."""
    left, column = 0, output.shape[1] - r - 1
    for i in range(lengths.shape[0]):
        if lengths[i]:
            continue
        row, start, stop = output[i, column:], 0 if first + r < limit else 1, min(r, limit - first) + 1
        top, total = row[start], 0.0
        for k in range(start, stop):
            top = max(top, row[k])
        for k in range(start, stop):
            total += np.exp(float(row[k]) - top)
        passed = 1 - going[i]
        for k in range(1, stop):
            passed += going[i] * np.exp(float(row[k]) - top) / total
            if passed >= quantile[i]:
                lengths[i] = first + k
                break
        if not lengths[i]:
            going[i] *= np.exp(float(row[0]) - top) / total
            left += 1
    return left


def _array(x: Tensor) -> Array:
    return x.detach().numpy()


class FusedTanh(Tanh):
    array, forward, backward = staticmethod(_array), staticmethod(_tanh_forward), staticmethod(_tanh_backward)


class FusedGru(Gru):
    array, forward, backward = staticmethod(_array), staticmethod(_gru_forward), staticmethod(_gru_backward)


FUSED = {Tanh: FusedTanh, Gru: FusedGru}
