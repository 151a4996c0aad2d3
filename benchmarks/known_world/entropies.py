"""The entropies of the world in `benchmarks/known_world/world.py`, exact to the precision of quadrature, in nats.

All texts are listed. Audio is a Gaussian given (word, speaker, length) with a covariance that depends on the length
alone, hence p(word | audio) depends on the length and on as many numbers as the component means span: what remains are
integrals over 2 dimensions (one speaker) or 4 (a crowd), done by the trapezoidal rule, whose error falls exponentially
with its step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks.known_world.world import LOG_2PI, MOST_FRAMES, World


@dataclass(frozen=True)
class Truth:
    """Exact entropies in nats: of text and audio (differential, lengths included), of the pair, and of the word."""

    text: float
    audio: float
    pair: float
    information: float  # I(text; audio)
    word_given_text: float
    word_given_audio: float
    word_given_pair: float
    text_given_word: float
    audio_given_word: float

    @property
    def text_given_audio(self) -> float:
        return self.text - self.information

    @property
    def audio_given_text(self) -> float:
        return self.audio - self.information

    def to_dict(self) -> dict[str, float]:
        return asdict(self) | {"text_given_audio": self.text_given_audio, "audio_given_text": self.audio_given_text}


def truth(world: World, step: float | None = None) -> Truth:
    """All entropies. step: of the trapezoidal rule, in standard deviations of the sufficient statistic."""
    step = step or (0.25 if world.speakers == 1 else 1.0)
    text_given_word = world.text_scores(world.texts).exp()  # p(text | k), [N, K]
    text = text_given_word.mean(1)
    word_given_text = text_given_word / text_given_word.sum(1, keepdim=True)
    entropy = _Sums()
    for frames in range(1, MOST_FRAMES + 1):
        means, covariance = world.gaussian(frames)
        centres = sufficient(means, covariance)
        # all but the statistic is one Gaussian, whatever the word, and independent of the statistic
        ignored = len(covariance) - centres.shape[-1]
        rest = 0.5 * float(covariance.logdet()) + 0.5 * ignored * (1 + LOG_2PI)
        for given_word, cell in quadrature(centres, step):
            given_word = given_word * world.lengths[:, frames - 1, None]  # p(n, y | k), [K, G]
            both = given_word.mean(0)
            posterior = given_word / (world.words * both)
            entropy.add("audio", cell * (both * (rest - both.log())).sum())
            entropy.add(
                "audio | word",
                cell * (rest * given_word - torch.special.xlogy(given_word, given_word)).mean(0).sum(),
            )
            entropy.add("word | audio", -cell * (both * torch.special.xlogy(posterior, posterior).sum(0)).sum())
            # p(text, audio) / (p(text) p(audio)) = K sum_k p(k | text) p(k | audio)
            ratio = world.words * (word_given_text @ posterior)  # [N, G]
            entropy.add("information", cell * (text @ torch.special.xlogy(ratio, ratio) @ both))
    total = -float(torch.special.xlogy(text, text).sum())
    own = -float(torch.special.xlogy(text_given_word, text_given_word).sum(0).mean())
    pair = total + entropy["audio"] - entropy["information"]
    return Truth(
        text=total,
        audio=entropy["audio"],
        pair=pair,
        information=entropy["information"],
        word_given_text=-float((text @ torch.special.xlogy(word_given_text, word_given_text)).sum()),
        word_given_audio=entropy["word | audio"],
        word_given_pair=math.log(world.words) + own + entropy["audio | word"] - pair,
        text_given_word=own,
        audio_given_word=entropy["audio | word"],
    )


def sufficient(means: Tensor, covariance: Tensor) -> Tensor:
    """Means [K, S, F] of Gaussians with one covariance -> those of the statistic that tells them apart, [K, S, d].

    Its covariance is the identity: whitening, then the principal axes of the means, those of length 0 left out.
    """
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, means.flatten(0, 1).T, upper=False).T
    white = white - white.mean(0)
    _, sizes, axes = torch.linalg.svd(white, full_matrices=False)
    kept = sizes > 1e-9
    kept[0] = True
    return (white @ axes[kept].T).reshape(*means.shape[:2], -1)


def quadrature(centres: Tensor, step: float, reach: float = 7.5) -> Iterator[tuple[Tensor, float]]:
    """Densities p(y | k) [K, G] of mixtures of N(centre, I) on a grid in d dimensions, and the volume of its cells.

    centres: [K, S, d]. Points farther than `reach` from every centre are left out; a part of the grid at a time.
    """
    flat = centres.flatten(0, 1)
    axes = [
        torch.arange(float(low) - reach, float(high) + reach, step, dtype=torch.float64)
        for low, high in zip(flat.amin(0), flat.amax(0), strict=True)
    ]
    for first in axes[0].split(max(1, 40_000 // math.prod(map(len, axes[1:])))):
        points = torch.cartesian_prod(first, *axes[1:]).reshape(-1, len(axes))
        squares = (points[:, None] - flat).square().sum(-1)  # [G, K S]
        squares = squares[squares.amin(1) < reach**2]
        density = (-0.5 * (squares + flat.shape[1] * LOG_2PI)).exp().unflatten(1, centres.shape[:2]).mean(2)
        yield density.T.contiguous(), step ** flat.shape[1]


class _Sums(dict[str, float]):
    """Named sums."""

    def add(self, name: str, value: Tensor) -> None:
        self[name] = self.get(name, 0.0) + float(value)
