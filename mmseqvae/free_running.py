"""A decoder's net stepped on its own past: what is the same at every step is computed once, before the first.

The latent's share of every step and the biases become one vector a row; tokens are looked up among embeddings that
went through the input weights already; a layer's step is then one product and one pass over memory (`cells.py`,
compiled in `fused.py`). `Steps` is the plain version, which tests compare with and LSTMs and GPUs take.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmseqvae.conditioned import ConditionedRNN
from mmseqvae.packed import cell_of
from mmseqvae.sequence import full

ASK = 16  # steps after which a GPU is asked whether all rows have ended
SLACK = 1e-6  # of a quantile: a law that rounding left just below has passed it
FEW = 8  # rows: a product of fewer costs about as much, for it only waits for the weights
Inputs = nn.Embedding | nn.Linear | nn.Identity

Fill = Callable[[Tensor, Tensor], Tensor]  # what the last step gave, and where its share of the gates goes


class Steps:
    """The plain version: `inputs(previous)` and `net.step`, with what z [N, D] says computed once."""

    def __init__(self, net: ConditionedRNN, inputs: Inputs, z: Tensor) -> None:
        self.inputs, self.step, self.state = inputs, net.rnn.step, net.begin(z)
        self.added, self.to_output = net.to_input(z), net.to_output(z)

    def __call__(self, previous: Tensor) -> Tensor:
        """What the last step gave, tokens [N] or a block [N, C], -> hidden [N, H]."""
        output, self.state = self.step(self.inputs(previous) + self.added, self.state)
        return output + self.to_output


class PreparedSteps:
    """The same on a CPU, for tanh and GRU. rows: how many rows all steps together may have."""

    def __init__(self, net: ConditionedRNN, inputs: Inputs, z: Tensor, rows: int) -> None:
        layers, added = [cast(nn.RNNBase, rnn) for rnn in net.rnn.forwards], net.to_input(z)
        weight = layers[0].all_weights[0][0]
        if isinstance(inputs, nn.Embedding):
            self.project = _tokens(inputs.weight, weight, rows)
        elif isinstance(inputs, nn.Linear):
            self.project, added = _blocks(inputs.weight, weight), added + inputs.bias
        else:
            self.project = partial(_product, weight.t())
        above = z.new_zeros(1, net.rnn.hidden)
        self.layers = [
            _Layer(rnn, state, above if layer else added)
            for layer, (rnn, (state,)) in enumerate(zip(layers, net.begin(z), strict=True))
        ]
        self.to_output = net.to_output(z)

    def __call__(self, previous: Tensor) -> Tensor:
        first, *others = self.layers
        self.project(previous, first.projected)
        output = first()
        for layer in others:
            torch.mm(output, layer.from_input, out=layer.projected)
            output = layer()
        return output + self.to_output


class _Layer:
    """One layer's step from what stands in `projected`, W x [N, G H]: one product, then the cell."""

    def __init__(self, rnn: nn.RNNBase, state: Tensor, added: Tensor) -> None:
        w_ih, w_hh, b_ih, b_hh = rnn.all_weights[0]
        cell = cell_of(rnn.mode, w_hh.dtype)
        rows, hidden = state.shape
        bias, state_bias = cell.biases(b_ih, b_hh)
        self.from_input, self.from_state = w_ih.t(), w_hh.t()
        self.projected, self.mixed, gates = (state.new_empty(rows, len(w_hh)) for _ in range(3))
        self.before, self.after = state.contiguous(), torch.empty_like(state, memory_format=torch.contiguous_format)
        more = state.new_empty(rows, cell.more * hidden)
        array, self.forward, self.rows = cell.array, cell.forward, rows
        self.constant = array(F.linear(added, w_ih, bias)), array(state_bias), array(self.mixed)
        self.inputs, self.kept = array(self.projected), (array(gates), array(more))
        self.states = array(self.before), array(self.after)

    def __call__(self) -> Tensor:
        torch.mm(self.before, self.from_state, out=self.mixed)
        before, after = self.states
        self.forward(self.inputs, 1, *self.constant, before, 0, after, 0, *self.kept, 0, self.rows)
        self.before, self.after, self.states = self.after, self.before, (after, before)
        return self.before


def _product(weight: Tensor, x: Tensor, out: Tensor) -> Tensor:
    return torch.mm(x, weight, out=out)


def _tokens(table: Tensor, weight: Tensor, rows: int) -> Fill:
    """W embedding(token), of all embeddings in the table at once where they are fewer than the rows."""
    if len(table) > rows:
        return lambda token, out: torch.mm(table.index_select(0, token), weight.t(), out=out)
    folded = table @ weight.t()
    return lambda token, out: torch.index_select(folded, 0, token, out=out)


def _blocks(first: Tensor, weight: Tensor) -> Fill:
    """W A block, A the `first` weights, as one product or two, whichever is less work."""
    if first.shape[1] * len(weight) <= first.numel() + weight.numel():
        return partial(_product, (weight @ first).t())
    return lambda block, out: torch.mm(torch.mm(block, first.t()), weight.t(), out=out)


def steps(net: ConditionedRNN, inputs: Inputs, z: Tensor, limit: int) -> Callable[[Tensor], Tensor]:
    """`Steps` of z [N, D], at most `limit` of them, prepared where that pays."""
    if net.rnn.kind == "lstm" or z.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return Steps(net, inputs, z)
    return PreparedSteps(net, inputs, z, limit * max(FEW, len(z)))


class Ends:
    """Where free-running frames end: at the first frame where the law over lengths passes a quantile.

    One half for every row gives the medians; a uniform draw a row gives draws of the law, whatever the frames do to it.
    """

    def __init__(self, rows: int, limit: int, like: Tensor, quantile: Tensor | None) -> None:
        self.limit, self.lengths = limit, torch.zeros(rows, dtype=torch.long, device=like.device)
        self.going = torch.ones(rows, dtype=torch.float64, device=like.device)  # probability of having got here
        self.quantile = (torch.full_like(self.going, 0.5) if quantile is None else quantile) - SLACK

    def block(self, logits: Tensor, j: int) -> bool:
        """Read what block j decides, logits [N, r + 1]; whether all rows have ended (on a GPU asked now and then)."""
        r = logits.shape[1] - 1
        if logits.device.type == "cpu":
            from mmseqvae.fused import end  # numba takes a third of a second to import

            arrays = (self.quantile.numpy(), self.going.numpy(), self.lengths.numpy())
            return end(full(logits).numpy(), j * r, self.limit, *arrays) == 0
        self.plain(logits, j)
        return ask(j) and bool((self.lengths > 0).all())

    def plain(self, logits: Tensor, j: int) -> None:
        r = logits.shape[1] - 1
        end = end_law(logits, torch.tensor(j, device=logits.device), self.limit).double().exp()
        passed = 1 - self.going[:, None] + self.going[:, None] * end[:, 1:].cumsum(-1) >= self.quantile[:, None]
        here = (self.lengths == 0) & passed.any(1)
        self.lengths = torch.where(here, j * r + passed.int().argmax(1) + 1, self.lengths)
        self.going = self.going * end[:, 0]


def ask(t: int) -> bool:
    """Whether to wait for a GPU after step t to hear if all rows have ended."""
    return t % ASK == ASK - 1


def end_law(logits: Tensor, block: Tensor, limit: int) -> Tensor:
    """log-probabilities of a block's r + 1 outcomes: logits [..., r + 1], block numbers [...] -> nats [..., r + 1].

    Outcome 0 goes on, outcome k ends after the block's k-th frame; what would pass `limit` frames is impossible.
    """
    r = logits.shape[-1] - 1
    outcome = torch.arange(r + 1, device=logits.device)
    reached = block[..., None] * r + torch.where(outcome == 0, r + 1, outcome)
    return torch.where(reached > limit, -torch.inf, full(logits)).log_softmax(-1)
