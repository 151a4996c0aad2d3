"""What both decoders share: a recurrent net that sees the latent at every step, and scores at the scored steps only."""

from __future__ import annotations

import math
from collections.abc import Callable

from einops import rearrange, repeat
from torch import Tensor, nn

from mmseqvae.recurrent import Recurrent, State
from mmseqvae.sequence import Sequence


class ConditionedRNN(nn.Module):
    """A recurrent net whose every step sees the latent, as a layer (`forward`) and step by step (`begin`, `step`)."""

    def __init__(self, latent: int, inputs: int, hidden: int, kind: str, layers: int, dropout: float) -> None:
        super().__init__()
        self.rnn = Recurrent(inputs, hidden, kind=kind, layers=layers, dropout=dropout)
        self.states = 2 if kind == "lstm" else 1
        self.to_input = nn.Linear(latent, inputs)
        self.to_state = nn.Linear(latent, layers * self.states * hidden)
        self.to_output = nn.Linear(latent, hidden)

    def forward(self, z: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
        """z [N, D], x [N, T, E] -> hidden [N, T, H]."""
        outputs = self.rnn(x + self.to_input(z)[:, None], lengths, self.begin(z))
        return outputs + self.to_output(z)[:, None]

    def begin(self, z: Tensor) -> list[State]:
        """The state before the first step."""
        states = rearrange(self.to_state(z).tanh(), "n (l s h) -> l s n h", l=self.rnn.layers, s=self.states)
        return [tuple(layer) for layer in states]

    def step(self, z: Tensor, x: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """z [N, D], x [N, E] -> hidden [N, H] and the next state."""
        output, state = self.rnn.step(x + self.to_input(z), state)
        return output + self.to_output(z), state


def at_scored(mask: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Run `compute` on the steps that are scored only: mask [N, T] -> [N, T] with 0 elsewhere."""
    index = mask.flatten().nonzero().squeeze(-1)
    scored = compute(index)
    return scored.new_zeros(mask.numel()).index_copy(0, index, scored).reshape(mask.shape)


def flatten_draws(z: Tensor, x: Sequence) -> tuple[Tensor, Sequence, tuple[int, ...]]:
    """z [..., B, D] and a Sequence of B -> z [N, D], a Sequence of N, and the shape of the rows [..., B]."""
    rows = tuple(z.shape[:-1])
    if rows[-1] != len(x):
        raise ValueError(f"latent of {rows[-1]} rows, but {len(x)} sequences")
    times = math.prod(rows[:-1])

    def stack(t: Tensor) -> Tensor:
        return repeat(t, "b ... -> (k b) ...", k=times)

    observed = None if x.observed is None else stack(x.observed)
    return z.reshape(-1, z.shape[-1]), Sequence(stack(x.values), stack(x.lengths), observed), rows


def check_lengths(x: Sequence, max_steps: int) -> None:
    if x.steps > max_steps and bool((x.lengths > max_steps).any()):
        longest = int(x.lengths.max())
        raise ValueError(
            f"a sequence has {longest} steps, but this decoder was built for at most {max_steps} (max_steps): "
            "cut it, or build the decoder with a larger max_steps"
        )
