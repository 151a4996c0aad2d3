"""Free running on a GPU: `CHUNK` steps are captured as a graph once, and launched as one from then on.

A step of a small decoder is a dozen kernels that take less time than their launches. Graphs are kept for each decoder's
net, number of rows (rounded up to a power of two) and way of drawing, and captured anew where weights have moved. The
loops in `decoders.py` are the plain version, which tests compare with. A graph has buffers of its own: two threads must
not draw from one decoder at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmseqvae.distributions.likelihoods import FrameLikelihood
from mmseqvae.rnn.autoregressive import ASK, Ends, Tokens, drawn_from
from mmseqvae.rnn.conditioned_rnn import ConditionedRNN

CHUNK = ASK  # steps of a graph, after which a GPU is asked whether all rows have ended
KEPT = 8  # graphs of a net, those used last

Body = Callable[..., tuple[Tensor, ...]]


class Graph:
    """A function of tensors on a GPU as one launch. What it returns holds until the next call.

    Warmed up before it is captured, so that libraries have chosen their kernels. Weights are read where they lie.
    """

    def __init__(self, body: Body, *inputs: Tensor) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self.inputs = [torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x) for x in inputs]
            here, beside = torch.cuda.current_stream(), torch.cuda.Stream()
            beside.wait_stream(here)
            with torch.cuda.stream(beside):
                for _ in range(2):
                    body(*self.inputs)
            here.wait_stream(beside)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.outputs = body(*self.inputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for buffer, x in zip(self.inputs, inputs, strict=True):
            buffer.copy_(x)
        self.graph.replay()
        return self.outputs


_GRAPHS: WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Graph]] = WeakKeyDictionary()


def graph_of(modules: tuple[nn.Module, ...], key: Hashable, body: Body, *inputs: Tensor) -> Graph:
    """The graph that was captured for these modules, key and shapes, or a new one; kept as long as the first module."""
    kept = _GRAPHS.setdefault(modules[0], OrderedDict())
    where = tuple(parameter.data_ptr() for module in modules for parameter in module.parameters())
    key = key, where, tuple((x.shape, x.dtype, x.device) for x in inputs)
    if key not in kept:
        kept[key] = Graph(body, *inputs)
    kept.move_to_end(key)
    while len(kept) > KEPT:
        kept.popitem(last=False)
    return kept[key]


def fits(z: Tensor) -> bool:
    """Whether a free run from latents z [N, D] can be captured."""
    return z.device.type == "cuda" and len(z) > 0 and not torch.is_autocast_enabled("cuda")


def tokens(
    net: ConditionedRNN, embedding: nn.Embedding, to_logits: nn.Linear, z: Tensor, drawn: Tokens,
    start: int, never_first: list[int],
) -> None:  # fmt: skip
    """Fill `drawn` from latents z [N, D]. start: the token before the first, which is none of `never_first`."""
    how, rows, z = drawn.how, len(z), _padded(z)
    constant, state = (net.to_input(z), net.to_output(z)), _flat(net, z)

    def body(
        to_input: Tensor, added: Tensor, token: Tensor, barred: Tensor, uniforms: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        found, states = [], _layers(net, state)
        for t, uniform in enumerate(uniforms):
            output, states = net.rnn.step(embedding(token) + to_input, states)
            logits = to_logits(output + added)
            logits = logits if t else logits + barred
            token = drawn_from(logits, how, uniform)
            found.append(token)
        return torch.stack(found), *(part for layer in states for part in layer)

    token = torch.full((len(z),), start, device=z.device)
    barred = z.new_zeros(to_logits.out_features).index_fill(0, token.new_tensor(never_first), -torch.inf)
    for t in range(0, drawn.limit - 1, CHUNK):
        uniforms = drawn.uniforms[t : t + CHUNK]
        uniforms = F.pad(uniforms, (0, 0, 0, len(z) - rows, 0, CHUNK - len(uniforms)))
        inputs = *constant, token, barred, uniforms, *state
        chunk, *state = graph_of((net, embedding, to_logits), how, body, *inputs)(*inputs)
        token, barred, count = chunk[-1], torch.zeros_like(barred), min(CHUNK, drawn.limit - 1 - t)
        drawn.tokens[t : t + count] = chunk[:count, :rows]
        drawn.note(t, count)
        if drawn.all_ended():
            break


def frames(
    net: ConditionedRNN, from_block: nn.Linear, to_frames: nn.Linear, to_end: nn.Linear, likelihood: FrameLikelihood,
    z: Tensor, start: Tensor, count: int, noise: float, ends: Ends, generator: torch.Generator | None,
) -> Tensor:  # fmt: skip
    """At most `count` blocks from latents z [N, D], with `ends` noted -> frames [N, T, C]; likelihood: `additive`.

    start: the block [r C] that stands before all others.
    """
    rows, r, z = len(z), to_end.out_features - 1, _padded(z)
    constant, state = (net.to_input(z), net.to_output(z)), _flat(net, z)

    def body(to_input: Tensor, added: Tensor, block: Tensor, deviations: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        blocks, logits, states = [], [], _layers(net, state)
        for deviation in deviations:
            output, states = net.rnn.step(from_block(block) + to_input, states)
            block = to_frames(output + added) + deviation
            blocks.append(block)
            logits.append(to_end(output + added))
        return torch.stack(blocks), torch.stack(logits), *(part for layer in states for part in layer)

    block, found = start.expand(len(z), -1), []
    for j in range(0, count, CHUNK):
        shape = (CHUNK, rows, r, likelihood.channels)
        deviations = likelihood.deviations(shape, start, noise, generator)
        inputs = *constant, block, F.pad(deviations.flatten(2), (0, 0, 0, len(z) - rows)), *state
        blocks, logits, *state = graph_of((net, from_block, to_frames, to_end), "frames", body, *inputs)(*inputs)
        found.append(blocks[: count - j, :rows].clone())
        ends.blocks(logits[: count - j, :rows], j)
        block = blocks[-1]
        if ends.all_ended():
            break
    return torch.cat(found).unflatten(2, (r, -1)).permute(1, 0, 2, 3).flatten(1, 2)


def _padded(z: Tensor) -> Tensor:
    """Rows up to the next power of two, so that few graphs serve all batches."""
    return F.pad(z, (0, 0, 0, (1 << (len(z) - 1).bit_length()) - len(z)))


def _flat(net: ConditionedRNN, z: Tensor) -> list[Tensor]:
    return [part for layer in net.begin(z) for part in layer]


def _layers(net: ConditionedRNN, state: tuple[Tensor, ...]) -> list[Any]:
    return [state[i : i + net.states] for i in range(0, len(state), net.states)]
