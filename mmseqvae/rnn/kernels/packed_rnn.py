"""A recurrent layer over packed rows, for a CPU: no padding is computed, and the gradient is written by hand.

Rows are sorted by length, so that step t runs over exactly the rows that are still alive. Compared with torch's layer
the backward pass holds one matrix product a step (the state's gradient); those of the weights and inputs, which torch
also does step by step, are gathered in large ones over a piece of steps that stays in the processor's cache.
Outputs and gradients are those of `torch.nn.RNN`, `GRU` and `LSTM` over packed sequences (tested); under bf16 autocast
matrix products run in bf16, states and sums in float32. torch's LSTM on a CPU is a fused kernel near the processor's
limit: it is called on slices of steps. `python -m benchmarks.speed.recurrent` measures all three.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmseqvae.rnn.kernels.cell_equations import Cell, Gru, Tanh
from mmseqvae.sequence import step_mask

CELLS: dict[str, type[Cell]] = {"RNN_TANH": Tanh, "GRU": Gru}
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
    def of(cls, lengths: Tensor, steps: int) -> Packing | Padded:
        """Of a batch on a CPU; on a GPU, where it would have to wait for the lengths, `Padded`."""
        if lengths.device.type != "cpu":
            return Padded(lengths, steps)
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


@dataclass(frozen=True)
class Padded:
    """A padded batch [B, T] by the same interface: every step is there, N = B T, also those beyond a length.

    Nothing here looks at the lengths, so that nothing waits for a GPU. What is spread out again is 0 beyond a length.
    """

    lengths: Tensor
    steps: int

    @property
    def rows(self) -> Tensor:
        """[N]: the row that each step is of."""
        return torch.arange(len(self.lengths), device=self.lengths.device).repeat_interleave(self.steps)

    @property
    def times(self) -> Tensor:
        """[N]: its number within the row, from 0."""
        return torch.arange(self.steps, device=self.lengths.device).repeat(len(self.lengths))

    def gather(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [N, ...]."""
        return x.flatten(0, 1)

    def spread(self, x: Tensor) -> Tensor:
        """[N, S, ...] -> [S, B, T, ...], 0 beyond each length."""
        x = rearrange(x, "(b t) s ... -> s b t ...", b=len(self.lengths), t=self.steps)
        valid = step_mask(self.lengths, self.steps)
        return torch.where(valid.reshape(*valid.shape, *[1] * (x.ndim - 3)), x, 0)


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
    return _Layer.apply(cell_of(rnn.mode, weights[1].dtype), counts, draws, low, keep, x, shifted, first, *weights)


def cell_of(mode: str, kind: torch.dtype) -> type[Cell]:
    """The steps of a cell: compiled ones for float32, which under autocast states and gates are too."""
    if kind != torch.float32:
        return CELLS[mode]
    from mmseqvae.rnn.kernels.numba_cells import FUSED  # numba takes a third of a second to import

    return FUSED[CELLS[mode]]


def _staircase(
    rnn: nn.RNNBase, x: Tensor, counts: list[int], draws: int, shift: Tensor | None, state: State | None
) -> Tensor:
    """Slices of steps, each over only the rows alive when it begins: torch's LSTM is already a fused kernel.

    Under autocast it runs in bf16 where the processor has it, else in float32: torch's kernel would fail.
    """
    low = torch.is_autocast_enabled("cpu") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
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
        with torch.autocast("cpu", enabled=low):
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
        ctx: Any, cell: type[Cell], counts: list[int], draws: int, low: torch.dtype | None, keep: bool, x: Tensor,
        shift: Tensor | None, first: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor,
    ) -> Tensor:  # fmt: skip
        hidden, width = w_hh.shape[1], len(w_hh)
        from_input, from_state = _lowered(w_ih, low).t(), _lowered(w_hh, low).t()
        bias, state_bias = cell.biases(b_ih, b_hh)
        first, added = first.contiguous(), bias[None] if shift is None else shift + bias
        mixed, outputs = x.new_empty(len(first), width), x.new_empty(draws * len(x), hidden)
        alive = [draws * count for count in counts]
        carried = {rows: mixed[:rows] for rows in alive}
        states = [first[: alive[0]] if alive else first, *outputs.split(alive)]
        for t, rows in enumerate(alive):
            states[t] = states[t][:rows]
        constant = cell.array(added), cell.array(state_bias), cell.array(mixed)
        of_first, of_outputs = cell.array(first), cell.array(outputs)
        kept: list[Tensor] = []  # a tensor a piece: small ones are taken from memory that is already mapped
        a, parts = 0, pieces(counts, draws)
        for step, last, start, end in parts:
            inputs = torch.mm(_lowered(x[start:end], low), from_input).to(x.dtype)
            gates = x.new_empty(draws * (end - start), width)
            more = x.new_empty(len(gates), cell.more * hidden)
            kept += [gates, more] if keep else []
            arrays, p = (cell.array(inputs), cell.array(gates), cell.array(more)), 0
            for t in range(step, last):
                rows = alive[t]
                if low is None:
                    torch.mm(states[t], from_state, out=carried[rows])
                else:
                    carried[rows].copy_(torch.mm(states[t].to(low), from_state))
                before, q = (of_outputs, a - alive[t - 1]) if t else (of_first, 0)
                cell.forward(arrays[0], draws, *constant, before, q, of_outputs, a, *arrays[1:], p, rows)
                a, p = a + rows, p + rows
        ctx.save_for_backward(x, first, w_ih, w_hh, outputs, *kept)
        ctx.cell, ctx.alive, ctx.parts, ctx.low = cell, alive, parts, low
        ctx.draws, ctx.shifted = draws, shift is not None
        return outputs

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cell, alive, draws, low = ctx.cell, ctx.alive, ctx.draws, ctx.low
        x, first, w_ih, w_hh, outputs, *kept = ctx.saved_tensors
        hidden, width = w_hh.shape[1], len(w_hh)
        to_input, to_state = _lowered(cell.rolled(w_ih), low), _lowered(w_hh, low)
        most = draws * max((end - start for *_, start, end in ctx.parts), default=0)
        buffer, history = x.new_empty(most, cell.width * hidden), x.new_empty(most, hidden)
        d_first = torch.zeros_like(first)  # gradient of the state after the step at hand; in the end, of the first
        carried = {rows: d_first[:rows] for rows in alive}
        d_x = torch.empty_like(x) if ctx.needs_input_grad[5] else None
        d_ih, d_hh = torch.zeros_like(w_ih), torch.zeros_like(w_hh)
        d_shift = x.new_zeros(len(first) if ctx.shifted else 0, width)
        array = cell.array
        of_outputs, of_first, of_gradient = array(outputs), array(first), array(gradient.contiguous())
        of_d, of_carried, of_history, of_shift = array(buffer), array(d_first), array(history), array(d_shift)
        total, a = x.new_zeros(cell.width * hidden), len(outputs)
        for index, (step, last, start, end) in reversed(list(enumerate(ctx.parts))):
            gates, more = map(array, kept[2 * index : 2 * index + 2])
            p = draws * (end - start)
            d, h = buffer[:p], history[:p]
            d_state = d[:, -width:]
            for t in reversed(range(step, last)):
                rows = alive[t]
                a, p = a - rows, p - rows
                before, q = (of_outputs, a - alive[t - 1]) if t else (of_first, 0)
                cell.backward(
                    of_d, gates, more, p, before, q, of_outputs, of_gradient, a, of_carried, of_history, of_shift, rows
                )
                if low is None:
                    carried[rows].addmm_(d_state[p : p + rows], w_hh)
                else:
                    carried[rows].add_(torch.mm(d_state[p : p + rows].to(low), to_state))
            d_low = _lowered(d, low)
            into = d_low[:, :width]
            if draws > 1:
                into = _lowered(d.view(-1, draws, d.shape[1])[..., :width].sum(1), low)
            if d_x is not None:
                torch.mm(into, to_input, out=d_x[start:end]) if low is None else d_x[start:end].copy_(into @ to_input)
            _add_product(d_ih, into, _lowered(x[start:end], low))
            _add_product(d_hh, d_low[:, -width:], _lowered(h, low))
            total += d.sum(0)
        d_ih, b_ih = cell.unrolled(d_ih), cell.unrolled(total[:width])
        shifted = cell.unrolled(d_shift.t()).t() if ctx.shifted else None
        return None, None, None, None, None, d_x, shifted, d_first, d_ih, d_hh, b_ih, total[-width:]


def _lowered(x: Tensor, low: torch.dtype | None) -> Tensor:
    return x if low is None else x.to(low)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left' right, summed in float32."""
    if left.dtype == total.dtype:
        total.addmm_(left.t(), right)
    else:
        total.add_(left.t() @ right)
