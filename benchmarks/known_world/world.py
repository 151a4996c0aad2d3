"""A world whose truth is known: pairs (text, audio) of which every probability and entropy is exact, in nats.

    word k ~ uniform over 5
    text     a hidden Markov chain given k: letter after letter of its spelling, with slips, stutters and cut ends
    voice v ~ N(0, I_2), or a crowd of speakers: a mixture of narrow Gaussians with the same mean and variance
    audio    n ~ p(n | k) frames of 3 channels, x_t = M_t c_k + W_t v + g h_t + noise,  h_t an AR(1) state

The word is all that text and audio share, the voice is private to audio and the slips are private to text. Texts are so
short that all of them can be listed; audio is a Gaussian given (k, speaker, n). `benchmarks/known_world/entropies.py`
has the entropies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mmseqvae.sequence import Sequence

LOG_2PI = math.log(2 * math.pi)
SPELLINGS = ((0, 1), (1, 2, 0), (2, 3), (3, 4, 0), (4, 2, 1))
LETTERS = 5
END = LETTERS  # the token that ends a text
MOST_LETTERS = 4
MOST_FRAMES = 8
CHANNELS = 3
SLIP, STUTTER, CUT, EMPTY = 0.04, 0.08, 0.04, 0.01


@dataclass(frozen=True)
class Draws:
    """n items of the world: the hidden word [n], speaker [n] and voice [n, 2], and what is observed of them."""

    word: Tensor
    speaker: Tensor
    voice: Tensor
    text: Sequence
    audio: Sequence

    @property
    def batch(self) -> dict[str, Sequence]:
        return {"text": self.text, "audio": self.audio}


@dataclass(frozen=True)
class VoicePosterior:
    """p(v | audio), a mixture over word and speaker.

    log_weights [B, K, S], means [B, K, S, 2], covariance [B, 2, 2].
    """

    log_weights: Tensor
    means: Tensor
    covariance: Tensor

    @property
    def mean(self) -> Tensor:
        """E[v | audio], [B, 2]."""
        return (self.log_weights.exp()[..., None] * self.means).sum((1, 2))


class World:
    """The process, in float64.

    speakers: 1 for v ~ N(0, I); 4 for a crowd at the corners of a square. Raises ValueError for any other number.
    radius: of the circle on which the words' centres c_k lie; the smaller, the more alike they sound.
    """

    def __init__(self, speakers: int = 1, radius: float = 1.6) -> None:
        if speakers not in (1, 4):
            raise ValueError(f"speakers must be 1 or 4, got {speakers}")
        self.words, self.speakers = len(SPELLINGS), speakers
        # text: transitions [K, states, states + 1] (the last column ends the text) and letters [K, states, V]
        states = max(map(len, SPELLINGS))
        self.moves, self.letters = f64(self.words, states, states + 1), f64(self.words, states, LETTERS)
        for k, spelling in enumerate(SPELLINGS):
            for s, letter in enumerate(spelling):
                self.letters[k, s] = SLIP / (LETTERS - 1)
                self.letters[k, s, letter] = 1 - SLIP
                last = s == len(spelling) - 1
                self.moves[k, s, s] = STUTTER
                self.moves[k, s, states] = 1 - STUTTER if last else CUT
                if not last:
                    self.moves[k, s, s + 1] = 1 - STUTTER - CUT
        # audio
        angle = 2 * math.pi * torch.arange(self.words, dtype=torch.float64) / self.words
        self.centres = radius * torch.stack([angle.cos(), angle.sin()], 1)  # [K, 2]
        t = torch.arange(MOST_FRAMES, dtype=torch.float64)
        turn, none = 0.5 * t, torch.zeros_like(t)
        self.word_load = torch.stack(  # M_t [T, C, 2]
            [stacked(turn.cos(), -turn.sin()), stacked(turn.sin(), turn.cos()), stacked(0.3 + none, 0.1 * t)], 1
        )
        self.voice_load = torch.stack(  # W_t [T, C, 2]
            [stacked(0.9 + none, none), stacked(-0.3 + none, 0.2 * t - 0.5), stacked(none, 0.9 + none)], 1
        )
        self.state_load = torch.tensor([0.3, 0.3, -0.2], dtype=torch.float64)  # g [C]
        self.memory, self.noise = 0.7, 0.35
        width = 1.0 if speakers == 1 else 0.2
        corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)), dtype=torch.float64)
        self.speaker_means = f64(1, 2) if speakers == 1 else math.sqrt(1 - width**2) * corners
        self.speaker_std = width
        middle = 4.0 + 0.5 * torch.arange(self.words, dtype=torch.float64)[:, None]
        distribution = (-0.5 * (t + 1 - middle).square()).softmax(1)
        self.lengths = 0.98 * distribution + 0.02 / MOST_FRAMES  # p(n | k), [K, MOST_FRAMES]: column n - 1

    # --------------------------------------------------------------------------------------------------- drawing

    def draw(self, n: int, seed: int) -> Draws:
        """n independent items; audio in float32, as it is trained on."""
        random = torch.Generator().manual_seed(seed)

        def pick(probabilities: Tensor) -> Tensor:
            return torch.multinomial(probabilities.clamp(min=1e-300), 1, generator=random).squeeze(-1)

        word = pick(torch.ones(n, self.words))
        text, length = torch.full((n, MOST_LETTERS + 1), END), torch.full((n,), MOST_LETTERS + 1)
        states = self.moves.shape[1]
        state = torch.where(torch.rand(n, generator=random) < EMPTY, states, 0)
        for t in range(MOST_LETTERS):
            done = state == states
            length = torch.where(done, length.clamp(max=t + 1), length)
            alive = state.clamp(max=states - 1)
            text[:, t] = torch.where(done, END, pick(self.letters[word, alive]))
            state = torch.where(done, states, pick(self.moves[word, alive]))
        speaker = pick(torch.ones(n, self.speakers))
        normal = torch.randn(n, 3 + MOST_FRAMES * (CHANNELS + 1), generator=random, dtype=torch.float64)
        voice = self.speaker_means[speaker] + self.speaker_std * normal[:, :2]
        innovations, noise = normal[:, 3 : 3 + MOST_FRAMES], normal[:, 3 + MOST_FRAMES :]
        hidden, frames = normal[:, 2], []
        for t in range(MOST_FRAMES):
            if t:
                hidden = self.memory * hidden + math.sqrt(1 - self.memory**2) * innovations[:, t]
            clean = self.centres[word] @ self.word_load[t].T + voice @ self.voice_load[t].T
            frames.append(clean + hidden[:, None] * self.state_load)
        audio = torch.stack(frames, 1) + self.noise * noise.reshape(n, MOST_FRAMES, CHANNELS)
        audio_length = pick(self.lengths[word]) + 1
        return Draws(word, speaker, voice, Sequence(text, length), Sequence(audio.float(), audio_length))

    # ------------------------------------------------------------------------------------------------ likelihoods

    def text_scores(self, text: Sequence) -> Tensor:
        """log p(text | k) in nats, [B, K], by the forward algorithm. `text` ends in END, as decoders write it."""
        values, letters = text.values, text.lengths - 1
        states = self.moves.shape[1]
        alive = f64(len(text), self.words, states)
        alive[..., 0] = 1 - EMPTY
        ended = torch.full((len(text), self.words), EMPTY, dtype=torch.float64)
        total = torch.where(letters[:, None] == 0, ended, 0)
        for t in range(min(MOST_LETTERS, values.shape[1])):
            spoken = self.letters[:, :, values[:, t].clamp(max=LETTERS - 1)].permute(2, 0, 1)
            moved = torch.einsum("bks,ksr->bkr", alive * spoken, self.moves)
            alive = moved[..., :states]
            # after the last letter that is possible the end is certain
            ended = moved.sum(-1) if t == MOST_LETTERS - 1 else moved[..., states]
            total = torch.where(letters[:, None] == t + 1, ended, total)
        return total.log()

    def audio_scores(self, audio: Sequence) -> Tensor:
        """log p(audio | k) in nats, [B, K], by the Kalman filter."""
        return self._filter(audio)[0].logsumexp(2)

    def marginal(self, *scores: Tensor) -> Tensor:
        """log p of what `scores` [B, K] are about, together: log sum_k 1/K prod p(x_m | k) -> [B]."""
        return sum(scores, f64(self.words) - math.log(self.words)).logsumexp(-1)

    def word_posterior(self, *scores: Tensor) -> Tensor:
        """p(k | x) from `scores` [B, K] of one modality or of several -> [B, K]."""
        return sum(scores, f64(self.words)).softmax(-1)

    def voice_posterior(self, audio: Sequence) -> VoicePosterior:
        """p(v | audio), exactly."""
        scores, means, covariance = self._filter(audio)
        return VoicePosterior(scores - scores.logsumexp((1, 2), keepdim=True), means, covariance)

    def _filter(self, audio: Sequence) -> tuple[Tensor, Tensor, Tensor]:
        """log p(audio, s | k) [B, K, S], E[v | audio, k, s] [B, K, S, 2] and Cov[v | audio, k, s] [B, 2, 2].

        The state is (h, v). Its covariance depends on the time alone, so that one pass serves all items at once.
        """
        x, steps = audio.values.double(), min(audio.steps, MOST_FRAMES)
        if audio.steps > MOST_FRAMES and int(audio.lengths.max()) > MOST_FRAMES:
            raise ValueError(f"audio of this world has at most {MOST_FRAMES} frames, got {int(audio.lengths.max())}")
        move = torch.diag(torch.tensor([self.memory, 1, 1], dtype=torch.float64))
        drift = torch.diag(torch.tensor([1 - self.memory**2, 0, 0], dtype=torch.float64))
        covariance = torch.diag(torch.tensor([1, self.speaker_std**2, self.speaker_std**2], dtype=torch.float64))
        mean = f64(len(x), self.words, self.speakers, 3)
        mean[..., 1:] = self.speaker_means
        scores = (self.lengths[:, (audio.lengths - 1).clamp(min=0)].T / self.speakers).log()
        scores = scores[..., None].expand(-1, -1, self.speakers)
        means, covariances = mean, covariance.expand(len(x), 3, 3)
        for t in range(steps):
            if t:
                mean, covariance = mean @ move.T, move @ covariance @ move.T + drift
            load = torch.cat([self.state_load[:, None], self.voice_load[t]], 1)  # [C, 3]
            spread = load @ covariance @ load.T + self.noise**2 * torch.eye(CHANNELS, dtype=torch.float64)
            gain = covariance @ load.T @ spread.inverse()
            error = x[:, t, None, None] - (self.centres @ self.word_load[t].T)[:, None] - mean @ load.T
            white = torch.linalg.solve_triangular(torch.linalg.cholesky(spread), error[..., None], upper=False)
            nats = -0.5 * (white.square().sum((-2, -1)) + spread.logdet() + CHANNELS * LOG_2PI)
            mean = mean + error @ gain.T
            covariance = covariance - gain @ load @ covariance
            here = t < audio.lengths
            scores = torch.where(here[:, None, None], scores + nats, scores)
            means = torch.where(here[:, None, None, None], mean, means)
            covariances = torch.where(here[:, None, None], covariance, covariances)
        return scores, means[..., 1:], covariances[:, 1:, 1:]

    # --------------------------------------------------------------------------------------------------- the whole

    @cached_property
    def texts(self) -> Sequence:
        """Every text there is."""
        every = [
            torch.tensor([*letters, END])
            for n in range(MOST_LETTERS + 1)
            for letters in itertools.product(range(LETTERS), repeat=n)
        ]
        return Sequence.from_list(every)

    def gaussian(self, frames: int) -> tuple[Tensor, Tensor]:
        """Means [K, S, frames * C] and the one covariance of audio of so many frames, densely written out."""
        load, voice = self.word_load[:frames].flatten(0, 1), self.voice_load[:frames].flatten(0, 1)
        times = torch.arange(frames, dtype=torch.float64)
        correlation = self.memory ** (times[:, None] - times).abs()
        state = torch.kron(correlation, torch.outer(self.state_load, self.state_load))
        noise = self.noise**2 * torch.eye(len(load), dtype=torch.float64)
        means = (self.centres @ load.T)[:, None] + self.speaker_means @ voice.T
        return means, self.speaker_std**2 * voice @ voice.T + state + noise


class Scores:
    """log p(x | k) of one modality or several, [B, K], exact."""

    def __init__(self, world: World, batch: Mapping[str, Sequence]) -> None:
        self.world = world
        self.of: dict[str, Tensor] = {}
        if "text" in batch:
            self.of["text"] = world.text_scores(batch["text"])
        if "audio" in batch:
            self.of["audio"] = world.audio_scores(batch["audio"])

    def log_prob(self, *names: str) -> Tensor:
        """log p(x_names), [B] nats."""
        return self.world.marginal(*(self.of[name] for name in names))

    def conditional(self, name: str) -> Tensor:
        """log p(x_name | the other modality), [B] nats."""
        return self.log_prob("text", "audio") - self.log_prob("audio" if name == "text" else "text")

    def word(self, name: str) -> Tensor:
        """The word that the exact posterior finds likeliest, [B]."""
        return self.of[name].argmax(1)


def f64(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def stacked(*columns: Tensor) -> Tensor:
    return torch.stack(columns, 1)
