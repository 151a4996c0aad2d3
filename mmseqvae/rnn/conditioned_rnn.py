"""What both decoders share: a recurrent net that sees the latent at every step, over packed steps and step by step."""

from __future__ import annotations

import math

from einops import rearrange
from torch import Tensor, nn

from mmseqvae.rnn.kernels.packed_rnn import Packing, Padded, State
from mmseqvae.rnn.layer import Recurrent
from mmseqvae.sequence import Sequence


class ConditionedRNN(nn.Module):
    """A recurrent net whose every step sees the latent, as a layer (`forward`) and step by step (`begin`, `step`)."""

    def __init__(
        self, latent: int, inputs: int, hidden: int, kind: str, layers: int, dropout: float, kernel: str = "auto"
    ) -> None:
        super().__init__()
        self.rnn = Recurrent(inputs, hidden, kind=kind, layers=layers, dropout=dropout, kernel=kernel)
        self.states = 2 if kind == "lstm" else 1
        self.to_input = nn.Linear(latent, inputs)
        self.to_state = nn.Linear(latent, layers * self.states * hidden)
        self.to_output = nn.Linear(latent, hidden)

    def forward(self, z: Tensor, x: Tensor, packing: Packing | Padded) -> Tensor:
        """z [S, B, D], x [N, E] the packed inputs that all draws share -> hidden [N, S, H]."""
        outputs = self.rnn.packed(x, packing, self.begin(z), self.to_input(z))
        return outputs + self.to_output(z).transpose(0, 1).index_select(0, packing.rows)

    def begin(self, z: Tensor) -> list[State]:
        """The state before the first step: z [..., D] -> [..., H], one a layer."""
        states = rearrange(self.to_state(z).tanh(), "... (l s h) -> l s ... h", l=self.rnn.layers, s=self.states)
        return [tuple(layer) for layer in states]

    def step(self, z: Tensor, x: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """z [N, D], x [N, E] -> hidden [N, H] and the next state."""
        output, state = self.rnn.step(x + self.to_input(z), state)
        return output + self.to_output(z), state


def stack_draws(z: Tensor, x: Sequence) -> tuple[Tensor, tuple[int, ...]]:
    """z [..., B, D] for a Sequence of B -> z [S, B, D], and the shape of the rows [..., B]."""
    rows = tuple(z.shape[:-1])
    if rows[-1] != len(x):
        raise ValueError(f"latent of {rows[-1]} rows, but {len(x)} sequences")
    return z.reshape(math.prod(rows[:-1]), *z.shape[-2:]), rows


def check_lengths(x: Sequence, max_steps: int) -> None:
    if x.steps > max_steps and bool((x.lengths > max_steps).any()):
        longest = int(x.lengths.max())
        raise ValueError(
            f"a sequence has {longest} steps, but this decoder was built for at most {max_steps} (max_steps): "
            "cut it, or build the decoder with a larger max_steps"
        )
