"""Latent -> Sequence: teacher-forced log-probability in one call, and free-running sampling step by step.

Both decoders are a recurrent net over their own past whose every step sees the latent three times: added to its input,
as its initial state, and added to its output. In training the past is partly hidden (`input_dropout`) or perturbed
(`input_noise`), so that what the past no longer tells must come from the latent (Bowman et al. 2016, section 3.1).
Both give a proper distribution over sequences of every length up to `max_steps`: probabilities sum to 1 (tested).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from mmseqvae.decoding import FrameSampling, TokenSampling, check_max_steps
from mmseqvae.distributions.likelihoods import FrameLikelihood, categorical_sample, linear_categorical_log_prob
from mmseqvae.rnn import autoregressive
from mmseqvae.rnn.conditioned_rnn import ConditionedRNN, check_lengths, stack_draws
from mmseqvae.rnn.kernels import cuda_graphs
from mmseqvae.rnn.kernels.packed_rnn import Packing, Padded, State
from mmseqvae.sequence import Sequence, full


class TokenDecoder(nn.Module):
    """Latent -> tokens. A sequence ends with the token `end`; at `max_steps` the end is certain.

    vocabulary: V. input_dropout: share of previous tokens hidden in training; input_noise: share replaced by a random
    token. An unobserved previous token looks like a hidden one. never_first: tokens that no draw begins with, whatever
    the distribution says of them: what begins with the end, or with an unknown label, is no label. kernel: "auto" or
    "torch", see `Recurrent`; free-running draws follow it. Raises ValueError for an `end` outside the vocabulary, where
    nothing is left to begin with, or for an unknown kind or kernel.
    """

    writes: Literal["tokens"] = "tokens"

    def __init__(
        self,
        vocabulary: int,
        latent: int,
        *,
        end: int,
        max_steps: int,
        embedding: int = 64,
        hidden: int = 64,
        kind: str = "gru",
        layers: int = 1,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        input_noise: float = 0.0,
        never_first: tuple[int, ...] = (),
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        if not 0 <= end < vocabulary:
            raise ValueError(f"end must be a token in 0..{vocabulary - 1}, got {end}")
        if never_first and not set(range(vocabulary)) - set(never_first):
            raise ValueError(f"never_first leaves none of {vocabulary} tokens to begin with")
        check_max_steps(max_steps)
        self.vocabulary, self.latent, self.end, self.max_steps = vocabulary, latent, end, max_steps
        self.input_dropout, self.input_noise = input_dropout, input_noise
        self.never_first = list(never_first)
        self.hidden_token, self.start_token = vocabulary, vocabulary + 1
        self.embedding = nn.Embedding(vocabulary + 2, embedding)
        self.net = ConditionedRNN(latent, embedding, hidden, kind, layers, dropout, kernel)
        self.dropout = nn.Dropout(dropout)
        self.to_logits = nn.Linear(hidden, vocabulary)

    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        """Teacher-forced log p(x_t | x_<t, z): z [..., B, D], x of B -> nats [..., B, T], 0 where not scored.

        Raises ValueError where a sequence is longer than `max_steps`.
        """
        z, rows = stack_draws(z, x)
        check_lengths(x, self.max_steps)
        previous = F.pad(x.filled(self.hidden_token), (1, 0), value=self.start_token)[:, : x.steps]
        packing = self.net.rnn.packing(x.lengths, x.steps)
        hidden = self.dropout(self.net(z, self.embedding(packing.gather(self._corrupt(previous))), packing))
        tokens = packing.gather(x.filled())[:, None].expand(-1, len(z))
        nats = linear_categorical_log_prob(
            hidden.flatten(0, 1), self.to_logits.weight, self.to_logits.bias, tokens.flatten()
        ).unflatten(0, (-1, len(z)))
        last = (packing.times == self.max_steps - 1)[:, None]  # where only the end token is possible
        nats = torch.where(last, torch.where(tokens == self.end, 0.0, -torch.inf).to(nats), nats)
        return packing.spread(torch.where(packing.gather(x.mask)[:, None], nats, 0)).reshape(*rows, x.steps)

    @torch.no_grad()
    def sample(self, z: Tensor, how: TokenSampling, generator: torch.Generator | None = None) -> Sequence:
        """Free-running draws, one a row: z [N, D] -> Sequence of N that ends in `end`."""
        limit, kernel = min(how.max_steps or self.max_steps, self.max_steps), self.net.rnn.kernel
        drawn = autoregressive.Tokens(z, limit, self.end, how, generator, kernel)
        if cuda_graphs.fits(z) and not self.net.rnn.plain:
            cuda_graphs.tokens(self.net, self.embedding, self.to_logits, z, drawn, self.start_token, self.never_first)
        else:
            self._draw(z, drawn)
        return Sequence(drawn.tokens[: int(drawn.lengths.max()) if len(z) else 0].T, drawn.lengths)

    def _draw(self, z: Tensor, drawn: autoregressive.Tokens) -> None:
        """Step by step."""
        step = autoregressive.steps(self.net, z, drawn.limit, self.embedding)
        constant = self.to_logits(step.added)
        logits = autoregressive.affine(self.to_logits.weight, len(z), self.net.rnn.kernel)
        token = torch.full((len(z),), self.start_token, device=z.device)
        for t in range(drawn.limit - 1):
            distribution = logits(step(token), constant)
            if t == 0 and self.never_first:
                distribution[:, self.never_first] = -torch.inf
            if drawn.draw(distribution, t):
                break
            token = drawn.tokens[t]

    @torch.no_grad()
    def complete(self, z: Tensor, x: Sequence, how: TokenSampling, generator: torch.Generator | None = None) -> Tensor:
        """x with every unobserved step drawn given all before it, z [N, D], x of N -> [N, T]; observed steps are kept.

        The end is not drawn before a token that was observed; behind one that was drawn all is `end`.
        """
        step = autoregressive.steps(self.net, z, x.steps, self.embedding)
        ahead = x.known_lengths  # the sequence is known to go on to here
        token = torch.full((len(z),), self.start_token, device=z.device)
        ended = torch.zeros_like(token, dtype=torch.bool)
        tokens, known = x.filled(self.end).T.contiguous(), x.mask.T
        for t in range(x.steps):
            logits = full(self.to_logits(step(token) + step.added))
            if t == 0 and self.never_first:
                logits[:, self.never_first] = -torch.inf
            goes_on = (ahead > t)[:, None] & (torch.arange(self.vocabulary, device=z.device) == self.end)
            drawn = categorical_sample(
                torch.where(goes_on, -torch.inf, logits), how.temperature, how.top_k, how.top_p, generator
            )
            token = torch.where(known[t], tokens[t], torch.where(ended, self.end, drawn))
            ended = ended | (token == self.end)
            tokens[t] = token
        return tokens.T

    def step(self, z: Tensor, previous: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """One free-running step: previous tokens [N] -> logits [N, V] and the next state."""
        hidden, state = self.net.step(z, self.embedding(previous), state)
        return self.to_logits(hidden), state

    def _corrupt(self, previous: Tensor) -> Tensor:
        if not self.training:
            return previous
        if self.input_noise:
            noisy = (torch.rand(previous.shape, device=previous.device) < self.input_noise) & (
                previous < self.vocabulary
            )
            previous = torch.where(noisy, torch.randint_like(previous, self.vocabulary), previous)
        if self.input_dropout:
            hide = (torch.rand(previous.shape, device=previous.device) < self.input_dropout) & (
                previous != self.start_token
            )
            previous = torch.where(hide, self.hidden_token, previous)
        return previous


class FrameDecoder(nn.Module):
    """Latent -> frames, `reduction` frames (a block) a step, with a distribution over where the sequence ends.

    Every block decides between r + 1 outcomes: go on, or end after its 1st, ..., r-th frame; up to `max_steps` frames,
    where the end is certain. The decision of a block is scored with the block's first frame. input_dropout: share of
    previous blocks hidden in training; input_noise: standard deviation of noise added to them, in data units.
    An unobserved previous frame looks like a hidden one. kernel: as for TokenDecoder.
    """

    writes: Literal["frames"] = "frames"

    def __init__(
        self,
        likelihood: FrameLikelihood,
        latent: int,
        *,
        max_steps: int,
        reduction: int = 1,
        hidden: int = 256,
        inputs: int = 128,
        kind: str = "gru",
        layers: int = 1,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        input_noise: float = 0.0,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        if reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {reduction}")
        check_max_steps(max_steps)
        self.likelihood, self.latent, self.max_steps, self.reduction = likelihood, latent, max_steps, reduction
        self.input_dropout, self.input_noise = input_dropout, input_noise
        self.start = nn.Parameter(torch.zeros(reduction * likelihood.channels))
        self.hole = nn.Parameter(torch.zeros(likelihood.channels))
        self.from_block = nn.Linear(reduction * likelihood.channels, inputs)
        self.net = ConditionedRNN(latent, inputs, hidden, kind, layers, dropout, kernel)
        self.dropout = nn.Dropout(dropout)
        self.to_frames = nn.Linear(hidden, reduction * likelihood.size)
        self.to_end = nn.Linear(hidden, reduction + 1)

    @property
    def channels(self) -> int:
        return self.likelihood.channels

    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        """Teacher-forced log p(frame_t, end decision | past, z): z [..., B, D], x of B -> nats [..., B, T].

        0 where not scored. Raises ValueError where a sequence is longer than `max_steps`.
        """
        z, rows = stack_draws(z, x)
        check_lengths(x, self.max_steps)
        packing = self._packing(x)
        hidden = self._packed_hidden(z, x, packing)  # [N, S, H]
        seen = packing.gather(self._blocks(x.mask))  # [N, r]
        frames = packing.gather(self._blocks(x.filled()))
        parameters = rearrange(full(self.to_frames(hidden)), "n s (r p) -> n s r p", r=self.reduction)
        nats = torch.where(seen[:, None], self.likelihood.log_prob(parameters, frames[:, None]), 0)
        end = self._end_terms(hidden, packing.times, x.lengths[packing.rows])
        nats = nats + F.pad(torch.where(seen[:, :1], end, 0)[..., None], (0, self.reduction - 1))
        return packing.spread(nats).flatten(2)[..., : x.steps].reshape(*rows, x.steps)

    def floor_hits(self, z: Tensor, x: Sequence) -> Tensor:
        """Share of scored frames' channels whose scale sits on its floor: z [B, D], x of B -> [B]."""
        parameters = rearrange(self.to_frames(self.hidden(z, x)), "b n (r p) -> b (n r) p", r=self.reduction)
        hits = self.likelihood.floor_hits(parameters)[:, : x.steps]
        return x.sum_steps(hits) / x.mask.sum(1).clamp(min=1)

    def hidden(self, z: Tensor, x: Sequence) -> Tensor:
        """What the last layers read, a block a step: z [B, D], x of B -> [B, blocks, H], 0 beyond the last block."""
        packing = self._packing(x)
        return packing.spread(self._packed_hidden(z[None], x, packing))[0]

    def _packed_hidden(self, z: Tensor, x: Sequence, packing: Packing | Padded) -> Tensor:
        """z [S, B, D], x of B -> [N, S, H]."""
        frames = self._blocks(torch.where(x.mask[..., None], x.values, self.hole)).flatten(2)
        start = repeat(self.start, "c -> n 1 c", n=len(x))
        previous = torch.cat([start, self._corrupt(frames[:, :-1])], 1)[:, : frames.shape[1]]
        return self.dropout(self.net(z, self.from_block(packing.gather(previous)), packing))

    def _packing(self, x: Sequence) -> Packing | Padded:
        """Of the blocks."""
        blocks = (x.lengths + self.reduction - 1) // self.reduction
        return self.net.rnn.packing(blocks, -(-x.steps // self.reduction))

    def _blocks(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [B, blocks, r, ...], 0 beyond the end."""
        padding = (0, 0) * (x.ndim - 2) + (0, -x.shape[1] % self.reduction)
        return rearrange(F.pad(x, padding), "b (j r) ... -> b j r ...", r=self.reduction)

    @torch.no_grad()
    def sample(self, z: Tensor, how: FrameSampling, generator: torch.Generator | None = None) -> Sequence:
        """Free-running draws, one a row: z [N, D] -> Sequence of N, lengths 1 to `max_steps`."""
        limit = min(how.max_steps or self.max_steps, self.max_steps)
        count = -(-limit // self.reduction)
        ends = autoregressive.Ends(z, limit, how.end == "draw", generator, self.net.rnn.kernel)
        if cuda_graphs.fits(z) and self.likelihood.additive and not self.net.rnn.plain:
            layers = self.from_block, self.to_frames, self.to_end
            frames = cuda_graphs.frames(
                self.net, *layers, self.likelihood, z, self.start, count, how.noise, ends, generator
            )
        else:
            frames = self._draw(z, count, how.noise, ends, generator)
        return Sequence(frames[:, : int(ends.lengths.max())] if len(z) else frames, ends.lengths)

    def _draw(
        self, z: Tensor, count: int, noise: float, ends: autoregressive.Ends, generator: torch.Generator | None
    ) -> Tensor:
        """Step by step."""
        layers = self.from_block, self.to_frames, self.to_end
        step = autoregressive.steps(self.net, z, count)
        kernel = self.net.rnn.kernel
        blocks = autoregressive.Blocks(self.likelihood, *layers, step.added, count, noise, generator, kernel)
        x = blocks.start(self.start)
        for j in range(count):
            x, output = blocks.step(step(x), j)
            if ends.block(output, self.reduction, j):
                break
        return blocks.frames()

    @torch.no_grad()
    def complete(self, z: Tensor, x: Sequence, how: FrameSampling, generator: torch.Generator | None = None) -> Tensor:
        """x with every unobserved step drawn given all before it, z [N, D], x of N -> [N, T, C]; the others are kept.

        The lengths of x are taken as known: the distribution over where a sequence ends is not asked, nor `max_steps`.
        """
        frames, known = self._blocks(x.filled()), self._blocks(x.mask)[..., None]
        step = autoregressive.steps(self.net, z, frames.shape[1])
        block, done = self.start.expand(len(z), -1), []
        for j in range(frames.shape[1]):
            hidden = step(self.from_block(block)) + step.added
            parameters = full(self.to_frames(hidden)).unflatten(1, (self.reduction, -1))
            drawn = self.likelihood.sample(parameters, how.noise, generator)
            done.append(torch.where(known[:, j], frames[:, j], drawn.to(frames)))
            block = done[-1].flatten(1)
        return torch.cat(done, 1)[:, : x.steps] if done else x.values

    def step(self, z: Tensor, previous: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """One free-running step: previous block [N, r C] -> hidden [N, H] and the next state."""
        return self.net.step(z, self.from_block(previous), state)

    def end_log_prob(self, hidden: Tensor, block: Tensor, limit: int) -> Tensor:
        """log-probabilities of the r + 1 outcomes: hidden [..., H], block numbers [...] -> nats [..., r + 1].

        Outcome 0 goes on, outcome k ends after the block's k-th frame; what would pass `limit` frames is impossible.
        """
        return autoregressive.end_log_probs(self.to_end(hidden), block, limit)

    def _end_terms(self, hidden: Tensor, block: Tensor, lengths: Tensor) -> Tensor:
        """log p of what each block decides: hidden [N, S, H], block numbers and lengths in frames [N] -> [N, S]."""
        left = (lengths - block * self.reduction).clamp(min=0)  # frames from the block's first one to the end
        outcome = torch.where(left > self.reduction, 0, left)[:, None, None].expand(-1, hidden.shape[1], 1)
        return self.end_log_prob(hidden, block[:, None], self.max_steps).gather(-1, outcome).squeeze(-1)

    def _corrupt(self, blocks: Tensor) -> Tensor:
        if not self.training:
            return blocks
        if self.input_noise:
            blocks = blocks + self.input_noise * torch.randn_like(blocks)
        if self.input_dropout:
            hide = torch.rand(blocks.shape[:2], device=blocks.device) < self.input_dropout
            blocks = torch.where(hide[..., None], self.hole.repeat(self.reduction), blocks)
        return blocks
