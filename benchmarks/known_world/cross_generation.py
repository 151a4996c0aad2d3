"""What the truth hears in what a model writes: the asked word, the voices, whether pairs agree; and rank plots.

heard           -E log p(a | t) of audio written from t, minus H(a | t), in nats: what the world thinks of it. Wrong
                words cost here; one perfect average voice is *below* 0
word lost, voices lost    KL(real || written) over the words and over cells of E[v | a]: parts of what the distribution
that
                `generate` draws from loses (`benchmarks/known_world/divergences.py`), by the data processing inequality
voices invented           KL(written || real): voices between the real ones
ranks           of real items among written ones, flat for a generator that is the true conditional
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.known_world.divergences import OTHER, Figures, summary
from benchmarks.known_world.world import Draws, Scores, World
from mmseqvae.decoding import FrameSampling, Sampling, TokenSampling
from mmseqvae.model import MultimodalVAE
from mmseqvae.priors.base import Prior

DECODE: dict[str, Sampling] = {  # draws from the model itself
    "text": TokenSampling(temperature=1),
    "audio": FrameSampling(noise=1, end="draw"),
}
FEW = 10  # audio of a word, too few for a covariance
POOL = 20_000  # real pairs to compare with
CELLS = 8
SHOWN = 300  # voices kept for the picture
RANKS = 19  # draws beside each true value: 20 ranks


def crossed(
    model: MultimodalVAE,
    world: World,
    test: Draws,
    true: Scores,
    given: str,
    samples: int,
    generator: torch.Generator,
) -> Figures:
    """The other modality generated from `given`: coherence, cross-entropy under the truth, and variety of voices."""
    want = OTHER[given]
    batch = {given: test.batch[given]}
    out = model.generate(batch, [want], [given], samples, {want: DECODE[want]}, generator)
    written = Scores(world, out)
    asked = true.word(given).repeat_interleave(samples)
    written.of[given] = true.of[given].repeat_interleave(samples, 0)
    excess = -written.conditional(want).reshape(-1, samples).mean(1) + true.conditional(want)
    found: Figures = {
        "coherent": share(written.word(want) == asked),
        "real coherent": share(true.word(want) == true.word(given)),
        "heard": summary(excess),
    }
    if want == "audio":
        found |= variety(world, written.word("audio"), asked, world.voice_posterior(out["audio"]).mean)
    return found


def variety(world: World, heard: Tensor, asked: Tensor, voice: Tensor) -> Figures:
    """Words [n] and voices E[v | audio] [n, 2] heard in written audio, beside those of POOL real pairs.

    word lost: KL(real || written) between what is heard where a word was asked for, mean over the words. All else is
    of right words only. diversity: ratio of the variances of voices, mean over the words; a word that is hardly ever
    heard counts 0. voice entropy: 1/2 ln of the ratio of the determinants of the covariances, the nats by which a
    Gaussian with the written spread is short of one with the real spread; mean over the words that are heard, None
    where none is. voices lost and invented: KL(real || written) and back over a grid of CELLS x CELLS voices.
    """
    real = world.draw(POOL, seed=3)
    scores = Scores(world, real.batch)
    real_asked, real_heard = scores.word("text"), scores.word("audio")
    real_voice = world.voice_posterior(real.audio).mean
    words = [
        divergence(
            *(torch.bincount(h, minlength=world.words) for h in (real_heard[real_asked == k], heard[asked == k]))
        )
        for k in range(world.words)
    ]
    ratios, nats = [], []
    for k in range(world.words):
        own = voice[(heard == k) & (asked == k)]
        if len(own) < FEW:
            ratios.append(0.0)
            continue
        spread, wanted = own.T.cov(), real_voice[(real_heard == k) & (real_asked == k)].T.cov()
        ratios.append(float(spread.trace() / wanted.trace()))
        nats.append(float(0.5 * (spread.logdet() - wanted.logdet())))
    right, really = cells(voice[heard == asked]), cells(real_voice[real_heard == real_asked])
    points = zip(voice[asked == 0][:SHOWN].tolist(), heard[asked == 0][:SHOWN].tolist(), strict=True)
    return {
        "word lost": sum(words) / len(words),
        "diversity": sum(ratios) / len(ratios),
        "voice entropy": sum(nats) / len(nats) if nats else None,
        "voices lost": divergence(really, right),
        "voices invented": divergence(right, really),
        "voices of word 0": [[round(x, 2), round(y, 2), k] for (x, y), k in points],
    }


def cells(voice: Tensor) -> Tensor:
    """How many of voices [n, 2] fall into each cell of a grid over [-2.5, 2.5], whose rim takes what lies outside."""
    place = ((voice + 2.5) / 5 * CELLS).floor().long().clamp(0, CELLS - 1)
    return torch.bincount(place[:, 0] * CELLS + place[:, 1], minlength=CELLS**2)


def divergence(first: Tensor, second: Tensor) -> float:
    """KL(first || second) in nats between two sets of counts, half an item added to every cell."""
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (first.double(), second.double()))
    return float((p * (p / q).log()).sum())


def invented(model: MultimodalVAE, world: World, prior: Prior, n: int, generator: torch.Generator) -> Figures:
    """n pairs drawn from a prior: share whose two halves say the same word, and what the truth thinks of them."""
    drawn = Scores(world, model.sample(n, prior=prior, decode=DECODE, generator=generator))
    words = torch.bincount(drawn.word("text"), minlength=world.words) / n
    return {
        "prior": str(prior),
        "coherent": share(drawn.word("text") == drawn.word("audio")),
        "cross-entropy": summary(-drawn.log_prob("text", "audio")),
        "information": summary(drawn.log_prob("text", "audio") - drawn.log_prob("text") - drawn.log_prob("audio")),
        "effective words": float(torch.special.entr(words).sum().exp()),
    }


def share(hits: Tensor) -> float:
    return float(hits.double().mean())


# ------------------------------------------------------------------------------------------------------ calibration


def voice_ranks(model: MultimodalVAE, world: World, test: Draws, generator: torch.Generator) -> Figures:
    """Rank of a true recording among RANKS generated from its text, [2 + 1, RANKS + 1] counts.

    By E[v_1 | audio], E[v_2 | audio] and log p(audio | text): flat where the generator is the true conditional, two
    horns where its voices vary too little, a hill where too much.
    """
    out = model.generate({"text": test.text}, ["audio"], ["text"], RANKS, {"audio": DECODE["audio"]}, generator)
    numbers = []
    for audio, text in ((test.audio, test.text), (out["audio"], None)):
        scores = Scores(world, {"audio": audio} if text is None else {"audio": audio, "text": text})
        if text is None:
            scores.of["text"] = world.text_scores(test.text).repeat_interleave(RANKS, 0)
        numbers.append(torch.cat([world.voice_posterior(audio).mean, scores.conditional("audio")[:, None]], 1))
    true, drawn = numbers[0], numbers[1].reshape(-1, RANKS, 3)
    found = histograms((drawn < true[:, None]).sum(1))
    return {"voice": found[:2], "likelihood": found[2:]}


def latent_ranks(model: MultimodalVAE, n: int, generator: torch.Generator) -> Figures:
    """Simulation-based calibration (Talts et al. 2018): rank of z ~ p(z) among RANKS draws of q(z | x), x ~ p(x | z).

    Flat in every dimension where q is the model's exact posterior. Counts [D, RANKS + 1] for each thing q can read.
    """
    z = model.training_prior.sample(n, generator)
    batch = model.decode(z, decode=DECODE, generator=generator)
    found = {}
    for name, given in {"z given both": None, "z given text": ["text"], "z given audio": ["audio"]}.items():
        drawn = model.posterior(batch, given).rsample(RANKS, generator)
        found[name] = histograms((drawn < z).sum(0))
    return found


def histograms(ranks: Tensor) -> list[list[int]]:
    """Ranks [n, J] of 0..RANKS -> counts [J, RANKS + 1]."""
    return [torch.bincount(column, minlength=RANKS + 1).tolist() for column in ranks.T]


def miscalibration(counts: list[list[int]]) -> float:
    """KL in nats from uniform ranks to the counted ones, mean over the rows, less its mean under uniform ranks.

    That is (bins - 1) / 2n to first order (Miller 1955): 0 on average where the ranks are flat, ln bins at most.
    """
    distribution = torch.tensor(counts, dtype=torch.float64)
    n, bins = distribution.sum(1), distribution.shape[1]
    distribution = distribution / n[:, None]
    return float((math.log(bins) - torch.special.entr(distribution).sum(1) - (bins - 1) / (2 * n)).mean())
