"""Sequence -> Gaussian over the latent. Importable alone in other projects: no training, data or command-line code.

from mmseqvae.encoders import FrameEncoder
expert = FrameEncoder(channels=80, latent=32)(Sequence(log_mels, lengths))   # expert.mean [B, 32]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmseqvae.gaussian import Gaussian
from mmseqvae.recurrent import Recurrent
from mmseqvae.sequence import Sequence, step_mask

POOLINGS = ("last", "mean", "max")


class _RecurrentEncoder(nn.Module):
    """What both encoders share: recurrent layers, pooling over time, and a linear layer to mean and log-variance."""

    def __init__(
        self,
        inputs: int,
        latent: int,
        hidden: int,
        kind: str,
        layers: int,
        bidirectional: bool,
        dropout: float,
        pooling: str,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.latent, self.pooling = latent, pooling
        self.rnn = Recurrent(inputs, hidden, kind=kind, layers=layers, bidirectional=bidirectional, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.to_latent = nn.Linear(self.rnn.channels, 2 * latent)

    def embed(self, x: Sequence) -> tuple[Tensor, Tensor]:
        """What the recurrent layers read, [B, N, E], and how many steps of it each item has, [B]."""
        raise TypeError(f"{type(self).__name__} must define embed")

    def forward(self, x: Sequence) -> Gaussian:
        """One expert an item: Sequence of B -> Gaussian [B, D]. Rows of length 0 give a finite, meaningless expert."""
        return Gaussian(*self.to_latent(self.dropout(self.pool(*self.embed(x)))).chunk(2, -1))

    def pool(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Through the recurrent layers and over their steps, [B, N, E] -> [B, H]."""
        if self.pooling == "last" or inputs.shape[1] == 0:
            return self.rnn.final(inputs, lengths)
        outputs = self.rnn(inputs, lengths)
        if self.pooling == "mean":  # outputs are 0 beyond a length
            return outputs.sum(1) / lengths.clamp(min=1)[:, None]
        alive = step_mask(lengths, outputs.shape[1])[..., None]
        return torch.where(lengths[:, None] > 0, torch.where(alive, outputs, -torch.inf).amax(1), 0)


class TokenEncoder(_RecurrentEncoder):
    """Token sequences -> Gaussian experts.

    vocabulary: V, tokens are 0..V-1. embedding, hidden: sizes. kind: "tanh", "gru" or "lstm". pooling: "last" (where
    each direction ends), "mean" or "max" over the steps. dropout: between layers and before the last linear layer.
    A hole (unobserved step) is read as a learnt vector. Raises ValueError for unknown kinds and poolings.
    """

    def __init__(
        self,
        vocabulary: int,
        latent: int,
        *,
        embedding: int = 64,
        hidden: int = 64,
        kind: str = "gru",
        layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.0,
        pooling: str = "last",
    ) -> None:
        super().__init__(embedding, latent, hidden, kind, layers, bidirectional, dropout, pooling)
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary + 1, embedding)  # the last row stands for a hole

    def embed(self, x: Sequence) -> tuple[Tensor, Tensor]:
        return self.embedding(x.filled(self.vocabulary)), x.lengths


class FrameEncoder(_RecurrentEncoder):
    """Frame sequences (log-mels, sensors, piano rolls) -> Gaussian experts.

    channels: C. reduction: frames stacked to one recurrent step, which divides the time by as much. The rest as
    for TokenEncoder. A hole (unobserved frame) is read as a learnt frame.
    """

    def __init__(
        self,
        channels: int,
        latent: int,
        *,
        hidden: int = 128,
        kind: str = "gru",
        layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.0,
        pooling: str = "last",
        reduction: int = 1,
    ) -> None:
        if reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {reduction}")
        super().__init__(channels * reduction, latent, hidden, kind, layers, bidirectional, dropout, pooling)
        self.channels, self.reduction = channels, reduction
        self.hole = nn.Parameter(torch.zeros(channels))

    def embed(self, x: Sequence) -> tuple[Tensor, Tensor]:
        frames = torch.where(x.mask[..., None], x.values, self.hole)
        missing = -x.steps % self.reduction
        if missing:
            frames = F.pad(frames, (0, 0, 0, missing))
            frames[:, x.steps :] = self.hole
        stacked = rearrange(frames, "b (n r) c -> b n (r c)", r=self.reduction)
        return stacked, (x.lengths + self.reduction - 1) // self.reduction
