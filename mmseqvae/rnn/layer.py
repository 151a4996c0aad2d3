"""Tanh RNN, GRU and LSTM over variable lengths: one call per layer, and a single-step form for sampling.

On a CPU a layer runs over packed rows with the hand-written gradient of `packed_rnn.py`, on a GPU, and wherever the
kernel is "torch", over the padded batch in one call of torch's. Both give the outputs and gradients of torch's modules
over `pack_padded_sequence` (tested).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from mmseqvae.rnn.kernels import packed_rnn
from mmseqvae.rnn.kernels.packed_rnn import Packing, Padded, State
from mmseqvae.rnn.kernels.plain import Layer, check_kernel, is_plain, reverse
from mmseqvae.sequence import step_mask

CELLS: dict[str, Callable[[int, int], nn.RNNBase]] = {
    "tanh": nn.RNN,
    "gru": nn.GRU,
    "lstm": nn.LSTM,
}  # as torch has them
Part = TypeVar("Part", bound=nn.Module)


class Recurrent(nn.Module):
    """A stack of recurrent layers over padded batches with lengths.

    inputs, hidden: channels in and, per direction, out. kind: "tanh", "gru" or "lstm". dropout: between layers, in
    training. Recurrent weights start orthogonal (Saxe et al. 2014), input weights Glorot-uniform, biases 0, the LSTM's
    forget bias 1 (Jozefowicz et al. 2015). kernel: "auto" is the fastest that there is; "torch" runs in torch's own
    operations over the padded batch, as every kernel does while torch.export, torch.compile or torch.jit.trace record;
    `set_kernel` changes it afterwards. Raises ValueError for an unknown kind or kernel, or sizes below 1.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        kind: str = "gru",
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        if kind not in CELLS:
            raise ValueError(f"kind must be one of {', '.join(CELLS)}, got {kind!r}")
        if min(inputs, hidden, layers) < 1:
            raise ValueError(f"inputs, hidden and layers must be at least 1, got {inputs}, {hidden}, {layers}")
        self.kind, self.hidden, self.layers, self.bidirectional = kind, hidden, layers, bidirectional
        self.kernel = check_kernel(kernel)
        self.channels = hidden * (2 if bidirectional else 1)
        sizes = [inputs] + [self.channels] * (layers - 1)
        self.forwards = nn.ModuleList(Layer(kind, size, hidden) for size in sizes)
        self.backwards = nn.ModuleList(Layer(kind, size, hidden) for size in sizes if bidirectional)
        self.dropout = nn.Dropout(dropout)
        for rnn in [*_each(self.forwards), *_each(self.backwards)]:
            _initialise(rnn, kind)

    @property
    def plain(self) -> bool:
        """Whether torch's own operations run."""
        return is_plain(self.kernel)

    def packing(self, lengths: Tensor, steps: int) -> Packing | Padded:
        """How the layers run over a batch of `lengths` [B], padded to `steps`."""
        return Padded(lengths, steps) if self.plain else Packing.of(lengths, steps)

    def forward(self, x: Tensor, lengths: Tensor, state: list[State] | None = None) -> Tensor:
        """x [B, T, C], lengths [B] -> [B, T, H or 2H], zero beyond each length.

        state: the state before the first step, one per layer, for a stack of one direction only. Values beyond a
        length are run over but reach nothing; they must be finite (`Sequence.filled`).
        """
        if state is not None and self.bidirectional:
            raise ValueError("an initial state is defined for one direction only")
        packing = self.packing(lengths, x.shape[1])
        if isinstance(packing, Padded):
            return self._padded(x, lengths, state)
        lifted = None if state is None else [tuple(s[None] for s in layer) for layer in state]
        return packing.spread(self.packed(packing.gather(x), packing, lifted))[0]

    def packed(
        self, x: Tensor, packing: Packing | Padded, state: list[State] | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """`forward` over packed steps, for S draws that read the same x: [N, C] -> [N, S, H or 2H].

        shift: [S, B, C], added to every step's x; state: [S, B, H]. Both are for a stack of one direction; without
        them S is 1.
        """
        if self.bidirectional and (state is not None or shift is not None):
            raise ValueError("an initial state and a shift are defined for one direction only")
        if isinstance(packing, Padded):
            return self._packed_by_padding(x, packing, state, shift)
        draws = 1 if shift is None else len(shift)
        outputs, behind = self._layers(x, packing, state, shift)
        if behind is not None:
            outputs = torch.cat([outputs, behind.index_select(0, packing.turned())], 1)
        return outputs.unflatten(0, (-1, draws))

    def final(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`last` of `forward`, without the outputs between: x [B, T, C] -> [B, H or 2H]."""
        packing = self.packing(lengths, x.shape[1])
        if isinstance(packing, Padded):
            return self.last(self._padded(x, lengths, None), lengths)
        ends = [
            part.index_select(0, packing.ends)
            for part in self._layers(packing.gather(x), packing, None, None)
            if part is not None
        ]
        rows = packing.order[: len(packing.ends)]
        return ends[0].new_zeros(len(x), self.channels).index_copy(0, rows, torch.cat(ends, 1))

    def _layers(
        self, h: Tensor, packing: Packing, state: list[State] | None, shift: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Packed [N, C] -> outputs [N S, H] of the last layer, and those of its backward direction from each end on."""
        draws = 1 if shift is None else len(shift)
        backwards, counts = _each(self.backwards), packing.counts
        turned = packing.turned() if self.bidirectional else packing.places
        ahead, behind = h, None
        for layer, rnn in enumerate(_each(self.forwards)):
            first = None if state is None else tuple(_by_length(s, packing) for s in state[layer])
            if layer:
                h = self.dropout(ahead if behind is None else torch.cat([ahead, behind.index_select(0, turned)], 1))
                ahead = packed_rnn.run(rnn, h, [draws * count for count in counts], state=first)
            else:
                added = None if shift is None else _by_length(shift, packing)
                ahead = packed_rnn.run(rnn, h, counts, draws, added, first)
            if self.bidirectional:
                behind = packed_rnn.run(backwards[layer], h.index_select(0, turned), counts)
        return ahead, behind

    def _packed_by_padding(self, x: Tensor, packing: Padded, state: list[State] | None, shift: Tensor | None) -> Tensor:
        """`packed` by way of `_padded`: every draw's rows beside one another."""
        padded = x.unflatten(0, (len(packing.lengths), packing.steps))[None]
        if shift is not None:
            padded = padded + shift[:, :, None]
        flat = None if state is None else [tuple(s.flatten(0, 1) for s in layer) for layer in state]
        outputs = self._padded(padded.flatten(0, 1), packing.lengths.repeat(len(padded)), flat)
        return rearrange(outputs, "(s b) t h -> (b t) s h", s=len(padded))

    def _padded(self, x: Tensor, lengths: Tensor, state: list[State] | None) -> Tensor:
        """torch's own layers over the padded batch: the plain version of `_layers`."""
        h = rearrange(x, "b t c -> t b c")
        backwards = _each(self.backwards)
        for layer, rnn in enumerate(_each(self.forwards)):
            h = self.dropout(h) if layer else h
            ahead = rnn.padded(h, state[layer] if state else None)
            if self.bidirectional:
                behind = backwards[layer].padded(reverse(h, lengths), None)
                ahead = torch.cat([ahead, reverse(behind, lengths)], -1)
            h = ahead
        h = rearrange(h, "t b c -> b t c")
        return torch.where(step_mask(lengths, h.shape[1])[..., None], h, 0)

    def last(self, outputs: Tensor, lengths: Tensor) -> Tensor:
        """Where each direction ends, [B, T, H or 2H] -> [B, H or 2H]: forward at length - 1, backward at 0.

        Zero for a length of 0.
        """
        if outputs.shape[1] == 0:
            return outputs.new_zeros(outputs.shape[0], self.channels)
        rows = torch.arange(outputs.shape[0], device=outputs.device)
        end = outputs[rows, (lengths - 1).clamp(min=0)]
        return torch.cat([end[:, : self.hidden], outputs[:, 0, self.hidden :]], -1)

    def step(self, x: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """One step of a one-directional stack: x [B, C], state per layer -> output [B, H], the new state."""
        after: list[State] = []
        for rnn, before in zip(_each(self.forwards), state, strict=True):
            after.append(rnn.step(x, before))
            x = after[-1][0]
        return x, after


def set_kernel(module: Part, kernel: str) -> Part:
    """Choose what every recurrent layer of a module runs on, and return the module.

    Args:
        module: an encoder, a decoder, a whole model, anything that holds a `Recurrent`.
        kernel: "auto" or "torch", see `Recurrent`. Free-running draws of decoders follow it.

    Returns:
        The same module.

    Raises:
        ValueError: for an unknown kernel, or where the module holds no `Recurrent`.
    """
    check_kernel(kernel)
    found = [part for part in module.modules() if isinstance(part, Recurrent)]
    if not found:
        raise ValueError(f"{type(module).__name__} holds no recurrent layer whose kernel could be {kernel!r}")
    for part in found:
        part.kernel = kernel
    return module


def _by_length(x: Tensor, packing: Packing) -> Tensor:
    """[S, B, C] -> [B S, C], longest row first."""
    return rearrange(x.index_select(1, packing.order), "s b c -> (b s) c")


def _each(layers: nn.ModuleList) -> list[Layer]:
    return [cast(Layer, rnn) for rnn in layers]


def _initialise(rnn: nn.RNNBase, kind: str) -> None:
    for name, parameter in rnn.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
        else:
            for gate in parameter.data.split(rnn.hidden_size):
                (nn.init.orthogonal_ if name.startswith("weight_hh") else nn.init.xavier_uniform_)(gate)
    if kind == "lstm":
        rnn.all_weights[0][2].data[rnn.hidden_size : 2 * rnn.hidden_size] = 1  # gates stand in the order i, f, g, o
