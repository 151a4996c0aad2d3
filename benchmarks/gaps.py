"""What a trained model loses against the world of `benchmarks/world.py`: likelihood, coherence, variety, calibration.

Every loss is a difference to an exact value in nats, on items that no model was trained on:

    pair            KL(p(t, a) || model(t, a)), by importance weighting under the named prior
    a | t, own      the same for model(a | t) = model(t, a) / model(t): what decoders and prior know
    a | t, written  the same for the law that `generate` draws from, integral q(z | t) p(a | z) dz. It differs from the
                    model's own where q(z | t) is not the model's posterior of z. A generator that speaks with one
                    average voice loses the voices here
    a | t, heard    -E log p(a | t) of generated a minus H(a | t): what the world thinks of what was written. Wrong
                    words cost here; one perfect average voice is *below* 0

log p estimates are logarithms of unbiased ones: gaps are too large by what more draws would still gain, never too
small on average (an "own" conditional is a difference of two such, which bounds nothing).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.world import Draws, World
from mmseqvae.model import MultimodalVAE, effective_draws, log_mean_exp
from mmseqvae.priors import Prior
from mmseqvae.sampling import FrameSampling, Sampling, TokenSampling
from mmseqvae.sequence import Sequence

DECODE: dict[str, Sampling] = {  # draws from the model itself
    "text": TokenSampling(temperature=1),
    "audio": FrameSampling(noise=1, end="draw"),
}
OTHER = {"text": "audio", "audio": "text"}
ROWS = 4000  # latent draws that go through a decoder at once
FEW = 10  # audio of a word, too few for a covariance
RANKS = 19  # draws beside each true value: 20 ranks
Figures = dict[str, Any]


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
        return self.log_prob("text", "audio") - self.log_prob(OTHER[name])

    def word(self, name: str) -> Tensor:
        """The word that the exact posterior finds likeliest, [B]."""
        return self.of[name].argmax(1)


@torch.no_grad()
def measure(
    model: MultimodalVAE, world: World, test: Draws, draws: int = 200, samples: int = 8, seed: int = 0
) -> Figures:
    """All figures of a model on the items `test`. draws: importance draws; samples: generated items a test item."""
    model.eval()
    generator = model.generator(seed)
    true = Scores(world, test.batch)
    return {
        "likelihood": likelihoods(model, test.batch, true, draws, generator),
        "text to audio": crossed(model, world, test, true, "text", samples, generator),
        "audio to text": crossed(model, world, test, true, "audio", samples, generator),
        "pairs": {
            name: invented(model, world, prior, samples * len(test.word), generator)
            for name, prior in priors(model).items()
        },
        "real pairs coherent": share(true.word("text") == true.word("audio")),
        "ranks": {**voice_ranks(model, world, test, generator), **latent_ranks(model, len(test.word), generator)},
    }


def priors(model: MultimodalVAE) -> dict[str, Prior]:
    """The priors that a model has, by name: standard, learnt with it, fitted after."""
    every = {"standard": model.standard, "learnt": model.learnt, "fitted": model.fitted}
    return {name: prior for name, prior in every.items() if prior is not None}


# ------------------------------------------------------------------------------------------------------- likelihood


def likelihoods(
    model: MultimodalVAE, batch: Mapping[str, Sequence], true: Scores, draws: int, generator: torch.Generator
) -> Figures:
    """Gaps of the pair under every prior, and of both conditionals, the model's own and as written."""
    both = model.posterior(batch)
    alone = {name: model.posterior(batch, [name]) for name in OTHER}
    pair = {
        name: weights(model, batch, ["text", "audio"], prior.log_prob, [both], draws, generator)
        for name, prior in priors(model).items()
    }
    found: Figures = {f"pair, {name}": gap(true.log_prob("text", "audio"), w) for name, w in pair.items()}
    trained = pair["standard" if model.learnt is None else "learnt"]
    for name, other in OTHER.items():
        marginal = weights(model, batch, [other], model.training_prior.log_prob, [alone[other], both], draws, generator)
        own = log_mean_exp(trained) - log_mean_exp(marginal)
        found[f"{name} given {other}, own"] = summary(true.conditional(name) - own)
        written = weights(model, batch, [name], alone[other].log_prob, [both, alone[other]], draws, generator)
        found[f"{name} given {other}, written"] = gap(true.conditional(name), written)
    return found


def weights(
    model: MultimodalVAE,
    batch: Mapping[str, Sequence],
    want: list[str],
    target: Callable[[Tensor], Tensor],
    proposals: list[Any],
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """log [target(z) p(x_want | z) / proposal(z)] of draws z, [K, B], whose mean weight estimates the integral over z.

    With several proposals as many draws come from each and all are weighted by their mixture, the balance heuristic
    (Veach & Guibas 1995): a proposal that misses where another looks can then do no harm.
    """
    found, rows = [], len(next(iter(batch.values())))
    size = max(1, ROWS // rows)
    for proposal in proposals:
        left = draws // len(proposals)
        while left > 0:
            z = proposal.rsample(min(size, left), generator)
            left -= len(z)
            mixed = torch.stack([law.log_prob(z) for law in proposals]).logsumexp(0) - math.log(len(proposals))
            found.append(sum(model.log_likelihood(z, batch, want).values(), target(z) - mixed))
    return torch.cat(found).double()


def gap(true: Tensor, log_weights: Tensor) -> Figures:
    """Nats between exact log-probabilities [B] and estimates from weights [K, B], with the effective draws."""
    return summary(true - log_mean_exp(log_weights)) | {
        "draws": len(log_weights),
        "effective draws": float(effective_draws(log_weights).mean()),
    }


def summary(nats: Tensor) -> Figures:
    """Mean over the items and its standard error."""
    return {"nats": float(nats.mean()), "error": float(nats.std() / math.sqrt(len(nats)))}


# ------------------------------------------------------------------------------------------- what it writes and says


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
        heard = written.word("audio") == asked
        found |= variety(world, out["audio"][heard], asked[heard], test.audio, true.word("audio"))
        points = world.voice_posterior(out["audio"]).mean[asked == 0][:300]
        words = written.word("audio")[asked == 0][:300]
        found["voices of word 0"] = [
            [round(x, 2), round(y, 2), int(k)] for (x, y), k in zip(points.tolist(), words, strict=True)
        ]
    return found


def variety(world: World, audio: Sequence, word: Tensor, real: Sequence, real_word: Tensor) -> Figures:
    """Voices of correctly heard audio beside those of real audio of the same word: E[v | audio], its spread.

    diversity: ratio of the variances, mean over the words; a word that is hardly ever heard counts 0. voice entropy:
    1/2 ln of the ratio of the determinants of the covariances, the nats by which a Gaussian with the generated spread
    is short of one with the real spread; mean over the words that are heard, None where none is.
    """
    ratios, nats = [], []
    for k in range(world.words):
        if int((word == k).sum()) < FEW:
            ratios.append(0.0)
            continue
        spread, wanted = (world.voice_posterior(a[w == k]).mean.T.cov() for a, w in ((audio, word), (real, real_word)))
        ratios.append(float(spread.trace() / wanted.trace()))
        nats.append(float(0.5 * (spread.logdet() - wanted.logdet())))
    return {"diversity": sum(ratios) / len(ratios), "voice entropy": sum(nats) / len(nats) if nats else None}


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
    law = torch.tensor(counts, dtype=torch.float64)
    n, bins = law.sum(1), law.shape[1]
    law = law / n[:, None]
    return float((math.log(bins) - torch.special.entr(law).sum(1) - (bins - 1) / (2 * n)).mean())
