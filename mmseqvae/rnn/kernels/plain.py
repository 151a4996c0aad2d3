"""The plain path: a layer over a padded batch in torch's own operations, for GPUs, and to export, compile and trace."""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._higher_order_ops import scan

from mmseqvae.rnn.kernels.packed_rnn import State
from mmseqvae.sequence import recorded, step_mask

# torch 2.12 leaves it at DEBUG, and prints the graphs of gradients; now it follows TORCH_LOGS, as all others do
logging.getLogger("torch._higher_order_ops.partitioner").setLevel(logging.NOTSET)

KERNELS = ("auto", "torch")
MODES = {"tanh": "RNN_TANH", "gru": "GRU", "lstm": "LSTM"}
LAYERS: dict[str, Any] = {"RNN_TANH": torch.rnn_tanh, "GRU": torch.gru, "LSTM": torch.lstm}
CELLS: dict[str, Any] = {"RNN_TANH": torch.rnn_tanh_cell, "GRU": torch.gru_cell}


def check_kernel(kernel: str) -> str:
    """Return `kernel`, or raise ValueError where there is none of that name."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    return kernel


class Layer(nn.RNNBase):
    """One layer of one direction, with the parameters of `nn.RNN`, `nn.GRU` or `nn.LSTM`, by name and by seed.

    It is none of these modules, since torch.compile refuses them.
    """

    def __init__(self, kind: str, inputs: int, hidden: int) -> None:
        super().__init__(MODES[kind], inputs, hidden)

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """What torch's module returns: x [T, B, C] and its state [1, B, H] -> outputs [T, B, H] and the next state."""
        (weights,) = self.all_weights
        if hx is None:
            zeros = x.new_zeros(1, x.shape[1], self.hidden_size)
            hx = (zeros, zeros) if self.mode == "LSTM" else zeros
        output, *after = LAYERS[self.mode](x, hx, weights, True, 1, 0.0, self.training, False, False)
        return output, tuple(after) if self.mode == "LSTM" else after[0]

    def padded(self, x: Tensor, state: State | None) -> Tensor:
        """x [T, B, C], state before the first step, each [B, H] -> outputs [T, B, H]."""
        if x.shape[0] == 0:
            return x.new_zeros(0, x.shape[1], self.hidden_size)
        if torch.compiler.is_compiling():
            return self._scan(x, state)
        if state is None:
            return self(x)[0]
        lifted = tuple(s[None].contiguous() for s in state)
        return self(x, lifted if self.mode == "LSTM" else lifted[0])[0]

    def step(self, x: Tensor, state: State) -> State:
        """x [B, C], state, each [B, H] -> the next state, of which the first is the output."""
        (weights,) = self.all_weights
        if self.mode == "LSTM":
            return torch.lstm_cell(x, state, *weights)
        return (CELLS[self.mode](x, state[0], *weights),)

    def _scan(self, x: Tensor, state: State | None) -> Tensor:
        """`padded` as a loop that is recorded as a loop: torch would write a call of a layer out, step by step.

        The gradient of torch's scan is wrong (2.12) where no gradient reaches its first state, so that one of 0 goes
        there from all that may have one; and no two outputs of a step may be the same memory.
        """
        nothing = 0 * sum((weight.flatten()[0] for weight in self.all_weights[0]), x[0, :, :1])
        zeros = x.new_zeros(x.shape[1], self.hidden_size)
        first = state or (zeros,) * (2 if self.mode == "LSTM" else 1)

        def step(before: State, inputs: Tensor) -> tuple[State, Tensor]:
            after = self.step(inputs, before)
            return tuple(s.clone() for s in after), after[0].clone()

        return cast(Tensor, scan(step, tuple(s + nothing for s in first), x)[1])


def reverse(x: Tensor, lengths: Tensor) -> Tensor:
    """Turn round the first `length` steps of each row of [T, B, C]; the padding stays where it is."""
    t = torch.arange(x.shape[0], device=x.device)[:, None]
    index = torch.where(step_mask(lengths, x.shape[0]).T, lengths - 1 - t, t)
    return x.gather(0, index[..., None].expand_as(x))


def is_plain(kernel: str) -> bool:
    """Whether `kernel` is torch's, as any is while it is recorded."""
    return kernel == "torch" or recorded()
