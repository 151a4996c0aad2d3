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
import torch.nn.functional as F
from torch import Tensor, nn

PIECE = 1024  # rows whose gates are computed at once; 512 to 4096 measure alike
STAIR = 16  # steps of an LSTM's piece; 8 to 32 measure alike

State = tuple[Tensor, ...]  # of one layer: (h,) or, for the LSTM, (h, c), each [B, H]


@dataclass(frozen=True)
class Packing:
    """Where the valid steps of a padded batch [B, T] stand when packed: by step, within a step longest row first.

    places: [N] indices into [B T] of the packed steps. order: [B] rows, longest first. counts: rows alive at each step.
    ends: [B'] packed place of the last step of the B' rows that have one, longest first. lengths: [B]; steps: T.
    """

    places: Tensor
    order: Tensor
    counts: list[int]
    ends: Tensor
    lengths: Tensor
    steps: int

    @classmethod
    def of(cls, lengths: Tensor, steps: int) -> Packing:
        order = lengths.argsort(descending=True, stable=True)
        longest_first = lengths[order]
        t = torch.arange(int(longest_first[0]) if len(order) else 0, device=lengths.device)[:, None]
        alive = t < longest_first
        counts = alive.sum(1)
        some = int((longest_first > 0).sum())
        ends = (counts.cumsum(0) - counts)[longest_first[:some] - 1] + torch.arange(some, device=lengths.device)
        return cls((order * steps + t)[alive], order, counts.tolist(), ends, lengths, steps)

    @property
    def rows(self) -> Tensor:
        """[N]: the row that each packed step is of."""
        return self.places.div(max(1, self.steps), rounding_mode="floor")

    @property
    def times(self) -> Tensor:
        """[N]: its number within the row, from 0."""
        return self.places % max(1, self.steps)

    def gather(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [N, ...]."""
        return x.flatten(0, 1).index_select(0, self.places)

    def spread(self, x: Tensor) -> Tensor:
        """[N, S, ...] -> [S, B, T, ...], 0 where there is no step."""
        x = x.transpose(0, 1)
        flat = x.new_zeros(len(x), len(self.order) * self.steps, *x.shape[2:]).index_copy(1, self.places, x)
        return flat.reshape(len(x), len(self.order), self.steps, *x.shape[2:])

    def turned(self) -> Tensor:
        """[N]: x[turned] runs through each row from its last step to its first; it is its own inverse."""
        t, row = alive(self.counts).nonzero().unbind(1)
        counts = torch.tensor(self.counts, dtype=torch.long)
        return (counts.cumsum(0) - counts)[self.lengths[self.order][row] - 1 - t] + row


def alive(counts: list[int]) -> Tensor:
    """[T, B]: which of the rows, longest first, each step runs over."""
    return torch.arange(max(counts, default=0)) < torch.tensor(counts, dtype=torch.long)[:, None]


def run(
    rnn: nn.RNNBase, x: Tensor, counts: list[int], draws: int = 1, shift: Tensor | None = None,
    state: State | None = None,
) -> Tensor:  # fmt: skip
    """One layer of torch's over packed rows: x [N, C] -> outputs [N S, H].

    draws: S rows of state stand beside one another for every row of x. shift: [B S, C], added to a row's x at every
    step; it and the inputs are multiplied by the weights once each, not once a step and draw. state: [B S, H].
    """
    if rnn.mode == "LSTM":
        return _staircase(rnn, x, counts, draws, shift, state)
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    (weights,) = rnn.all_weights
    if shift is None and draws > 1:
        raise ValueError("several draws of one input need a shift that tells them apart")
    shifted = None if shift is None else F.linear(shift, weights[0])
    rows = draws * max(counts, default=0) if shift is None else len(shift)
    (first,) = state or (weights[1].new_zeros(rows, rnn.hidden_size),)
    keep = torch.is_grad_enabled() and any(part.requires_grad for part in (x, first, *weights))
    return _Layer.apply(CELLS[rnn.mode], counts, draws, low, keep, x, shifted, first, *weights)


def _staircase(
    rnn: nn.RNNBase, x: Tensor, counts: list[int], draws: int, shift: Tensor | None, state: State | None
) -> Tensor:
    """Slices of steps, each over only the rows alive when it begins: torch's LSTM is already a fused kernel."""
    counts = [draws * count for count in counts]
    there = alive(counts)
    if shift is not None:
        x = x.repeat_interleave(draws, 0) + shift.index_select(0, there.nonzero()[:, 1])
    number = torch.tensor(counts, dtype=torch.long)
    places = torch.where(there, (number.cumsum(0) - number)[:, None] + torch.arange(there.shape[1]), 0)
    outputs = []
    for start in range(0, len(counts), STAIR):
        part, rows = slice(start, start + STAIR), counts[start]
        before = None if state is None else tuple(s[None, :rows].contiguous() for s in state)
        out, after = rnn(x.index_select(0, places[part, :rows].flatten()).unflatten(0, (-1, rows)), before)
        state = tuple(s[0] for s in after)
        outputs.append(out[there[part, :rows]])
    return torch.cat(outputs) if outputs else x.new_zeros(0, rnn.hidden_size)


def pieces(counts: list[int], draws: int) -> list[tuple[int, int, int, int]]:
    """The steps in pieces of about `PIECE` outputs: (first step, step after it, first row of x, row after it)."""
    found, step, row = [], 0, 0
    while step < len(counts):
        last, end = step + 1, row + counts[step]
        while last < len(counts) and draws * (end + counts[last] - row) <= PIECE:
            end += counts[last]
            last += 1
        found.append((step, last, row, end))
        step, row = last, end
    return found


class _Layer(torch.autograd.Function):
    """The loop over steps, forward and backward; what a cell does with its gates is the cell's."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: Any, cell: Any, counts: list[int], draws: int, low: torch.dtype | None, keep: bool, x: Tensor,
        shift: Tensor | None, first: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor,
    ) -> Tensor:  # fmt: skip
        hidden, width = w_hh.shape[1], len(w_hh)
        from_input, from_state = _lowered(cell.scaled(w_ih), low).t(), _lowered(w_hh, low).t()
        bias, state_bias = cell.biases(b_ih, b_hh)
        bias = cell.scaled(bias[:, None])[:, 0]
        added = None if shift is None else cell.scaled(shift.t()).t() + bias
        mixed = x.new_empty(len(first), width)
        outputs = x.new_empty(draws * len(x), hidden)
        kept = []  # a tensor a piece: small ones are taken from memory that is already mapped
        before, parts, b = first, pieces(counts, draws), 0
        for step, last, start, end in parts:
            inputs = torch.mm(_lowered(x[start:end], low), from_input).to(x.dtype)
            gates = inputs.add_(bias) if added is None else x.new_empty(draws * (end - start), width)
            more = x.new_empty(len(gates), cell.more * hidden)
            kept += [gates, more] if keep else []
            for count in counts[step:last]:
                a, b = b, b + draws * count
                here = slice(a - draws * start, b - draws * start)
                before, after, now = before[: b - a], outputs[a:b], gates[here]
                if added is not None:
                    mine = inputs[here.start // draws : here.stop // draws, None]
                    torch.add(mine, added[: b - a].view(count, draws, width), out=now.view(count, draws, width))
                if low is None:
                    carried = torch.mm(before, from_state, out=mixed[: b - a])
                else:
                    carried = mixed[: b - a].copy_(torch.mm(before.to(low), from_state))
                cell.forward(now, carried, state_bias, more[here], before, after)
                before = after
        ctx.save_for_backward(x, first, w_ih, w_hh, outputs, *kept)
        ctx.cell, ctx.counts, ctx.parts, ctx.low = cell, counts, parts, low
        ctx.draws, ctx.shifted = draws, shift is not None
        return outputs

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cell, counts, draws, low = ctx.cell, ctx.counts, ctx.draws, ctx.low
        x, first, w_ih, w_hh, outputs, *kept = ctx.saved_tensors
        hidden, width = w_hh.shape[1], len(w_hh)
        to_input, to_state = _lowered(cell.rolled(w_ih), low), _lowered(w_hh, low)
        most = draws * max((end - start for *_, start, end in ctx.parts), default=0)
        buffer, history = x.new_empty(most, cell.width * hidden), x.new_empty(most, hidden, dtype=low or x.dtype)
        lowered = buffer if low is None else buffer.to(low)  # the same gradients, for the products
        d_first = torch.zeros_like(first)  # gradient of the state after the step at hand; in the end, of the first
        scratch = torch.empty_like(first), torch.empty_like(first)
        d_x, d_ih, d_hh = torch.empty_like(x), torch.zeros_like(w_ih), torch.zeros_like(w_hh)
        d_shift = x.new_zeros(len(first), width) if ctx.shifted else None
        total, b = x.new_zeros(cell.width * hidden), len(outputs)
        for index, (step, last, start, end) in reversed(list(enumerate(ctx.parts))):
            gates, more = kept[2 * index : 2 * index + 2]
            d, d_low, h = buffer[: len(gates)], lowered[: len(gates)], history[: len(gates)]
            for t in reversed(range(step, last)):
                rows = draws * counts[t]
                a, b, after = b - rows, b - rows, outputs[b - rows : b]
                before = outputs[a - draws * counts[t - 1] :][:rows] if t else first[:rows]
                here, carried = slice(a - draws * start, a - draws * start + rows), d_first[:rows]
                h[here] = before
                carried.add_(gradient[a : a + rows])
                cell.backward(d[here], gates[here], more[here], before, after, carried, *scratch)
                if low is None:
                    carried.addmm_(d[here, -width:], w_hh)
                else:
                    carried.add_(torch.mm(d_low[here].copy_(d[here])[:, -width:], to_state))
                if d_shift is not None:
                    d_shift[:rows].add_(d[here, :width])
            into = d_low[:, :width]
            if draws > 1:
                into = _lowered(d.view(-1, draws, d.shape[1])[..., :width].sum(1), low)
            torch.mm(into, to_input, out=d_x[start:end]) if low is None else d_x[start:end].copy_(into @ to_input)
            _add_product(d_ih, into, _lowered(x[start:end], low))
            _add_product(d_hh, d_low[:, -width:], h)
            total += d.sum(0)
        d_ih, b_ih = cell.unrolled(d_ih), cell.unrolled(total[:width])
        d_shift = None if d_shift is None else cell.unrolled(d_shift.t()).t()
        return None, None, None, None, None, d_x, d_shift, d_first, d_ih, d_hh, b_ih, total[-width:]


def _lowered(x: Tensor, low: torch.dtype | None) -> Tensor:
    return x if low is None else x.to(low)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left' right, summed in float32."""
    if left.dtype == total.dtype:
        total.addmm_(left.t(), right)
    else:
        total.add_(left.t() @ right)


def _tanh_(x: Tensor) -> Tensor:
    """tanh x = 1 - 2 sigmoid(-2 x), in place of -2 x: a fifth of the time of torch's, equal to the last bits of 1."""
    return torch.add(x.new_ones(()), x.sigmoid_(), alpha=-2, out=x)


class _Cell:
    """What a cell does in one step over k rows, in place.

    gates: how many it has; more: what else it keeps; width: columns of its gradients, all in units of H. The first
    `gates` columns of the gradients belong to W x + b, in the order of `rolled`, the last `gates` to U h.

    forward(gates [k, G H] = W x + b `scaled`, mixed [k, G H] = U h, the bias of U h, more, before, after) fills more
    and after, and leaves the gates activated. backward(d, gates, more, before, after, dh, scratch, scratch) fills d
    [k, width]; dh [k, H] is the gradient of h' and becomes what goes straight to h; scratch is [B, H] of anything.
    """

    gates, more, width = 1, 0, 1

    @staticmethod
    def biases(b_ih: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor | None]:
        return b_ih + b_hh, None

    @staticmethod
    def scaled(rows: Tensor) -> Tensor:
        """[G H, ...]: times -2 where a tanh follows."""
        return -2 * rows

    @staticmethod
    def rolled(rows: Tensor) -> Tensor:
        return rows

    unrolled = rolled


class _Tanh(_Cell):
    """h' = tanh(W x + U h)"""

    @staticmethod
    def forward(gates: Tensor, mixed: Tensor, bias: None, more: Tensor, before: Tensor, after: Tensor) -> None:
        _tanh_(torch.add(gates, mixed, alpha=-2, out=after))

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
    def scaled(rows: Tensor) -> Tensor:
        rows = rows.clone()
        rows[-(len(rows) // 3) :] *= -2
        return rows

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
        n = _tanh_(gates[:, split:].addcmul_(r, more, value=-2))
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
