"""What a recurrent cell does in one step over packed rows, forward and backward, in plain tensor operations.

`packed_rnn.py` runs the steps; `numba_cells.py` does the same in one pass over memory, for float32. The gates of step
rows lie in a piece [P, G H], where they are activated in place; W x + b comes as `inputs` (one row for all draws) plus
`added` (one row for each row of the step, or one for all).
"""

from __future__ import annotations

import torch
from torch import Tensor


class Cell:
    """What every cell offers. gates: G, how many it has; more: what else it keeps of a step, in units of H; width:
    columns of its gradients, in units of H. Of these the first G H belong to W x + b, in the order of `rolled`, the
    last G H to U h.
    """

    gates, more, width = 1, 0, 1

    @staticmethod
    def array(x: Tensor) -> Tensor:
        """A tensor as the steps take it."""
        return x

    @staticmethod
    def biases(b_ih: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor]:
        """Those that are added to W x, [G H], and to what a gate multiplies, [more H]."""
        return b_ih + b_hh, b_hh[:0]

    @staticmethod
    def rolled(rows: Tensor) -> Tensor:
        """[G H, ...] in torch's order of gates -> in the order of the gradients."""
        return rows

    @staticmethod
    def unrolled(rows: Tensor) -> Tensor:
        return rows

    @classmethod
    def forward(
        cls, inputs: Tensor, draws: int, added: Tensor, bias: Tensor, mixed: Tensor, before: Tensor, q: int,
        outputs: Tensor, a: int, gates: Tensor, more: Tensor, p: int, rows: int,
    ) -> None:  # fmt: skip
        """One step: fills rows p... of gates and more, and rows a... of outputs.

        inputs [P / draws, G H] and added [rows or 1, G H] make W x + b, mixed [rows, G H] = U h, bias [more H]; h is
        rows q... of before [., H].
        """
        x = inputs[p // draws : (p + rows) // draws].repeat_interleave(draws, 0)
        now = torch.add(x, added[:rows], out=gates[p : p + rows])
        cls.activate(now, mixed[:rows], bias, more[p : p + rows], before[q : q + rows], outputs[a : a + rows])

    @classmethod
    def backward(
        cls, d: Tensor, gates: Tensor, more: Tensor, p: int, before: Tensor, q: int, outputs: Tensor, gradient: Tensor,
        a: int, carried: Tensor, history: Tensor, total: Tensor, rows: int,
    ) -> None:  # fmt: skip
        """One step back: fills rows p... of d [P, width H], and of history [P, H] with h.

        carried [., H] holds what later steps say of the gradient of h', gradient (rows a...) the rest; carried becomes
        what goes straight to h. To total [rows or 0, G H] each row's gradient of W x + b is added, unless it is empty.
        """
        here, h, change = slice(p, p + rows), before[q : q + rows], carried[:rows].add_(gradient[a : a + rows])
        history[here] = h
        cls.differentiate(d[here], gates[here], more[here], h, outputs[a : a + rows], change)
        if len(total):
            total[:rows].add_(d[here, : total.shape[1]])

    @staticmethod
    def activate(gates: Tensor, mixed: Tensor, bias: Tensor, more: Tensor, before: Tensor, after: Tensor) -> None:
        raise TypeError("a cell must define activate")

    @staticmethod
    def differentiate(d: Tensor, gates: Tensor, more: Tensor, before: Tensor, after: Tensor, dh: Tensor) -> None:
        raise TypeError("a cell must define differentiate")


class Tanh(Cell):
    """h' = tanh(W x + U h)"""

    @staticmethod
    def activate(gates: Tensor, mixed: Tensor, bias: Tensor, more: Tensor, before: Tensor, after: Tensor) -> None:
        torch.tanh(gates + mixed, out=after)

    @staticmethod
    def differentiate(d: Tensor, gates: Tensor, more: Tensor, before: Tensor, after: Tensor, dh: Tensor) -> None:
        torch.mul(dh, 1 - after.square(), out=d)
        dh.zero_()


class Gru(Cell):
    """r, z = sigmoid(W x + U h);  n = tanh(W x + r (U h + b));  h' = n + z (h - n). Gradients stand as n, r, z, U h."""

    gates, more, width = 3, 1, 4

    @staticmethod
    def biases(b_ih: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor]:
        both, hidden = b_ih.clone(), len(b_ih) // 3
        both[: 2 * hidden] += b_hh[: 2 * hidden]
        return both, b_hh[2 * hidden :]

    @staticmethod
    def rolled(rows: Tensor) -> Tensor:
        """r, z, n -> n, r, z."""
        return rows.roll(len(rows) // 3, 0)

    @staticmethod
    def unrolled(rows: Tensor) -> Tensor:
        return rows.roll(-(len(rows) // 3), 0)

    @staticmethod
    def activate(gates: Tensor, mixed: Tensor, bias: Tensor, more: Tensor, before: Tensor, after: Tensor) -> None:
        split = 2 * more.shape[1]
        r, z = gates[:, :split].add_(mixed[:, :split]).sigmoid_().chunk(2, 1)
        torch.add(mixed[:, split:], bias, out=more)
        n = gates[:, split:].addcmul_(r, more).tanh_()
        torch.lerp(n, before, z, out=after)

    @staticmethod
    def differentiate(d: Tensor, gates: Tensor, more: Tensor, before: Tensor, after: Tensor, dh: Tensor) -> None:
        (r, z, n), (dn, dr, dz, du) = gates.chunk(3, 1), d.chunk(4, 1)
        torch.mul(dh * (1 - z), 1 - n.square(), out=dn)
        torch.mul(dh * (before - n), z * (1 - z), out=dz)
        torch.mul(dn, r, out=du)
        torch.mul(du * more, 1 - r, out=dr)
        dh.mul_(z)
