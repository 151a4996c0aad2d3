"""Measures against exact values, slow obvious implementations, and cases whose answer is known beforehand."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseqvae.metrics import (
    Share,
    active_units,
    aligned_diversity,
    character_error_rate,
    copied,
    copying,
    distinct,
    diversity,
    effective_classes,
    exact_match,
    fit_length,
    group,
    histogram,
    joint_coherence,
    kept,
    mel_cepstra,
    mel_cepstral_distortion,
)
from mmseqvae.sequence import Sequence


def noise(seed: int, n: int, low: int = 5, high: int = 12, channels: int = 3, scale: float = 1.0) -> Sequence:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (n,), generator=generator).tolist()
    return Sequence.from_list([scale * torch.randn(t, channels, generator=generator) for t in lengths])


# --- shares --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 2000), st.data())
@settings(max_examples=50, deadline=None)
def test_interval_solves_wilsons_equation(total, data):
    hits = data.draw(st.integers(0, total))
    low, high = Share(hits, total).interval
    z = 1.959963984540054
    for p in (low, high):  # the bounds are where the observed share is z standard errors of p away from p
        assert abs(hits / total - p) == pytest.approx(z * math.sqrt(p * (1 - p) / total), abs=1e-9)
    assert 0 <= low <= hits / total <= high <= 1


def test_share_prints_its_interval_and_survives_emptiness():
    assert str(Share(81, 100)) == "0.810 [0.722, 0.875] of 100"  # Wilson by hand: (.81 + .0192073 +- .0793) / 1.0384
    assert math.isnan(Share(0, 0).value)
    assert Share(0, 0).interval == (0, 1)
    assert Share(10, 10).interval[0] < 1


def test_kept_and_exact_match_count_equal_strings():
    assert kept(["a", "b", "a", "c"], ["a", "a", "a", "c"]) == Share(3, 4)
    assert exact_match(["seven", "two", "零"], ["seven", "two ", "零"]) == Share(2, 3)
    with pytest.raises(ValueError, match="got 2 and 1"):
        kept(["a", "b"], ["a"])


def test_non_words_are_incoherent_and_strange_judges_refused():
    words = ["one", "two"]
    assert joint_coherence(["one", "two", "onw", "two"], ["one", "one", "one", "two"], words) == Share(2, 4)
    with pytest.raises(ValueError, match=r"it heard \['1'\]"):
        joint_coherence(["1"], ["1"], words)


def edits(a: str, b: str) -> int:
    """Levenshtein distance by its recursive definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(edits(a[1:], b) + 1, edits(a, b[1:]) + 1, edits(a[1:], b[1:]) + (a[0] != b[0]))


def test_character_error_rate_pools_edits_over_texts():
    rng = random.Random(0)
    wanted = ["".join(rng.choices("abc", k=rng.randint(1, 5))) for _ in range(12)]
    written = ["".join(rng.choices("abc", k=rng.randint(0, 5))) for _ in range(12)]
    expected = sum(map(edits, wanted, written)) / sum(map(len, wanted))
    assert character_error_rate(wanted, written) == pytest.approx(expected)
    assert character_error_rate(["six", "one"], ["six", "one"]) == 0
    with pytest.raises(ValueError, match="at least one character"):
        character_error_rate(["", ""], ["a", ""])


def test_effective_classes_and_histogram():
    assert effective_classes(list("abcd") * 3) == pytest.approx(4)
    assert effective_classes(["a"] * 5) == pytest.approx(1)
    # 3/4 and 1/4: exp(-3/4 ln 3/4 - 1/4 ln 1/4) = (4/3)^(3/4) * 4^(1/4)
    assert effective_classes(["a", "a", "a", "b"]) == pytest.approx((4 / 3) ** 0.75 * 4**0.25)
    with pytest.raises(ValueError, match="at least one label"):
        effective_classes([])
    assert histogram(["jo", "al", "jo", "xi"], ["al", "bo", "jo"]) == {"al": 1, "bo": 0, "jo": 2, "xi": 1}


# --- variety and copying -------------------------------------------------------------------------------------------


def test_group_keeps_only_what_was_heard_as_asked():
    features = noise(0, 4)
    grouped = group(features, ["a", "b", "a", "b"], ["a", "a", "a", "a"])
    assert {label: len(items) for label, items in grouped.items()} == {"a": 2, "b": 0}
    assert torch.equal(grouped["a"].values, features.values[[0, 2]])
    with pytest.raises(ValueError, match="4 items need as many labels, got 3"):
        group(features, ["a"] * 3)


def test_fitting_pads_with_silence_crops_and_ignores_padding():
    silence = torch.tensor([-3.0, -2.0])
    values = torch.arange(12.0).reshape(2, 3, 2)
    values[1, 1:] = torch.nan
    features = Sequence(values, torch.tensor([3, 1]))
    longer, shorter = fit_length(features, silence, 5), fit_length(features, silence, 2)
    assert torch.equal(longer[0], torch.cat([values[0], silence.expand(2, 2)]))
    assert torch.equal(longer[1], torch.cat([values[1, :1], silence.expand(4, 2)]))
    assert torch.equal(shorter, longer[:, :2])


def slow_diversity(generated, real, silence, steps):
    def spread(features):
        items = [torch.cat([x, silence.expand(steps, -1)])[:steps] for x in features.items()]
        return np.mean([float((a - b).square().sum().sqrt()) for a, b in itertools.combinations(items, 2)])

    return np.mean([spread(generated[label]) / spread(real[label]) for label in real])


def test_diversity_equals_its_definition():
    generated = {"a": noise(1, 5, scale=0.5), "b": noise(2, 4, scale=0.8)}
    real, silence = {"a": noise(3, 6), "b": noise(4, 5)}, torch.tensor([-1.0, -2.0, 0.5])
    for steps in (7, 20):
        expected = slow_diversity(generated, real, silence, steps)
        assert diversity(generated, real, silence, steps) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("measure", [lambda g, r: diversity(g, r, torch.zeros(3), 10), aligned_diversity])
def test_diversity_of_halves_copies_and_misses(measure):
    real = noise(5, 200)
    halves = {"a": real[:100]}, {"a": real[100:]}
    assert measure(*halves) == pytest.approx(1, abs=0.05)
    template = Sequence.from_list([real.items()[0]] * 20)
    assert measure({"a": template}, halves[1]) == 0
    # A label that was never heard right, or once, has no variety: it halves the mean over two labels.
    two = {"a": real[100:], "b": real[100:]}
    for miss in ({}, {"b": real[:1]}, {"b": real[:0]}):
        assert measure({"a": real[:100], **miss}, two) == pytest.approx(measure(*halves) / 2)
    with pytest.raises(ValueError, match=r"no real items of the labels \['z'\]"):
        measure({"z": real}, two)
    with pytest.raises(ValueError, match="label 'a' needs at least two real items, got 1"):
        measure({"a": real}, {"a": real[:1]})


def test_aligned_diversity_forgives_tempo_and_is_seeded():
    melody = torch.randn(6, 3, generator=torch.Generator().manual_seed(6))
    slower = [melody.repeat_interleave(n, 0) for n in (1, 2, 3)]
    real = {"a": noise(7, 20)}
    paced = {"a": Sequence.from_list(slower)}
    assert aligned_diversity(paced, real) == pytest.approx(0, abs=1e-6)
    assert diversity(paced, real, torch.zeros(3), 18) > 0.5
    draws = {"a": noise(8, 20)}
    assert aligned_diversity(draws, real, pairs=10, seed=1) == aligned_diversity(draws, real, pairs=10, seed=1)
    assert aligned_diversity(draws, real, pairs=10, seed=1) != aligned_diversity(draws, real, pairs=10, seed=2)


def test_copying_flags_replayed_recordings_and_passes_new_ones():
    generator = torch.Generator().manual_seed(9)
    train, test, new = (torch.randn(n, 8, generator=generator) for n in (500, 300, 400))
    replay = copying(train[:50], train, test)
    assert replay.ratio == 0
    assert replay.share == Share(50, 50)
    fresh = copying(new, train, test)
    assert fresh.ratio == pytest.approx(1, abs=0.05)
    assert fresh.share.value < 0.04
    far = copying(new + 100, train, test)
    assert far.ratio > 10
    assert far.share.hits == 0
    with pytest.raises(ValueError, match="`train` has none"):
        copying(new, train[:0], test)


def test_copying_equals_its_definition():
    generator = torch.Generator().manual_seed(10)
    train, test, new = (torch.randn(n, 2, generator=generator) for n in (40, 30, 25))
    nearest = [[min(math.dist(x, y) for y in train.tolist()) for x in some.tolist()] for some in (new, test)]
    threshold = np.percentile(nearest[1], 1)
    result = copying(new, train, test)
    assert result.ratio == pytest.approx(np.mean(nearest[0]) / np.mean(nearest[1]), rel=1e-5)
    assert result.share == Share(sum(d < threshold for d in nearest[0]), 25)


# --- spectra and latents -------------------------------------------------------------------------------------------


def test_cepstra_rebuild_the_spectrum():
    log_mel = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(11))
    cepstra = mel_cepstra(log_mel, order=8)
    k, m = torch.arange(9).double(), torch.arange(1, 9).double()
    cosines = (math.pi * m[:, None] * (k + 0.5) / 9).cos()
    torch.testing.assert_close(log_mel.mean(-1, keepdim=True) + 2 * cepstra @ cosines, log_mel)
    with pytest.raises(ValueError, match="cepstra 1 to 8, got order 9"):
        mel_cepstra(log_mel, order=9)


def slow_warping(a: np.ndarray, b: np.ndarray) -> float:
    """Least mean over the least-total paths, by trying every path."""
    cost = np.linalg.norm(a[:, None] - b[None], axis=-1)

    def paths(i, j):
        if i == j == 0:
            yield [(0, 0)]
        for di, dj in ((1, 1), (1, 0), (0, 1)):
            if i >= di and j >= dj:
                yield from ([*path, (i, j)] for path in paths(i - di, j - dj))

    best = min(paths(len(a) - 1, len(b) - 1), key=lambda path: sum(cost[p] for p in path))
    return sum(cost[p] for p in best) / len(best)


def test_distortion_is_a_spectral_distance_in_decibels():
    a, b = noise(12, 3, 3, 6, channels=8), noise(13, 3, 3, 6, channels=8)
    distortion = mel_cepstral_distortion(a, b, order=7)
    for value, x, y in zip(distortion.tolist(), a.items(), b.items(), strict=True):
        decibels = [10 / math.log(10) * (s - s.mean(1, keepdim=True)).double().numpy() / math.sqrt(8) for s in (x, y)]
        assert value == pytest.approx(slow_warping(*decibels), rel=1e-5)
    torch.testing.assert_close(mel_cepstral_distortion(b, a, order=7), distortion)


def test_distortion_ignores_gain_and_tempo_and_refuses_silence():
    a = noise(14, 2, channels=20)
    slower = Sequence.from_list([x.repeat_interleave(2, 0) + 1.7 for x in a.items()])
    assert mel_cepstral_distortion(a, slower).abs().max() < 1e-4
    assert mel_cepstral_distortion(a, noise(15, 2, channels=20)).min() > 1
    with pytest.raises(ValueError, match="at least one frame"):
        mel_cepstral_distortion(a, a.where(torch.tensor([True, False])))
    with pytest.raises(ValueError, match="2 and 1 items"):
        mel_cepstral_distortion(a, a[:1])


def test_active_units_count_moving_means():
    means = torch.randn(500, 6, generator=torch.Generator().manual_seed(16))
    scale = torch.tensor([0.0, 0.05, 0.2, 1.0, 0.02, 3.0])  # variances 0, .0025, .04, 1, .0004, 9
    assert active_units(means * scale + 5) == 3
    assert active_units(means * scale, threshold=0.5) == 2
    assert active_units(torch.ones(10, 6)) == 0
    with pytest.raises(ValueError, match="at least two, got 1"):
        active_units(means[:1])


# --- texts ---------------------------------------------------------------------------------------------------------


def test_distinct_counts_pairs_of_all_sequences_together() -> None:
    assert distinct([[1, 2, 3], [1, 2, 4]]) == 3 / 4
    assert distinct(["abab"]) == 2 / 3
    assert distinct([[1, 2, 3], [1, 2, 4]], 1) == 4 / 6
    assert math.isnan(distinct([[1], []]))


def test_copied_is_the_share_that_is_known_to_the_last_token() -> None:
    assert copied(["a b", "a", "a b"], ["a b", "c"]) == Share(2, 3)
    assert copied([(1, 2), (1,)], [(1, 2)]) == Share(1, 2)
