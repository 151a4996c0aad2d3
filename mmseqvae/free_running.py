"""A decoder's net stepped on its own past: what is the same at every step is computed once, before the first.

The latent's share of every step and the biases become one vector a row; tokens are looked up among embeddings that
went through the input weights already; a layer's step is then one product and one pass over memory (`cells.py`,
compiled in `fused.py`). `Steps` is the plain version, which tests compare with and LSTMs and GPUs take.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmseqvae.conditioned import ConditionedRNN
from mmseqvae.gaussian import invert
from mmseqvae.likelihoods import categorical_law
from mmseqvae.packed import cell_of
from mmseqvae.sampling import TokenSampling
from mmseqvae.sequence import full

ASK = 16  # steps after which a GPU is asked whether all rows have ended
SLACK = 1e-6  # of a quantile: a law that rounding left just below has passed it
FEW = 8  # rows: a product of fewer costs about as much, for it only waits for the weights
Inputs = nn.Embedding | nn.Linear

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
            self.project = _tokens(inputs.weight, weight.t(), rows)
        else:
            self.project, added = _blocks(inputs.weight.t(), weight.t()), added + inputs.bias
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


def _tokens(table: Tensor, weight: Tensor, rows: int) -> Fill:
    """W embedding(token), of all embeddings in the table at once where they are fewer than the rows."""
    if len(table) > rows:
        return lambda token, out: torch.mm(table.index_select(0, token), weight, out=out)
    folded = table @ weight
    return lambda token, out: torch.index_select(folded, 0, token, out=out)


def _blocks(first: Tensor, weight: Tensor) -> Fill:
    """W A block, A the `first` weights."""
    return lambda block, out: torch.mm(torch.mm(block, first), weight, out=out)


def steps(net: ConditionedRNN, inputs: Inputs, z: Tensor, limit: int) -> Callable[[Tensor], Tensor]:
    """`Steps` of z [N, D], at most `limit` of them, prepared where that pays."""
    if net.rnn.kind == "lstm" or z.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return Steps(net, inputs, z)
    return PreparedSteps(net, inputs, z, limit * max(FEW, len(z)))


class Tokens:
    """Draws of tokens step by step, and where they end: at the limit at the latest, where the end is certain.

    tokens: [T, N], lengths: [N]. Uniform numbers are drawn for all steps before the first.
    """

    def __init__(
        self, like: Tensor, limit: int, end: int, how: TokenSampling, generator: torch.Generator | None = None
    ) -> None:
        self.limit, self.end, self.how, self.fast = limit, end, how, like.device.type == "cpu"
        self.tokens = torch.full((limit, len(like)), end, device=like.device)
        self.lengths = torch.full((len(like),), limit, device=like.device)
        shape = (limit if how.temperature else 0, len(like), 1)
        self.uniforms = torch.rand(shape, generator=generator, device=like.device, dtype=torch.float64)

    def draw(self, logits: Tensor, t: int) -> bool:
        """Fill tokens[t] from logits [N, V]; whether all rows have ended (a GPU is asked now and then)."""
        token = self.tokens[t]
        if not self.how.temperature:
            torch.argmax(logits, -1, out=token)
        else:
            law = categorical_law(logits, self.how.temperature, self.how.top_k, self.how.top_p)
            if self.fast:
                fused().pick(law.numpy(), self.uniforms[t].numpy()[:, 0], token.numpy())
            else:
                token.copy_(invert(law, self.uniforms[t]))
        if self.fast:
            return fused().note_ends(token.numpy(), self.end, t, self.limit, self.lengths.numpy()) == 0
        self.lengths[(self.lengths == self.limit) & (token == self.end)] = t + 1
        return _ask(t) and bool((self.lengths < self.limit).all())


class Ends:
    """Where free-running frames end: at the first frame where the law over lengths passes a quantile.

    One half for every row gives the medians; a uniform draw a row gives draws of the law, whatever the frames do to it.
    lengths: [N], 0 where a row goes on.
    """

    def __init__(self, like: Tensor, limit: int, draw: bool, generator: torch.Generator | None = None) -> None:
        self.limit, self.lengths = limit, torch.zeros(len(like), dtype=torch.long, device=like.device)
        self.fast = like.device.type == "cpu"
        self.going = torch.ones(len(like), dtype=torch.float64, device=like.device)  # probability of having got here
        self.quantile = torch.full_like(self.going, 0.5 - SLACK)
        if draw:
            self.quantile.uniform_(generator=generator)

    def block(self, logits: Tensor, j: int) -> bool:
        """Read what block j decides, logits [N, r + 1]; whether all rows have ended (a GPU is asked now and then)."""
        r = logits.shape[1] - 1
        if self.fast:
            arrays = (self.quantile.numpy(), self.going.numpy(), self.lengths.numpy())
            return fused().end_blocks(full(logits).numpy(), j * r, self.limit, *arrays) == 0
        end = end_law(logits.double(), torch.tensor(j, device=logits.device), self.limit).exp()
        passed = 1 - self.going[:, None] + self.going[:, None] * end[:, 1:].cumsum(-1) >= self.quantile[:, None]
        here = (self.lengths == 0) & passed.any(1)
        self.lengths = torch.where(here, j * r + passed.int().argmax(1) + 1, self.lengths)
        self.going = self.going * end[:, 0]
        return _ask(j) and bool((self.lengths > 0).all())


@cache
def fused() -> ModuleType:
    import mmseqvae.fused  # numba takes a third of a second to import

    return mmseqvae.fused


def _ask(t: int) -> bool:
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
