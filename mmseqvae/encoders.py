"""Sequence -> Gaussian over the latent. Importable alone in other projects: no training, data or command-line code.

from mmseqvae.encoders import FrameEncoder
expert = FrameEncoder(channels=80, latent=32)(Sequence(log_mels, lengths))   # expert.mean [B, 32]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn

from mmseqvae.distributions.gaussian import Gaussian
from mmseqvae.rnn.layer import Recurrent
from mmseqvae.sequence import Sequence, full, recorded, step_mask

POOLINGS = ("last", "mean", "max")


class NormalisedMean(nn.Module):
    """Posterior means with a fixed spread over the data: scale * (mean - average) / deviation + shift, per dimension.

    Batch normalisation with a scale that is not learnt (Zhu et al. 2020, "A batch normalized inference network keeps
    the KL vanishing away", section 3): the mean of KL(q || N(0, I)) over a batch is then at least D scale^2 / 2 nats,
    so a posterior cannot collapse. Averages and deviations are those of the rows that are there: in training of the
    batch, if two or more are, else running ones.
    """

    def __init__(self, latent: int, scale: float, momentum: float = 0.1) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"scale must be above 0, got {scale}")
        self.scale, self.momentum = scale, momentum
        self.shift = nn.Parameter(torch.zeros(latent))
        self.register_buffer("average", torch.zeros(latent))
        self.register_buffer("variance", torch.ones(latent))
        self.average: Tensor
        self.variance: Tensor

    def forward(self, mean: Tensor, present: Tensor) -> Tensor:
        """mean [B, D], present [B] -> [B, D]."""
        average, variance = self.average, self.variance
        if self.training:
            count = present.sum()
            share = (present / count.clamp(min=1))[:, None].to(mean)
            here = torch.where(present[:, None], mean, 0)
            now = (share * here).sum(0)
            spread = (share * (here - now).square()).sum(0)
            average, variance = torch.where(count > 1, now, average), torch.where(count > 1, spread, variance)
            with torch.no_grad():
                self.average.lerp_(average, self.momentum)
                self.variance.lerp_(variance, self.momentum)
        return self.scale * (mean - average) * (variance + 1e-5).rsqrt() + self.shift


class _RecurrentEncoder(nn.Module):
    """What both encoders share: recurrent layers, pooling over time, and a linear layer to mean and log-variance."""

    if TYPE_CHECKING:  # torch leaves untyped what calls `forward`

        def __call__(self, x: Sequence) -> Gaussian: ...

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
        mean_scale: float,
        kernel: str,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.latent, self.pooling = latent, pooling
        self.rnn = Recurrent(
            inputs, hidden, kind=kind, layers=layers, bidirectional=bidirectional, dropout=dropout, kernel=kernel
        )
        self.dropout = nn.Dropout(dropout)
        self.to_latent = nn.Linear(self.rnn.channels, 2 * latent)
        self.normalised = NormalisedMean(latent, mean_scale) if mean_scale else None

    def embed(self, x: Sequence) -> tuple[Tensor, Tensor]:
        """What the recurrent layers read, [B, N, E], and how many steps of it each item has, [B]."""
        raise TypeError(f"{type(self).__name__} must define embed")

    def forward(self, x: Sequence) -> Gaussian:
        """One expert an item: Sequence of B -> Gaussian [B, D]. Rows of length 0 give a finite, meaningless expert."""
        mean, logvar = full(self.to_latent(self.dropout(self.pool(*self.embed(x))))).chunk(2, -1)
        return Gaussian(mean if self.normalised is None else self.normalised(mean, x.present), logvar)

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
    mean_scale: spread of batch-normalised posterior means (`NormalisedMean`), 0 for none. kernel: see `Recurrent`.
    A hole (unobserved step) is read as a learnt vector; those behind the last observed step are not read at all, so a
    prefix is the same with and without them. Raises ValueError for unknown kinds, poolings and kernels.
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
        mean_scale: float = 0.0,
        kernel: str = "auto",
    ) -> None:
        super().__init__(embedding, latent, hidden, kind, layers, bidirectional, dropout, pooling, mean_scale, kernel)
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary + 1, embedding)  # the last row stands for a hole

    def embed(self, x: Sequence) -> tuple[Tensor, Tensor]:
        return self.embedding(x.filled(self.vocabulary)), x.known_lengths


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
        mean_scale: float = 0.0,
        reduction: int = 1,
        kernel: str = "auto",
    ) -> None:
        if reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {reduction}")
        super().__init__(
            channels * reduction, latent, hidden, kind, layers, bidirectional, dropout, pooling, mean_scale, kernel
        )
        self.channels, self.reduction = channels, reduction
        self.hole = nn.Parameter(torch.zeros(channels))

    def embed(self, x: Sequence) -> tuple[Tensor, Tensor]:
        frames = torch.where(x.mask[..., None], x.values, self.hole)
        return self._blocks(frames), (x.known_lengths + self.reduction - 1) // self.reduction

    def _blocks(self, frames: Tensor) -> Tensor:
        """[B, T, C] -> [B, N, r C], the last one filled up with holes."""
        rows, steps, r = frames.shape[0], frames.shape[1], self.reduction
        if recorded() and r > 1:  # for any number of steps; one block more, since torch asks whether there is only one
            first = r * torch.arange((steps + r - 1) // r + 1, device=frames.device)[:, None]
            places = (first + torch.arange(r, device=frames.device)).clamp(max=steps)
            return torch.cat([frames, self.hole.expand(rows, 1, -1)], 1)[:, places].flatten(2)
        if missing := -steps % r:
            frames = torch.cat([frames, self.hole.expand(rows, missing, -1)], 1)
        return rearrange(frames, "b (n r) c -> b n (r c)", r=r)
