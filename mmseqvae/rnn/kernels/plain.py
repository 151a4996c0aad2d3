"""The plain path: a layer over a padded batch in torch's own operations, for GPUs, and to export, compile and trace."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._higher_order_ops import scan
from torch.utils import _pytree as pytree

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


def run(x: Tensor, state: list[Tensor], weights: list[Tensor], mode: str, training: bool) -> tuple[Tensor, ...]:
    """torch's kernel: x [T, B, C], state, each [1, B, H] -> outputs [T, B, H], and the last state."""
    first = tuple(state) if mode == "LSTM" else state[0]
    return LAYERS[mode](x, first, weights, True, 1, 0.0, training, False, False)


@torch.library.custom_op("mmseqvae::layer", mutates_args=())
def compiled(x: Tensor, state: list[Tensor], weights: list[Tensor], mode: str) -> Tensor:
    """The outputs of `run` as one operation of torch.compile, which would otherwise write out all steps of a length."""
    return run(x, state, weights, mode, False)[0].contiguous()


@torch.library.custom_op("mmseqvae::layer_backward", mutates_args=())
def compiled_backward(
    gradient: Tensor, x: Tensor, state: list[Tensor], weights: list[Tensor], mode: str
) -> list[Tensor]:
    """Gradients of x, state and weights, from running forward once more."""
    with _without_onednn():  # whose LSTM has no gradient in torch.func
        pull = torch.func.vjp(lambda x, state, weights: run(x, state, weights, mode, True)[0], x, state, weights)[1]
        leaves = pytree.tree_leaves(pull(gradient))  # of any layout, and some may share their memory
    return [leaf.clone(memory_format=torch.contiguous_format) for leaf in leaves]


@contextmanager
def _without_onednn() -> Iterator[None]:
    before, *_ = torch.backends.mkldnn.set_flags(False, None, None, None)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(before, None, None, None)


@compiled.register_fake
def _(x: Tensor, state: list[Tensor], weights: list[Tensor], mode: str) -> Tensor:
    return x.new_empty(x.shape[0], *state[0].shape[1:])


@compiled_backward.register_fake
def _(gradient: Tensor, x: Tensor, state: list[Tensor], weights: list[Tensor], mode: str) -> list[Tensor]:
    return [part.new_empty(part.shape) for part in (x, *state, *weights)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, state, weights, ctx.mode = inputs
    ctx.save_for_backward(x, *state, *weights)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, *others = ctx.saved_tensors
    state, weights = others[:-4], others[-4:]
    of_x, *of_others = compiled_backward(gradient, x, state, weights, ctx.mode)
    return of_x, of_others[:-4], of_others[-4:], None


compiled.register_autograd(_backward, setup_context=_setup)


class Layer(nn.RNNBase):
    """One layer of one direction, with the parameters of `nn.RNN`, `nn.GRU` or `nn.LSTM`, by name and by seed.

    It is none of these modules, since torch.compile refuses them.
    """

    def __init__(self, kind: str, inputs: int, hidden: int) -> None:
        super().__init__(MODES[kind], inputs, hidden)

    @property
    def weights(self) -> list[Tensor]:
        """Of inputs [G H, C] and of the state [G H, H], and the biases of both [G H], G gates."""
        return list(self.all_weights[0])

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """What torch's module returns: x [T, B, C] and its state [1, B, H] -> outputs [T, B, H] and the next state."""
        state = self._zeros(x) if hx is None else list(hx) if self.mode == "LSTM" else [hx]
        output, *after = run(x, state, self.weights, self.mode, self.training)
        return output, tuple(after) if self.mode == "LSTM" else after[0]

    def padded(self, x: Tensor, state: State | None) -> Tensor:
        """x [T, B, C], state before the first step, each [B, H] -> outputs [T, B, H]."""
        if x.shape[0] == 0:
            return x.new_zeros(0, x.shape[1], self.hidden_size)
        first = self._zeros(x) if state is None else [s[None].contiguous() for s in state]
        if torch.compiler.is_exporting():
            return self._scan(x, first)
        if torch.compiler.is_compiling():
            return compiled(x, first, self.weights, self.mode)
        return run(x, first, self.weights, self.mode, self.training)[0]

    def step(self, x: Tensor, state: State) -> State:
        """x [B, C], state, each [B, H] -> the next state, of which the first is the output."""
        if self.mode == "LSTM":
            return torch.lstm_cell(x, state, *self.weights)
        return (CELLS[self.mode](x, state[0], *self.weights),)

    def _zeros(self, x: Tensor) -> list[Tensor]:
        return [x.new_zeros(1, x.shape[1], self.hidden_size)] * (2 if self.mode == "LSTM" else 1)

    def _scan(self, x: Tensor, state: list[Tensor]) -> Tensor:
        """`run` as a loop in torch's own operations, of as many steps as there are when it runs.

        The gradient of torch's scan is wrong (2.12) where no gradient reaches its first state, so that one of 0 goes
        there from all that may have one; and no two outputs of a step may be the same memory.
        """
        nothing = 0 * sum((weight.flatten()[0] for weight in self.weights), x[0, :, :1])

        def step(before: State, inputs: Tensor) -> tuple[State, Tensor]:
            after = self.step(inputs, before)
            return tuple(s.clone() for s in after), after[0].clone()

        return cast(Tensor, scan(step, tuple(s[0] + nothing for s in state), x)[1])


def reverse(x: Tensor, lengths: Tensor) -> Tensor:
    """Turn round the first `length` steps of each row of [T, B, C]; the padding stays where it is."""
    t = torch.arange(x.shape[0], device=x.device)[:, None]
    index = torch.where(step_mask(lengths, x.shape[0]).T, lengths - 1 - t, t)
    return x.gather(0, index[..., None].expand_as(x))


def is_plain(kernel: str) -> bool:
    """Whether `kernel` is torch's, as any is while it is recorded."""
    return kernel == "torch" or recorded()
