"""Parts as a user would write them from scratch, which keep the contract; tests break them one rule at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmseqvae import FrameSampling, Gaussian, Sequence, TokenSampling

CHANNELS, VOCABULARY, LATENT, LONGEST = 3, 4, 2, 9


class ConvolutionalEncoder(nn.Module):
    """A convolution over time in front of a GRU, whose state at the last step of an item becomes its expert."""

    def __init__(self) -> None:
        super().__init__()
        self.latent = LATENT
        self.convolution = nn.Conv1d(CHANNELS, 6, 3, padding=1)
        self.gru = nn.GRU(6, 5, batch_first=True)
        self.to_latent = nn.Linear(5, 2 * LATENT)

    def frames(self, x: Sequence) -> Tensor:
        return F.pad(x.filled(), (0, 0, 0, 1))  # at least one step

    def states(self, x: Sequence) -> Tensor:
        features = self.convolution(self.frames(x).transpose(1, 2)).relu()
        return self.gru(features.transpose(1, 2))[0]

    def pool(self, x: Sequence, states: Tensor) -> Tensor:
        return states[torch.arange(len(x)), (x.lengths - 1).clamp(min=0)]

    def forward(self, x: Sequence) -> Gaussian:
        return Gaussian(*self.to_latent(self.pool(x, self.states(x))).chunk(2, -1))


class TokenBagEncoder(nn.Module):
    """The mean embedding of the tokens that were observed."""

    def __init__(self) -> None:
        super().__init__()
        self.latent, self.vocabulary = LATENT, VOCABULARY
        self.embedding = nn.Embedding(VOCABULARY, 2 * LATENT)

    def forward(self, x: Sequence) -> Gaussian:
        total = torch.where(x.mask[..., None], self.embedding(x.filled()), 0).sum(1)
        return Gaussian(*(total / x.mask.sum(1).clamp(min=1)[:, None]).chunk(2, -1))


class TokenBagDecoder(nn.Module):
    """Tokens that do not depend on one another, the first 0 of which ends, at the latest at `max_steps`."""

    writes = "tokens"

    def __init__(self) -> None:
        super().__init__()
        self.latent, self.vocabulary, self.end, self.max_steps = LATENT, VOCABULARY, 0, LONGEST
        self.to_logits = nn.Linear(LATENT, VOCABULARY)

    def logits(self, z: Tensor, steps: int) -> Tensor:
        """[..., D] -> [..., T, V]."""
        logits = self.to_logits(z)[..., None, :].expand(*z.shape[:-1], steps, -1)
        last = torch.arange(steps, device=z.device)[:, None] == self.max_steps - 1
        other = torch.arange(VOCABULARY, device=z.device) != self.end
        return torch.where(last & other, -torch.inf, logits)

    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        tokens = x.filled()[..., None].expand(*z.shape[:-1], -1, 1)
        nats = self.logits(z, x.steps).log_softmax(-1).gather(-1, tokens).squeeze(-1)
        return torch.where(x.mask, nats, 0)

    def draw(self, logits: Tensor, how: TokenSampling, generator: torch.Generator | None) -> Tensor:
        if how.temperature == 0:
            return logits.argmax(-1)
        chances = (logits / how.temperature).softmax(-1)
        return torch.multinomial(chances.flatten(0, 1), 1, generator=generator).reshape(chances.shape[:-1])

    def sample(self, z: Tensor, how: TokenSampling, generator: torch.Generator | None = None) -> Sequence:
        steps = min(how.max_steps or self.max_steps, self.max_steps)
        tokens = self.draw(self.logits(z, steps), how, generator)
        tokens[:, -1] = self.end
        return Sequence(tokens, (tokens == self.end).long().argmax(1) + 1)

    def complete(self, z: Tensor, x: Sequence, how: TokenSampling, generator: torch.Generator | None = None) -> Tensor:
        if not x.steps:
            return x.values
        return torch.where(x.mask, x.values, self.draw(self.logits(z, x.steps), how, generator))


class SteadyDecoder(nn.Module):
    """Frames around one that z says, each N(., 1) and the last one with a chance that z says, too."""

    writes = "frames"

    def __init__(self) -> None:
        super().__init__()
        self.latent, self.channels = LATENT, CHANNELS
        self.frame, self.stop = nn.Linear(LATENT, CHANNELS), nn.Linear(LATENT, 1)

    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        nats = torch.distributions.Normal(self.frame(z)[..., None, :], 1).log_prob(x.filled()).sum(-1)
        last = torch.arange(x.steps, device=z.device) == x.lengths[:, None] - 1
        ends = torch.where(last, F.logsigmoid(self.stop(z)), F.logsigmoid(-self.stop(z)))
        return torch.where(x.mask, nats + ends, 0)

    def noise(self, shape: torch.Size, how: FrameSampling, generator: torch.Generator | None, like: Tensor) -> Tensor:
        return how.noise * torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

    def sample(self, z: Tensor, how: FrameSampling, generator: torch.Generator | None = None) -> Sequence:
        u = torch.full((len(z), 1), 0.5, dtype=z.dtype, device=z.device)
        if how.end == "draw":
            u = torch.rand(u.shape, generator=generator, dtype=z.dtype, device=z.device)
        lengths = (u.log() / F.logsigmoid(-self.stop(z))).ceil().clamp(1, how.max_steps or 50).squeeze(1).long()
        mean = self.frame(z)[:, None].expand(-1, int(lengths.max()), -1)
        return Sequence((mean + self.noise(mean.shape, how, generator, z)).detach(), lengths)
