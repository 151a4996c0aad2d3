"""What generated speech is heard as: accuracy, variety, copying and agreement of modalities, by judges handed in.

A judge is any function from log-mels (natural logarithm, *not* standardised) to labels; the judges of the recipes are
in `benchmarks/`, trained on real recordings that no generator has touched. Measures are defined in `metrics.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmseqvae.data import SequenceDataset, encode_items
from mmseqvae.data.dataset import to_device
from mmseqvae.decoding import FrameSampling
from mmseqvae.evaluation.summary import destandardised, heard_again, share_to_dict, written
from mmseqvae.features.log_mel import LogMel
from mmseqvae.metrics import (
    Share,
    aligned_diversity,
    copying,
    diversity,
    effective_classes,
    group,
    histogram,
    joint_coherence,
    kept,
)
from mmseqvae.model import Batch
from mmseqvae.pipeline.dataset_posteriors import posteriors
from mmseqvae.pipeline.trained_model import Trained
from mmseqvae.priors.base import Prior
from mmseqvae.priors.mixtures import fit_mixture
from mmseqvae.sequence import Sequence
from mmseqvae.tokenizers.characters import Tokenizer

Judge = Callable[[Sequence], list[str]]
Points = Callable[[Sequence], Tensor]

NOISES = (0.0, 0.5, 1.0)
NOISE = 0.5  # of frames wherever nothing else is said
SMALL = 10  # components of the small mixture


@dataclass(frozen=True)
class _Listening:
    """Log-mels as the model writes them, and again once they were a waveform."""

    front_end: LogMel
    bar: tqdm | None = None
    waves: bool = False

    def versions(self, frames: Sequence) -> Iterator[tuple[str, Sequence]]:
        mels = destandardised(self.front_end, frames)
        yield "log_mel", mels
        if self.waves:
            yield "wav", heard_again(self.front_end, mels, self.bar)


@torch.no_grad()
def cross_generation(
    trained: Trained,
    dataset: SequenceDataset,
    train: SequenceDataset,
    judge_digit: Judge,
    judge_speaker: Judge,
    points: Points,
    *,
    audio: str = "audio",
    text: str = "text",
    draws: int = 50,
    joint: int = 1000,
    waves: bool = True,
    priors: Mapping[str, Prior] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Speech from text, text from speech, speech from speech and matching pairs, judged; every share with its interval.

    dataset: real items that the model has not seen; its distinct texts are the words. train: what the model learnt
    from. judge_digit hears one of the words, judge_speaker a voice; points: [B, F] for log-mels, where copies of
    recordings are looked for. draws: of every word; joint: pairs of every one of `priors`, by default the model's own
    and a small mixture. Shares are given for the log-mels and, with `waves`, for the log-mels of the waveforms that
    Griffin-Lim makes of them. One latent is drawn for each item, from the posterior; text is greedy; frames have noise
    0.5 unless said.
    Raises ValueError where a modality is of the wrong kind or no item has both.
    """
    front_end, tokenizer = trained.front_ends.get(audio), trained.front_ends.get(text)
    if not isinstance(front_end, LogMel) or not isinstance(tokenizer, Tokenizer):
        raise ValueError(f"{audio!r} must be audio and {text!r} tokens; the model has {list(trained.front_ends)}")
    trained.model.eval()
    real, texts = _whole(dataset, audio, text, tokenizer)
    words = sorted(set(texts))
    priors = _priors(trained, train, seed) if priors is None else priors
    clips = (len(NOISES) * draws * len(words) + len(real) + len(priors) * joint) if waves else 0
    with tqdm(total=clips, desc="judging", unit="clip", disable=not (progress and waves), leave=False) as bar:
        listening = _Listening(front_end, bar, waves)
        said = {noise: _say(trained, words, draws, noise, audio, text, seed) for noise in NOISES}
        asked = [word for word in words for _ in range(draws)]
        from_text: dict[str, Any] = {}
        voices: list[str] = []
        plain, heard = said[0.0], list[str]()  # log-mels without noise, and what they are heard as
        for noise, frames in said.items():
            shares = {}
            for version, mels in listening.versions(frames):
                judged = judge_digit(mels)
                shares[version] = share_to_dict(kept(asked, judged))
                if noise == 0 and version == "log_mel":
                    plain, heard = mels, judged
                if noise == NOISE and version == "log_mel":
                    voices = judge_speaker(mels)
            from_text[f"noise {noise:g}"] = shares
        recorded, _ = _whole(train, audio, text, tokenizer)
        recordings = destandardised(front_end, recorded)
        return {
            "draws_a_word": draws,
            "words": words,
            "text_to_audio": from_text,
            "variety": {
                **_variety(front_end, said[0.0], asked, heard, real, texts, seed),
                "copying": _copies(points, plain, asked, heard, recordings, destandardised(front_end, real)),
                "speakers": histogram(voices, sorted(set(judge_speaker(recordings)))),
            },
            "audio_to_text": written(trained, dataset, text, audio, seed),
            "audio_to_audio": _repeated(trained, real, audio, judge_digit, judge_speaker, listening, seed),
            "joint": {
                name: matching_pairs(
                    trained, prior, joint, words, judge_digit, audio=audio, text=text, listening=listening, seed=seed
                )
                for name, prior in priors.items()
            },
        }


def _say(trained: Trained, words: list[str], draws: int, noise: float, audio: str, text: str, seed: int) -> Sequence:
    """Standardised log-mels of `draws` latents a word, one word after another."""
    batch = _there(trained, encode_items(trained.front_ends, [{text: word} for word in words]))
    how = {audio: FrameSampling(noise=noise)}
    model = trained.model
    return model.generate({text: batch[text]}, [audio], [text], draws, how, model.generator(seed))[audio]


def _variety(
    front_end: LogMel, said: Sequence, asked: list[str], heard: list[str], real: Sequence, texts: list[str], seed: int
) -> dict[str, float]:
    """At frame noise 0, of correctly heard draws, over real recordings of the same words."""
    silence = front_end.standardise(front_end.features(np.zeros(front_end.config.sample_rate, np.float32))).mean(0)
    generated, recorded = group(said.to("cpu"), asked, heard), group(real, texts)
    return {
        "diversity": diversity(generated, recorded, silence),
        "aligned_diversity": aligned_diversity(generated, recorded, seed=seed),
    }


def _copies(
    points: Points, said: Sequence, asked: list[str], heard: list[str], train: Sequence, real: Sequence
) -> dict[str, Any] | None:
    """At frame noise 0, of correctly heard draws; None where no draw was heard correctly."""
    correct = torch.tensor([word == judged for word, judged in zip(asked, heard, strict=True)])
    if not correct.any():
        return None
    found = copying(points(said[correct]), points(train), points(real))
    return {"distance_ratio": found.ratio, "closer_than_real": share_to_dict(found.share)}


def _repeated(
    trained: Trained, real: Sequence, audio: str, digit: Judge, speaker: Judge, listening: _Listening, seed: int
) -> dict[str, Any]:
    """Recordings read and said again: what the judges hear in the output against what they hear in the recording."""
    recordings = destandardised(listening.front_end, real)
    wanted = {"digit": digit(recordings), "speaker": speaker(recordings)}
    given = _there(trained, {audio: real})
    how = {audio: FrameSampling(noise=NOISE)}
    made = trained.model.generate(given, [audio], [audio], 1, how, trained.model.generator(seed))[audio]
    shares: dict[str, dict[str, Any]] = {"digit_kept": {}, "speaker_kept": {}}
    for version, mels in listening.versions(made):
        shares["digit_kept"][version] = share_to_dict(kept(wanted["digit"], digit(mels)))
        shares["speaker_kept"][version] = share_to_dict(kept(wanted["speaker"], speaker(mels)))
    return shares


def _priors(trained: Trained, train: SequenceDataset, seed: int) -> dict[str, Prior]:
    """N(0, I), the prior learnt with the model, the one fitted after, and a mixture of few components."""
    model = trained.model
    z = posteriors(model, train).rsample(generator=trained.model.generator(seed))
    priors: dict[str, Prior] = {"standard": model.standard}
    if model.learnt is not None:
        priors["learnt"] = model.learnt
    if model.fitted is not None:
        priors["fitted"] = model.fitted
    return priors | {"small": fit_mixture(z, SMALL, seed)}


def matching_pairs(
    trained: Trained,
    prior: Prior,
    n: int,
    words: list[str],
    judge_digit: Judge,
    *,
    audio: str = "audio",
    text: str = "text",
    listening: _Listening | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Does the judge hear the word that was written, in `n` pairs of one prior? Text is greedy, frames have noise 0.5.

    listening: how the log-mels are heard, by default as they are, without waveforms.
    """
    front_end = trained.front_ends[audio]
    assert isinstance(front_end, LogMel)
    listening = listening or _Listening(front_end)
    how = {audio: FrameSampling(noise=NOISE)}
    made = trained.model.sample(n, [text, audio], prior, how, trained.model.generator(seed))
    texts = [str(trained.front_ends[text].decode(item)) for item in made[text].items()]
    whole = [written for written in texts if written in words]
    coherence: dict[str, Share] = {
        version: joint_coherence(texts, judge_digit(mels), words) for version, mels in listening.versions(made[audio])
    }
    return {
        "prior": str(prior),
        "pairs": n,
        "coherence": {version: share_to_dict(share) for version, share in coherence.items()},
        "written_a_word": share_to_dict(Share(len(whole), n)),
        "effective_words": effective_classes(whole) if whole else 0.0,
    }


def _whole(dataset: SequenceDataset, audio: str, text: str, tokenizer: Tokenizer) -> tuple[Sequence, list[str]]:
    """Standardised log-mels and texts of the items that have both."""
    both = np.flatnonzero((dataset.lengths(audio) > 0) & (dataset.lengths(text) > 0))
    if not len(both):
        raise ValueError(f"no item has both {audio} and {text}, so there is nothing to judge by")
    batch = dataset.__getitems__(both.tolist())
    return batch[audio], [tokenizer.decode(item) for item in batch[text].items()]


def _there(trained: Trained, batch: Batch) -> Batch:
    return to_device(batch, trained.model.device)
