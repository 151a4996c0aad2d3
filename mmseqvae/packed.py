"""A recurrent layer over packed rows, for a CPU: no padding is computed, and the gradient is written by hand.

Rows are sorted by length, so that step t runs over exactly the rows that are still alive. Compared with torch's layer
the backward pass holds one matrix product a step (the state's gradient); those of the weights and inputs, which torch
also does step by step, are gathered in large ones over a piece of steps that stays in the processor's cache.
Outputs and gradients are those of `torch.nn.RNN`, `GRU` and `LSTM` over packed sequences (tested); under bf16 autocast
matrix products run in bf16, states and sums in float32. torch's LSTM on a CPU is a fused kernel near the processor's
limit: it is called on slices of steps. `python -m benchmarks.recurrent` measures all three.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PIECE = 1024  # rows whose gates are computed at once; 512 to 4096 measure alike
STAIR = 16  # steps of an LSTM's piece; 8 to 32 measure alike

State = tuple[Tensor, ...]  # of one layer: (h,) or, for the LSTM, (h, c), each [B, H]


@dataclass(frozen=True)
class Packing:
    """Where the valid steps of a padded batch [B, T] stand when packed: by step, within a step longest row first.

    places: [N] indices into [B T] of the packed steps. order: [B] rows, longest first. counts: rows alive at each step.
    ends: [B'] packed place of the last step of the B' rows that have one, longest first. alive: [T, B], longest first.
    """

    places: Tensor
    order: Tensor
    counts: list[int]
    ends: Tensor
    alive: Tensor

    @classmethod
    def of(cls, lengths: Tensor, steps: int) -> Packing:
        order = lengths.argsort(descending=True, stable=True)
        longest_first = lengths[order].clamp(max=steps)
        t = torch.arange(int(longest_first[0]) if len(order) else 0)[:, None]
        alive = t < longest_first
        counts = alive.sum(1)
        some = int((longest_first > 0).sum())
        ends = (counts.cumsum(0) - counts)[longest_first[:some] - 1] + torch.arange(some)
        return cls((order * steps + t)[alive], order, counts.tolist(), ends, alive)

    def turned(self) -> Tensor:
        """[N]: x[turned] runs through each row from its last step to its first; it is its own inverse."""
        t, row = self.alive.nonzero().unbind(1)
        counts = self.alive.sum(1)
        return (counts.cumsum(0) - counts)[self.alive.sum(0)[row] - 1 - t] + row

    def pieces(self) -> list[tuple[int, int, int, int]]:
        """The steps in pieces of about `PIECE` rows: (first step, step after it, first row, row after it)."""
        found, step, row = [], 0, 0
        while step < len(self.counts):
            last, end = step + 1, row + self.counts[step]
            while last < len(self.counts) and end + self.counts[last] - row <= PIECE:
                end += self.counts[last]
                last += 1
            found.append((step, last, row, end))
            step, row = last, end
        return found


def run(rnn: nn.RNNBase, x: Tensor, packing: Packing, state: State | None) -> Tensor:
    """One layer of torch's: x [N, C] packed -> outputs [N, H] packed. state: [B, H], rows in `packing.order`."""
    if rnn.mode == "LSTM":
        return _staircase(rnn, x, packing, state)
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    (weights,) = rnn.all_weights
    (first,) = state or (weights[1].new_zeros(max(packing.counts, default=0), rnn.hidden_size),)
    keep = torch.is_grad_enabled() and any(part.requires_grad for part in (x, first, *weights))
    return _Layer.apply(CELLS[rnn.mode], packing, low, keep, x, first, *weights)


def _staircase(rnn: nn.RNNBase, x: Tensor, packing: Packing, state: State | None) -> Tensor:
    """Pieces of steps, each over only the rows that are alive when it begins: torch's LSTM is already a fused one."""
    alive = packing.alive
    counts = alive.sum(1)
    places = torch.where(alive, (counts.cumsum(0) - counts)[:, None] + torch.arange(alive.shape[1]), 0)
    outputs = []
    for first in range(0, len(counts), STAIR):
        piece = slice(first, first + STAIR)
        rows = packing.counts[first]
        before = None if state is None else tuple(s[None, :rows].contiguous() for s in state)
        out, after = rnn(x.index_select(0, places[piece, :rows].flatten()).unflatten(0, (-1, rows)), before)
        state = tuple(s[0] for s in after)
        outputs.append(out[alive[piece, :rows]])
    return torch.cat(outputs) if outputs else x.new_zeros(0, rnn.hidden_size)


class _Layer(torch.autograd.Function):
    """The loop over steps, forward and backward; what a cell does with its gates is the cell's."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: Any, cell: Any, packing: Packing, low: torch.dtype | None, keep: bool, x: Tensor,
        first: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor,
    ) -> Tensor:  # fmt: skip
        rows, hidden = len(x), w_hh.shape[1]
        from_input, from_state = _lowered(w_ih, low).t(), _lowered(w_hh, low).t()
        bias, state_bias = cell.biases(b_ih, b_hh)
        mixed = x.new_empty(len(first), cell.gates * hidden)
        outputs = x.new_empty(rows, hidden)
        kept = []  # a tensor a piece: small ones are taken from memory that is already mapped
        before, pieces = first, packing.pieces()
        for step, last, start, end in pieces:
            gates = torch.mm(_lowered(x[start:end], low), from_input).to(x.dtype).add_(bias)
            more = x.new_empty(end - start, cell.more * hidden)
            kept += [gates, more] if keep else []
            a = start
            for count in packing.counts[step:last]:
                b = a + count
                before, after, here = before[:count], outputs[a:b], slice(a - start, b - start)
                if low is None:
                    now = torch.mm(before, from_state, out=mixed[:count])
                else:
                    now = mixed[:count].copy_(torch.mm(before.to(low), from_state))
                cell.forward(gates[here], now, state_bias, more[here], before, after)
                before, a = after, b
        ctx.save_for_backward(x, first, w_ih, w_hh, outputs, *kept)
        ctx.cell, ctx.packing, ctx.pieces, ctx.low = cell, packing, pieces, low
        return outputs

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cell, packing, pieces, low = ctx.cell, ctx.packing, ctx.pieces, ctx.low
        x, first, w_ih, w_hh, outputs, *kept = ctx.saved_tensors
        hidden = w_hh.shape[1]
        to_input, to_state = _lowered(cell.rolled(w_ih), low), _lowered(w_hh, low)
        most = max((end - start for *_, start, end in pieces), default=0)
        buffer, history = x.new_empty(most, cell.width * hidden), x.new_empty(most, hidden)
        now = torch.zeros_like(first)  # gradient of the state after the step at hand
        scratch = torch.empty_like(now), torch.empty_like(now)
        d_x, d_ih, d_hh = torch.empty_like(x), torch.zeros_like(w_ih), torch.zeros_like(w_hh)
        total = x.new_zeros(cell.width * hidden)
        for index, (step, last, start, end) in reversed(list(enumerate(pieces))):
            gates, more = kept[2 * index : 2 * index + 2]
            d, h = buffer[: end - start], history[: end - start]
            b = end
            for t in reversed(range(step, last)):
                count = packing.counts[t]
                a = b - count
                before = outputs[a - packing.counts[t - 1] :][:count] if t else first[:count]
                here, carried = slice(a - start, b - start), now[:count]
                h[here] = before
                carried.add_(gradient[a:b])
                cell.backward(d[here], gates[here], more[here], before, outputs[a:b], carried, *scratch)
                through = d[here, -cell.gates * hidden :]
                if low is None:
                    carried.addmm_(through, w_hh)
                else:
                    carried.add_(torch.mm(through.to(low), to_state))
                b = a
            d_low = _lowered(d, low)
            into = d_low[:, : cell.gates * hidden]
            torch.mm(into, to_input, out=d_x[start:end]) if low is None else d_x[start:end].copy_(into @ to_input)
            _add_product(d_ih, into, _lowered(x[start:end], low))
            _add_product(d_hh, d_low[:, -cell.gates * hidden :], _lowered(h, low))
            total += d.sum(0)
        d_ih = cell.unrolled(d_ih)
        b_ih, b_hh = cell.unrolled(total[: cell.gates * hidden]), total[-cell.gates * hidden :]
        return None, None, None, None, d_x, now, d_ih, d_hh, b_ih, b_hh


def _lowered(x: Tensor, low: torch.dtype | None) -> Tensor:
    return x if low is None else x.to(low)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left' right, summed in float32."""
    if left.dtype == total.dtype:
        total.addmm_(left.t(), right)
    else:
        total.add_(left.t() @ right)


def _tanh_(x: Tensor) -> Tensor:
    """tanh x = 2 sigmoid(2 x) - 1 in place: a third of the time of torch's tanh, equal to the last bits of 1."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1)


class _Cell:
    """What a cell does in one step over k rows, in place.

    gates: how many it has; more: what else it keeps; width: columns of its gradients, all in units of H. The first
    `gates` columns of the gradients belong to W x + b, in the order of `rolled`, the last `gates` to U h.

    forward(gates [k, G H] = W x + b, mixed [k, G H] = U h, the bias of U h, more, before, after) fills more and after,
    and leaves the gates activated. backward(d, gates, more, before, after, dh, scratch, scratch) fills d [k, width]; dh
    [k, H] is the gradient of h' and becomes what goes straight to h; scratch is [B, H] of anything.
    """

    gates, more, width = 1, 0, 1

    @staticmethod
    def biases(b_ih: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor | None]:
        return b_ih + b_hh, None

    @staticmethod
    def rolled(rows: Tensor) -> Tensor:
        return rows

    unrolled = rolled


class _Tanh(_Cell):
    """h' = tanh(W x + U h)"""

    @staticmethod
    def forward(gates: Tensor, mixed: Tensor, bias: None, more: Tensor, before: Tensor, after: Tensor) -> None:
        _tanh_(torch.add(gates, mixed, out=after))

    @staticmethod
    def backward(
        d: Tensor, gates: Tensor, more: Tensor, before: Tensor, after: Tensor, dh: Tensor, u: Tensor, rest: Tensor
    ) -> None:
        u = torch.mul(dh, after, out=u[: len(d)])
        torch.addcmul(dh, u, after, value=-1, out=d)  # (1 - h'^2) dh
        dh.zero_()


class _Gru(_Cell):
    """r, z = sigmoid(W x + U h);  n = tanh(W x + r (U h + b));  h' = n + z (h - n). Gradients stand as n, r, z, U h."""

    gates, more, width = 3, 1, 4

    @staticmethod
    def biases(b_ih: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor | None]:
        both = b_ih.clone()
        hidden = len(both) // 3
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
    def forward(gates: Tensor, mixed: Tensor, bias: Tensor, more: Tensor, before: Tensor, after: Tensor) -> None:
        split = 2 * more.shape[1]
        r, z = gates[:, :split].add_(mixed[:, :split]).sigmoid_().chunk(2, 1)
        torch.add(mixed[:, split:], bias, out=more)
        n = _tanh_(gates[:, split:].addcmul_(r, more))
        torch.lerp(n, before, z, out=after)

    @staticmethod
    def backward(
        d: Tensor, gates: Tensor, more: Tensor, before: Tensor, after: Tensor, dh: Tensor, u: Tensor, rest: Tensor
    ) -> None:
        (r, z, n), (dn, dr, dz, du) = gates.chunk(3, 1), d.chunk(4, 1)
        u, rest = u[: len(d)], torch.sub(1, z, out=rest[: len(d)])
        torch.mul(dh, rest, out=dn)
        dh.mul_(z)
        torch.sub(before, n, out=u).mul_(dh)
        torch.mul(u, rest, out=dz)  # dh (h - n) z (1 - z)
        torch.mul(dn, n, out=u)
        dn.addcmul_(u, n, value=-1)  # dh (1 - z) (1 - n^2)
        torch.mul(dn, r, out=du)
        torch.mul(du, more, out=u)
        torch.addcmul(u, u, r, value=-1, out=dr)  # dn (U h + b) r (1 - r)


CELLS: dict[str, type[_Cell]] = {"RNN_TANH": _Tanh, "GRU": _Gru}
