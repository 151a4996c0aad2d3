"""The world with known truth: every number by two routes."""

import itertools
import math

import pytest
import torch
from scipy.stats import multivariate_normal

from benchmarks.known_world.entropies import truth as truth_of
from benchmarks.known_world.world import END, MOST_FRAMES, MOST_LETTERS, World
from mmseqvae.sequence import Sequence

WORLD, CROWD = World(), World(speakers=4)


def test_texts_by_the_forward_algorithm_equal_the_sum_over_hidden_paths() -> None:
    scores = WORLD.text_scores(WORLD.texts).exp()
    torch.testing.assert_close(scores.sum(0), torch.ones(5, dtype=torch.float64))
    states = WORLD.moves.shape[1]
    for row in (0, 3, 17, 40, 300, 700):
        letters = WORLD.texts.items()[row].tolist()[:-1]
        for k in range(5):
            total = 0.0 if letters else 0.01
            for path in itertools.product(range(states), repeat=len(letters)):
                if not letters or path[0] != 0:
                    continue
                p = 0.99
                for i, (state, letter) in enumerate(zip(path, letters, strict=True)):
                    p *= float(WORLD.letters[k, state, letter])
                    if i < len(letters) - 1:
                        p *= float(WORLD.moves[k, state, path[i + 1]])
                    elif len(letters) < MOST_LETTERS:
                        p *= float(WORLD.moves[k, state, states])
                    else:
                        p *= float(WORLD.moves[k, state].sum())
                total += p
            assert float(scores[row, k]) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("world", [WORLD, CROWD])
def test_audio_by_the_kalman_filter_equals_the_dense_gaussian(world: World) -> None:
    draws = world.draw(40, seed=1)
    scores = world.audio_scores(draws.audio)
    for row, frames in enumerate(draws.audio.items()):
        means, covariance = world.gaussian(len(frames))
        for k in range(5):
            parts = [
                multivariate_normal(mean.numpy(), covariance.numpy()).logpdf(frames.double().flatten().numpy())
                for mean in means[k]
            ]
            dense = torch.tensor(parts).logsumexp(0) - math.log(world.speakers)
            wanted = float(dense) + math.log(world.lengths[k, len(frames) - 1])
            assert float(scores[row, k]) == pytest.approx(wanted, abs=1e-9)


def test_padding_says_nothing() -> None:
    audio = WORLD.draw(8, seed=2).audio
    longer = torch.cat([audio.filled(), torch.full((8, 3, 3), torch.nan)], 1)
    longer[~Sequence(longer, audio.lengths).valid] = torch.nan
    torch.testing.assert_close(
        WORLD.audio_scores(Sequence(longer, audio.lengths)), WORLD.audio_scores(audio), rtol=0, atol=0
    )
    with pytest.raises(ValueError, match="at most 8 frames, got 9"):
        WORLD.audio_scores(Sequence(torch.zeros(1, 9, 3), torch.tensor([9])))


@pytest.mark.parametrize("world", [WORLD, CROWD])
def test_the_voice_posterior_equals_integration_over_the_voice(world: World) -> None:
    draws = world.draw(3, seed=3)
    posterior = world.voice_posterior(draws.audio)
    axis = torch.arange(-6, 6, 0.04, dtype=torch.float64)
    voices = torch.cartesian_prod(axis, axis)
    squares = (voices[:, None] - world.speaker_means).square().sum(-1) / world.speaker_std**2
    prior = (-0.5 * squares - 2 * math.log(world.speaker_std)).logsumexp(1)
    for row, frames in enumerate(draws.audio.items()):
        n = len(frames)
        means, covariance = world.gaussian(n)
        load = world.voice_load[:n].flatten(0, 1)
        rest = covariance - world.speaker_std**2 * load @ load.T
        centre = means.mean(1) - world.speaker_means.mean(0) @ load.T  # [K, F]
        error = frames.double().flatten() - centre[:, None] - voices @ load.T  # [K, G, F]
        nats = prior - 0.5 * (error @ rest.inverse() * error).sum(-1) + world.lengths[:, n - 1, None].log()
        weight = nats.flatten().softmax(0).reshape(nats.shape).sum(0)
        torch.testing.assert_close(weight @ voices, posterior.mean[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize("world", [WORLD, CROWD])
def test_drawn_items_follow_the_law(world: World) -> None:
    draws = world.draw(40_000, seed=4)
    rows = [tuple(text.tolist()) for text in draws.text.items()]
    for text in {(END,), (0, 1, END), (2, 3, END), (1, 2, 0, END), (4, 4, 2, 1, END)}:
        here = torch.tensor([row == text for row in rows])
        exact = float(world.text_scores(Sequence.from_list([torch.tensor(text)])).exp().mean())
        assert float(here.double().mean()) == pytest.approx(exact, abs=4 * math.sqrt(exact / 40_000))
    for k in range(5):
        here = draws.audio.lengths[draws.word == k]
        share = torch.bincount(here - 1, minlength=MOST_FRAMES) / len(here)
        torch.testing.assert_close(share.double(), world.lengths[k], rtol=0, atol=0.025)
    some = (draws.word == 1) & (draws.audio.lengths == 4)
    frames = draws.audio.values[some][:, :4].flatten(1).double()
    means, covariance = world.gaussian(4)
    torch.testing.assert_close(frames.mean(0), means[1].mean(0), rtol=0, atol=0.08)
    spread = covariance + (means[1] - means[1].mean(0)).T @ (means[1] - means[1].mean(0)) / world.speakers
    torch.testing.assert_close(frames.T.cov(), spread, rtol=0, atol=0.15)
    torch.testing.assert_close(draws.voice.T.cov(), torch.eye(2, dtype=torch.float64), rtol=0, atol=0.03)


def test_the_truth_by_quadrature_equals_the_mean_over_drawn_items() -> None:
    truth, draws = truth_of(WORLD), WORLD.draw(20_000, seed=5)
    text, audio = WORLD.text_scores(draws.text), WORLD.audio_scores(draws.audio)
    own = torch.arange(len(text)), draws.word
    estimates = {
        truth.text: -WORLD.marginal(text),
        truth.audio: -WORLD.marginal(audio),
        truth.pair: -WORLD.marginal(text, audio),
        truth.information: WORLD.marginal(text, audio) - WORLD.marginal(text) - WORLD.marginal(audio),
        truth.text_given_word: -text[own],
        truth.audio_given_word: -audio[own],
        truth.word_given_text: -WORLD.word_posterior(text)[own].log(),
        truth.word_given_audio: -WORLD.word_posterior(audio)[own].log(),
        truth.word_given_pair: -WORLD.word_posterior(text, audio)[own].log(),
        truth.audio_given_text: WORLD.marginal(text) - WORLD.marginal(text, audio),
    }
    for exact, items in estimates.items():
        assert exact == pytest.approx(float(items.mean()), abs=4 * float(items.std()) / math.sqrt(len(items)))


def test_the_step_of_the_quadrature_does_not_matter() -> None:
    coarse, fine = truth_of(WORLD, step=0.5).to_dict(), truth_of(WORLD, step=0.3).to_dict()
    assert coarse == pytest.approx(fine, abs=1e-7)


def test_entropies_obey_their_laws() -> None:
    truth = truth_of(WORLD, step=0.5)
    # text - word - audio is a Markov chain: what they share, they share through the word
    assert 0 < truth.information < min(math.log(5) - truth.word_given_text, math.log(5) - truth.word_given_audio)
    assert truth.text == pytest.approx(math.log(5) - truth.word_given_text + truth.text_given_word, abs=1e-10)
    assert truth.audio == pytest.approx(math.log(5) - truth.word_given_audio + truth.audio_given_word, abs=1e-8)
    same = World(radius=0.0)
    same.lengths = same.lengths[:1].expand(5, -1)  # audio that says nothing of the word
    nothing = truth_of(same)
    assert nothing.information == pytest.approx(0, abs=1e-10)
    assert nothing.audio == pytest.approx(nothing.audio_given_word, abs=1e-10)
    dense = [same.gaussian(n)[1] for n in range(1, MOST_FRAMES + 1)]
    gaussian = torch.stack([0.5 * (c.logdet() + len(c) * math.log(2 * math.pi * math.e)) for c in dense])
    distribution = same.lengths[0]
    assert nothing.audio == pytest.approx(float((distribution * (gaussian - distribution.log())).sum()), abs=1e-9)


def test_a_crowd_has_the_variance_of_the_voices_it_stands_for() -> None:
    assert CROWD.speaker_means.mean(0).tolist() == pytest.approx([0, 0])
    spread = CROWD.speaker_means.T @ CROWD.speaker_means / 4 + CROWD.speaker_std**2 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(spread, torch.eye(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="speakers must be 1 or 4, got 3"):
        World(speakers=3)
