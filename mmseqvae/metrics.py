"""Measures of what a model writes, as pure functions of tensors, strings and labels. No model, no files, no judge.

Every share is a `Share`: it knows its count and prints its 95 % interval. Labels are strings, as a judge returns them.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass

import librosa
import numpy as np
import torch
from scipy.fft import dct
from scipy.stats import binomtest
from torch import Tensor
from torchmetrics.functional.text import char_error_rate

from mmseqvae.sequence import Sequence

# --- shares of items -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """`hits` of `total` items, with the Wilson score interval (Wilson 1927). An empty share is NaN within 0 to 1."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        return self.hits / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high): 95 % of such intervals hold the true share."""
        if not self.total:
            return 0.0, 1.0
        interval = binomtest(self.hits, self.total).proportion_ci(0.95, method="wilson")
        return float(interval.low), float(interval.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}] of {self.total}"


def kept(asked: Iterable[str], heard: Iterable[str]) -> Share:
    """Share of items heard as what was asked for: accuracy of generated labels, "kept" from audio to audio.

    Raises ValueError where the two differ in number.
    """
    asked, heard = _same_number(asked, heard)
    return Share(sum(a == h for a, h in zip(asked, heard, strict=True)), len(asked))


def exact_match(wanted: Iterable[str], written: Iterable[str]) -> Share:
    """Share of texts that are the wanted text to the last character; case and spaces count."""
    return kept(wanted, written)


def joint_coherence(written: Iterable[str], heard: Iterable[str], words: Iterable[str]) -> Share:
    """Share of joint draws (written text, heard label) that agree; a text outside of `words` is wrong.

    Raises ValueError where the judge hears a label outside of `words`: its labels must be words.
    """
    written, heard = _same_number(written, heard)
    words = set(words)
    if strangers := sorted(set(heard) - words):
        raise ValueError(f"the judge's labels must be among the words {sorted(words)}, it heard {strangers}")
    return kept(written, heard)


def character_error_rate(wanted: Iterable[str], written: Iterable[str]) -> float:
    """Edits (insertions, deletions, substitutions) a character of the wanted texts, over all of them together."""
    wanted, written = _same_number(wanted, written)
    if not any(wanted):
        raise ValueError("the character error rate needs a wanted text with at least one character")
    return float(char_error_rate(written, wanted))


def histogram(labels: Iterable[str], classes: Iterable[str]) -> dict[str, int]:
    """How often each class was heard (speakers, words), the ones never heard included, in the order of `classes`."""
    counts = Counter(labels)
    return {name: counts.pop(name, 0) for name in classes} | dict(sorted(counts.items()))


def effective_classes(labels: Iterable[str]) -> float:
    """exp of the entropy of the labels' frequencies: 10 for ten equally frequent words, 1 for a single word."""
    counts = torch.tensor(list(Counter(labels).values()), dtype=torch.float64)
    if not len(counts):
        raise ValueError("the number of effective classes needs at least one label")
    return float(torch.distributions.Categorical(counts / counts.sum()).entropy().exp())


# --- variety and copying -------------------------------------------------------------------------------------------


def group(features: Sequence, labels: Iterable[str], heard: Iterable[str] | None = None) -> dict[str, Sequence]:
    """Items by label; with `heard`, only those heard as their label (a wrong draw is no variety)."""
    labels = list(labels)
    labels, heard = _same_number(labels, labels if heard is None else heard)
    if len(labels) != len(features):
        raise ValueError(f"{len(features)} items need as many labels, got {len(labels)}")
    rows: dict[str, list[int]] = {label: [] for label in sorted(set(labels))}
    for row, (label, judged) in enumerate(zip(labels, heard, strict=True)):
        if label == judged:
            rows[label].append(row)
    return {label: features[torch.tensor(some, dtype=torch.long)] for label, some in rows.items()}


def diversity(
    generated: Mapping[str, Sequence], real: Mapping[str, Sequence], silence: Tensor, steps: int = 64
) -> float:
    """Spread of the generated items of a label over the spread of real ones, mean over the labels of `real`.

    generated, real: *standardised* log-mels [B, T, C] a label; `group` keeps the correctly heard draws. Spread is the
    mean pairwise Euclidean distance after padding with `silence` [C] (the standardised features of digital silence) or
    cropping to `steps` frames. A label with fewer than two correct draws counts 0: what is not said has no variety.

    Raises ValueError where a label has fewer than two real items, or a generated label no real ones.
    """

    def spread(features: Sequence) -> float:
        flat = fit_length(features, silence, steps).flatten(1).double()
        return float(torch.nn.functional.pdist(flat).mean())

    return _mean_ratio(generated, real, spread)


def aligned_diversity(
    generated: Mapping[str, Sequence], real: Mapping[str, Sequence], pairs: int = 100, seed: int = 0
) -> float:
    """`diversity` with the tempo taken out: the distance of a pair is the mean along its dynamic time warping path.

    At most `pairs` pairs a label and side are measured, drawn with `seed` (50 draws have 1,225 pairs).
    """

    def spread(features: Sequence) -> float:
        items = features.items()
        every = list(itertools.combinations(range(len(items)), 2))
        some = np.random.default_rng(seed).permutation(len(every))[:pairs]
        return float(np.mean([_warped_distance(*(items[i].numpy(force=True) for i in every[p])) for p in some]))

    return _mean_ratio(generated, real, spread)


def fit_length(features: Sequence, silence: Tensor, steps: int) -> Tensor:
    """[B, `steps`, C]: cropped, or padded (and holes filled) with `silence` [C]."""
    values = torch.where(features.mask[..., None], features.values, silence)[:, :steps]
    return torch.cat([values, silence.expand(len(values), steps - values.shape[1], -1)], 1)


@dataclass(frozen=True)
class Copying:
    """ratio: mean distance to the nearest training item, draws over real test items; 1 is as new as a real recording.

    share: draws nearer to a training item than 99 % of the real test items are.
    """

    ratio: float
    share: Share


def copying(generated: Tensor, train: Tensor, test: Tensor) -> Copying:
    """Does the model replay its training set? Points [N, F] in a judge's penultimate layer, correctly heard draws only.

    Raises ValueError where one of the three is empty.
    """
    for name, points in {"generated": generated, "train": train, "test": test}.items():
        if not len(points):
            raise ValueError(f"copying needs at least one point in each set, `{name}` has none")
    draws, real = _nearest(generated, train), _nearest(test, train)
    close = int((draws < real.quantile(0.01)).sum())
    return Copying(float(draws.mean() / real.mean()), Share(close, len(draws)))


# --- spectra -------------------------------------------------------------------------------------------------------


def mel_cepstra(log_mel: Tensor, order: int = 13) -> Tensor:
    """Cepstra 1 to `order` of natural-log mel power [..., C] -> [..., order]; c0, the loudness, is left out.

    c_m = 1/C sum_k ln P_k cos(pi m (k + 1/2) / C), so that ln P_k = c_0 + 2 sum_m c_m cos(pi m (k + 1/2) / C).
    """
    channels = log_mel.shape[-1]
    if not 1 <= order < channels:
        raise ValueError(f"{channels} mels have cepstra 1 to {channels - 1}, got order {order}")
    cepstra = dct(log_mel.numpy(force=True), type=2, axis=-1) / (2 * channels)  # scipy's DCT-II carries a factor 2
    return torch.from_numpy(cepstra[..., 1 : order + 1])


def mel_cepstral_distortion(a: Sequence, b: Sequence, order: int = 13) -> Tensor:
    """Distance in dB of two recordings [B, T, C] of natural-log mel power, item by item -> [B].

    10 / ln 10 sqrt(2 sum_m (c_m - c'_m)^2) (Kubichek 1993), mean along the path that dynamic time warping finds for it.
    With every coefficient it is the root mean square difference of the spectra in dB, loudness removed.
    Comparable only between recordings with the same mels and order.
    """
    if len(a) != len(b):
        raise ValueError(f"distortion compares item by item, got {len(a)} and {len(b)} items")
    scale = 10 / math.log(10) * math.sqrt(2)
    distances = [
        scale * _warped_distance(mel_cepstra(x, order).numpy(), mel_cepstra(y, order).numpy())
        for x, y in zip(a.items(), b.items(), strict=True)
    ]
    return torch.tensor(distances)


# --- texts --------------------------------------------------------------------------------------------------------


def distinct(sequences: Iterable[Many[Hashable]], n: int = 2) -> float:
    """Different n-grams of tokens over all n-grams, of all sequences together (Li et al. 2016, "distinct-n").

    It falls with the number of sequences: compare equally many. NaN where no sequence has n tokens.
    """
    found = [tuple(tokens[i : i + n]) for tokens in sequences for i in range(len(tokens) - n + 1)]
    return len(set(found)) / len(found) if found else math.nan


def copied(written: Iterable[Hashable], known: Iterable[Hashable]) -> Share:
    """Share of texts, or tuples of tokens, that stand in `known`, such as those of training, to the last one."""
    known, written = set(known), list(written)
    return Share(sum(text in known for text in written), len(written))


# --- latents ------------------------------------------------------------------------------------------------------


ACTIVE = 0.01  # variance of a posterior mean above which a dimension is active


def active_units(means: Tensor, threshold: float = ACTIVE) -> int:
    """Latent dimensions whose posterior mean [N, D] varies by more than `threshold` over the data.

    Var_x E[z_d | x] > threshold, Burda et al. 2016, section 5.2.
    """
    if len(means) < 2:
        raise ValueError(f"active units are a variance over items and need at least two, got {len(means)}")
    return int((means.var(0) > threshold).sum())


# --- helpers -------------------------------------------------------------------------------------------------------


def _same_number(a: Iterable[str], b: Iterable[str]) -> tuple[list[str], list[str]]:
    a, b = list(a), list(b)
    if len(a) != len(b):
        raise ValueError(f"each item needs its counterpart, got {len(a)} and {len(b)}")
    return a, b


def _mean_ratio(
    generated: Mapping[str, Sequence], real: Mapping[str, Sequence], spread: Callable[[Sequence], float]
) -> float:
    """Mean over the labels of `real` of spread(generated) / spread(real); fewer than two generated items spread 0."""
    if strangers := sorted(generated.keys() - real.keys()):
        raise ValueError(f"there are no real items of the labels {strangers}")
    ratios = []
    for label, recordings in real.items():
        if len(recordings) < 2:
            raise ValueError(f"the spread of label {label!r} needs at least two real items, got {len(recordings)}")
        draws = generated.get(label)
        ratios.append(0.0 if draws is None or len(draws) < 2 else spread(draws) / spread(recordings))
    return sum(ratios) / len(ratios)


def _nearest(points: Tensor, others: Tensor) -> Tensor:
    """Distance of each point to the nearest other, exactly 0 for a copy: hence no matrix product in `cdist`."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(points.double(), others.double(), compute_mode=mode).amin(1)


def _warped_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean Euclidean distance [T, F], [S, F] along the path of least total distance."""
    if not len(a) or not len(b):
        raise ValueError("time warping needs at least one frame on both sides")
    total, path = librosa.sequence.dtw(a.T.astype(np.float64), b.T.astype(np.float64), metric="euclidean")
    return float(total[-1, -1] / len(path))
