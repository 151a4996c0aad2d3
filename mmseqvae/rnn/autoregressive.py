"""A decoder's net stepped on its own past: what is the same at every step is computed once, before the first.

The latent's share of every step and the biases become one vector a row; tokens are looked up among embeddings that went
through the input weights already; a layer's step is then one product and one pass over memory (`cell_equations.py`,
compiled in `numba_cells.py`). `Steps` is the plain version, which tests compare with and LSTMs, GPUs and the kernel
"torch" take; with that, nothing here is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmseqvae.decoding import TokenSampling
from mmseqvae.distributions.gaussian import invert
from mmseqvae.distributions.likelihoods import FrameLikelihood, categorical_probabilities
from mmseqvae.rnn.conditioned_rnn import ConditionedRNN
from mmseqvae.rnn.kernels.packed_rnn import cell_of
from mmseqvae.rnn.kernels.plain import is_plain
from mmseqvae.sequence import full

ASK = 16  # steps after which a GPU is asked whether all rows have ended
SLACK = 1e-6  # of a quantile: a distribution that rounding left just below has passed it
AHEAD = 32  # blocks whose noise is drawn at once,
NUMBERS = 2**20  # unless these are more numbers than this
FEW = 2**10  # logits from which a token is drawn in one call; more go through torch's softmax
FEW_ROWS = 16  # up to which a compiled loop is faster than a library's matrix product

Fill = Callable[[Tensor, Tensor], object]  # what the last step gave, and where its share of the gates goes


def affine(weight: Tensor, rows: int, kernel: str = "auto") -> Callable[[Tensor, Tensor], Tensor]:
    """(x [N, K], constant [N or 1, M]) -> constant + x weight^T [N, M] for a weight [M, K] and N = `rows`."""
    if is_plain(kernel) or not _few(weight, rows):
        transposed = weight.t()
        return lambda x, constant: torch.addmm(constant, x, transposed)
    array, product = _array(weight), fused().product

    def run(x: Tensor, constant: Tensor) -> Tensor:
        out = x.new_empty(len(x), len(weight))
        product(array, _array(x), _array(constant), _array(out))
        return out

    return run


def _few(weight: Tensor, rows: int) -> bool:
    return rows <= FEW_ROWS and weight.dtype == torch.float32 and weight.device.type == "cpu" and not _low()


def _low() -> bool:
    return torch.is_autocast_enabled("cpu")


def _array(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()


def _into(weight: Tensor, rows: int) -> Fill:
    """(x [N, K], out [N, M]) -> None: out is x weight^T."""
    if not _few(weight, rows):
        transposed = weight.t()
        return lambda x, out: torch.mm(x, transposed, out=out)
    array, product, zero = _array(weight), fused().product, _array(weight.new_zeros(1, len(weight)))
    return lambda x, out: product(array, _array(x), zero, out.numpy())


class Steps:
    """The plain version: `net.step`, with what z [N, D] says computed once.

    added: [N, H], what z adds to every output. A call leaves it out: for the layer that reads the outputs it is a
    constant, like its bias. An output holds until the next call.
    """

    def __init__(self, net: ConditionedRNN, z: Tensor, embedding: nn.Embedding | None) -> None:
        self.embedding, self.step, self.state = embedding, net.rnn.step, net.begin(z)
        self.to_input, self.added = net.to_input(z), net.to_output(z)

    def __call__(self, previous: Tensor) -> Tensor:
        """The net's inputs [N, E], or tokens [N] where there is an embedding -> hidden [N, H], less `added`."""
        x = previous if self.embedding is None else self.embedding(previous)
        output, self.state = self.step(x + self.to_input, self.state)
        return output


class PreparedSteps:
    """The same on a CPU, for tanh and GRU. rows: how many rows all steps together may have."""

    def __init__(self, net: ConditionedRNN, z: Tensor, embedding: nn.Embedding | None, rows: int) -> None:
        layers, added = [cast(nn.RNNBase, rnn) for rnn in net.rnn.forwards], net.to_input(z)
        weight = layers[0].all_weights[0][0]
        first = _into(weight, len(z)) if embedding is None else _tokens(embedding.weight, weight, rows, len(z))
        self.projects = [first, *(_into(rnn.all_weights[0][0], len(z)) for rnn in layers[1:])]
        above = z.new_zeros(1, net.rnn.hidden)
        self.layers = [
            _Layer(rnn, state, above if layer else added)
            for layer, (rnn, (state,)) in enumerate(zip(layers, net.begin(z), strict=True))
        ]
        self.added = net.to_output(z)

    def __call__(self, previous: Tensor) -> Tensor:
        for project, layer in zip(self.projects, self.layers, strict=True):
            project(previous, layer.projected)
            previous = layer()
        return previous


class _Layer:
    """One layer's step from what stands in `projected`, W x [N, G H]: one product, then the cell."""

    def __init__(self, rnn: nn.RNNBase, state: Tensor, added: Tensor) -> None:
        w_ih, w_hh, b_ih, b_hh = rnn.all_weights[0]
        cell = cell_of(rnn.mode, w_hh.dtype)
        rows, hidden = state.shape
        bias, state_bias = cell.biases(b_ih, b_hh)
        self.multiply = _into(w_hh, rows)
        self.projected, self.mixed, gates = (state.new_empty(rows, len(w_hh)) for _ in range(3))
        self.before, self.after = state.contiguous(), torch.empty_like(state, memory_format=torch.contiguous_format)
        more = state.new_empty(rows, cell.more * hidden)
        array, self.forward, self.rows = cell.array, cell.forward, rows
        self.constant = array(F.linear(added, w_ih, bias)), array(state_bias), array(self.mixed)
        self.inputs, self.kept = array(self.projected), (array(gates), array(more))
        self.states = array(self.before), array(self.after)

    def __call__(self) -> Tensor:
        self.multiply(self.before, self.mixed)
        before, after = self.states
        self.forward(self.inputs, 1, *self.constant, before, 0, after, 0, *self.kept, 0, self.rows)
        self.before, self.after, self.states = self.after, self.before, (after, before)
        return self.before


def _tokens(table: Tensor, weight: Tensor, all_rows: int, rows: int) -> Fill:
    """W embedding(token), of all embeddings in the table at once where they are fewer than the rows of all steps."""
    if len(table) > all_rows:
        into = _into(weight, rows)
        return lambda token, out: into(table.index_select(0, token), out)
    folded = table @ weight.t()
    return lambda token, out: torch.index_select(folded, 0, token, out=out)


def steps(net: ConditionedRNN, z: Tensor, limit: int, embedding: nn.Embedding | None = None) -> Steps | PreparedSteps:
    """`Steps` of z [N, D], at most `limit` of them, prepared where that pays."""
    if net.rnn.plain or net.rnn.kind == "lstm" or z.device.type != "cpu" or _low():
        return Steps(net, z, embedding)
    return PreparedSteps(net, z, embedding, limit * len(z))


class Tokens:
    """Draws of tokens step by step, and where they end: at the limit at the latest, where the end is certain.

    tokens: [T, N], lengths: [N]. Uniform numbers are drawn for all steps before the first.
    """

    def __init__(
        self, like: Tensor, limit: int, end: int, how: TokenSampling, generator: torch.Generator | None = None,
        kernel: str = "auto",
    ) -> None:  # fmt: skip
        self.limit, self.end, self.how, self.fast = limit, end, how, like.device.type == "cpu" and not is_plain(kernel)
        self.tokens = torch.full((limit, len(like)), end, device=like.device)
        self.lengths = torch.full((len(like),), limit, device=like.device)
        shape = (limit if how.temperature else 0, len(like), 1)
        self.uniforms = torch.rand(shape, generator=generator, device=like.device, dtype=torch.float64)
        self.plain = bool(how.temperature) and how.top_k is None and how.top_p is None
        self.arrays = [x.numpy() for x in (self.tokens, self.uniforms[..., 0], self.lengths) if self.fast]

    def draw(self, logits: Tensor, t: int) -> bool:
        """Fill tokens[t] from logits [N, V]; whether all rows have ended (a GPU is asked now and then)."""
        if self.fast:
            return self._draw_fast(logits, t)
        self.tokens[t] = drawn_from(logits, self.how, self.uniforms[t] if self.how.temperature else None)
        self.note(t, 1)
        return _ask(t) and self.all_ended()

    def note(self, t: int, count: int) -> None:
        """Note the ends among tokens[t : t + count], in tensor operations."""
        ended = self.tokens[t : t + count] == self.end
        first = ended.int().argmax(0) + t + 1
        self.lengths = torch.where((self.lengths == self.limit) & ended.any(0), first, self.lengths)

    def all_ended(self) -> bool:
        """Before the limit, where the end is certain."""
        return bool((self.lengths < self.limit).all())

    def _draw_fast(self, logits: Tensor, t: int) -> bool:
        tokens, uniforms, lengths = self.arrays
        if not self.how.temperature:
            torch.argmax(logits, -1, out=self.tokens[t])
        elif self.plain and logits.numel() <= FEW:
            fused().pick_of_logits(full(logits).numpy(), 1 / self.how.temperature, uniforms[t], tokens[t])
        else:
            distribution = categorical_probabilities(logits, self.how.temperature, self.how.top_k, self.how.top_p)
            fused().pick(distribution.numpy(), uniforms[t], tokens[t])
        return fused().note_ends(tokens[t], self.end, t, self.limit, lengths) == 0


def drawn_from(logits: Tensor, how: TokenSampling, uniforms: Tensor | None) -> Tensor:
    """Tokens [N] of logits [N, V], greedy or by uniform numbers [N, 1], in tensor operations."""
    if not how.temperature or uniforms is None:
        return logits.argmax(-1)
    return invert(categorical_probabilities(logits, how.temperature, how.top_k, how.top_p), uniforms)


class Blocks:
    """Blocks of frames drawn step by step: what the net reads of them, the logits of their ends, the frames in the end.

    Where a draw is W h + w + deviation, the deviations are drawn ahead and are part of what is added to the product.
    added: [N, H], what the steps leave out of their outputs; count: blocks at most.
    """

    def __init__(
        self, likelihood: FrameLikelihood, from_block: nn.Linear, to_frames: nn.Linear, to_end: nn.Linear,
        added: Tensor, count: int, noise: float, generator: torch.Generator | None = None, kernel: str = "auto",
    ) -> None:  # fmt: skip
        self.likelihood, self.from_block, self.to_frames = likelihood, from_block, to_frames
        self.reduction, self.rows, self.noise, self.generator = to_end.out_features - 1, len(added), noise, generator
        self.kept: list[Tensor] = []
        self.ahead = max(1, min(AHEAD, count, NUMBERS // max(1, self.rows * from_block.in_features)))
        self.size = to_frames.out_features
        weight, bias = torch.cat([to_frames.weight, to_end.weight]), torch.cat([to_frames.bias, to_end.bias])
        self.bias, self.write = F.linear(added, weight, bias), affine(weight, self.rows, kernel)
        self.shift, self.to_inputs = self._shift(self._draw()), affine(from_block.weight, self.rows, kernel)

    def _draw(self) -> Tensor | None:
        """Deviations of the next blocks, [ahead, N, r C]."""
        if not self.likelihood.additive:
            return None
        shape = (self.ahead, self.rows, self.reduction, self.likelihood.channels)
        return self.likelihood.deviations(shape, self.to_frames.weight, self.noise, self.generator).flatten(2)

    def _shift(self, deviations: Tensor | None) -> list[Tensor]:
        """What is added to the output of each of the next steps."""
        if deviations is None:
            return self.ahead * [self.bias]
        return list(F.pad(deviations, (0, self.reduction + 1)).add_(self.bias))

    def start(self, block: Tensor) -> Tensor:
        """What the net reads first, from the block [r C] that stands before all others."""
        return self.from_block(block).expand(self.rows, -1)

    def step(self, hidden: Tensor, j: int) -> tuple[Tensor, Tensor]:
        """Step j: outputs [N, H] without `added` -> the net's next inputs [N, E], and [N, ... + r + 1], ends last."""
        if j and j % self.ahead == 0:
            self.shift = self._shift(self._draw())
        output = self.write(hidden, self.shift[j % self.ahead])
        block = output[:, : self.size]
        if self.shift[0] is self.bias:
            parameters = block.unflatten(1, (self.reduction, -1))
            block = self.likelihood.sample(parameters, self.noise, self.generator).flatten(1)
        self.kept.append(block)
        return self.to_inputs(block, self.from_block.bias[None]), output

    def frames(self) -> Tensor:
        """All that were drawn, [N, T, C]."""
        return rearrange(torch.stack(self.kept, 1), "n j (r c) -> n (j r) c", r=self.reduction)


class Ends:
    """Where free-running frames end: at the first frame where the distribution over lengths passes a quantile.

    One half for every row gives the medians; a uniform draw a row gives draws of the distribution, whatever the frames
    do to it. lengths: [N], 0 where a row goes on.
    """

    def __init__(
        self, like: Tensor, limit: int, draw: bool, generator: torch.Generator | None = None, kernel: str = "auto"
    ) -> None:
        self.limit, self.lengths = limit, torch.zeros(len(like), dtype=torch.long, device=like.device)
        self.fast = like.device.type == "cpu" and not is_plain(kernel)
        self.going = torch.ones(len(like), dtype=torch.float64, device=like.device)  # probability of having got here
        self.quantile = torch.full_like(self.going, 0.5 - SLACK)
        if draw:
            self.quantile.uniform_(generator=generator)
        self.arrays = [t.numpy() for t in (self.quantile, self.going, self.lengths) if self.fast]

    def block(self, output: Tensor, r: int, j: int) -> bool:
        """Read what block j decides, the last r + 1 columns of output [N, ...]; whether all rows have ended.

        A GPU is asked now and then only.
        """
        if self.fast:
            return fused().end_blocks(full(output).numpy(), r, j * r, self.limit, *self.arrays) == 0
        self.blocks(output[None, :, -r - 1 :], j)
        return _ask(j) and self.all_ended()

    def blocks(self, logits: Tensor, j: int) -> None:
        """Read what blocks j, j + 1, ... decide, logits [K, N, r + 1], in tensor operations."""
        count, r = len(logits), logits.shape[-1] - 1
        block = torch.arange(j, j + count, device=logits.device)[:, None]
        end = end_log_probs(logits.double(), block, self.limit).exp()
        here = self.going * torch.cat([torch.ones_like(end[:1, :, 0]), end[:-1, :, 0]]).cumprod(0)  # got to a block
        passed = 1 - here[..., None] + here[..., None] * end[..., 1:].cumsum(-1) >= self.quantile[:, None]
        passed = rearrange(passed, "k n r -> n (k r)")
        first = passed.int().argmax(1) + j * r + 1
        self.lengths = torch.where((self.lengths == 0) & passed.any(1), first, self.lengths)
        self.going = here[-1] * end[-1, :, 0]

    def all_ended(self) -> bool:
        return bool((self.lengths > 0).all())


@cache
def fused() -> ModuleType:
    import mmseqvae.rnn.kernels.numba_cells  # numba takes a third of a second to import

    return mmseqvae.rnn.kernels.numba_cells


def _ask(t: int) -> bool:
    """Whether to wait for a GPU after step t to hear if all rows have ended."""
    return t % ASK == ASK - 1


def end_log_probs(logits: Tensor, block: Tensor, limit: int) -> Tensor:
    """log-probabilities of a block's r + 1 outcomes: logits [..., r + 1], block numbers [...] -> nats [..., r + 1].

    Outcome 0 goes on, outcome k ends after the block's k-th frame; what would pass `limit` frames is impossible.
    """
    r = logits.shape[-1] - 1
    outcome = torch.arange(r + 1, device=logits.device)
    reached = block[..., None] * r + torch.where(outcome == 0, r + 1, outcome)
    return torch.where(reached > limit, -torch.inf, full(logits)).log_softmax(-1)
