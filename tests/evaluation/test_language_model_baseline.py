"""A language model without latent: a decoder without its latent, a proper distribution, stopped in time."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmseqvae.config import ModelConfig, TrainingConfig
from mmseqvae.data import Corpus, prepare
from mmseqvae.decoders import TokenDecoder
from mmseqvae.decoding import TokenSampling
from mmseqvae.evaluation.language_model_baseline import LanguageModel, fit_language_model, negative_log_likelihood
from mmseqvae.recipe import language_model_or_load
from mmseqvae.sequence import Sequence

CONFIG = ModelConfig(token_embedding=5, token_decoder=6, input_dropout=0.0)
TRAINING = TrainingConfig(epochs=30, batch_size=8, learning_rate=0.03, warm_up=5, ema_decay=0.9, threads=1)


def sequences(items: list[list[int]]) -> Sequence:
    return Sequence.from_list([torch.tensor(item) for item in items])


def made(train: list[str], valid: list[str]) -> Corpus:
    rows = [{"text": text, "split": "train"} for text in train] + [{"text": text, "split": "valid"} for text in valid]
    return prepare(rows)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_probabilities_of_all_sequences_sum_to_one(kind: str) -> None:
    model = LanguageModel(3, end=0, max_steps=4, embedding=2, hidden=3, kind=kind).double().eval()
    every = [[*body, 0] for length in range(4) for body in itertools.product((1, 2), repeat=length)]
    assert float(model.log_prob(sequences(every)).logsumexp(0).detach()) == pytest.approx(0, abs=1e-12)


def test_without_weights_every_token_costs_ln_v() -> None:
    model = LanguageModel(7, end=0, max_steps=9, hidden=4).eval()
    torch.nn.init.zeros_(model.decoder.to_logits.weight)
    torch.nn.init.zeros_(model.decoder.to_logits.bias)
    found = model.log_prob(sequences([[3, 0], [5, 6, 1, 0], []]))
    assert found.tolist() == pytest.approx([-2 * math.log(7), -4 * math.log(7), 0])


def test_a_decoder_that_ignores_its_latent_is_the_language_model() -> None:
    model = LanguageModel(5, end=0, max_steps=9, hidden=4).eval()
    decoder = TokenDecoder(5, 3, end=0, max_steps=9, hidden=4).eval()
    for parameter in model.decoder.parameters():
        torch.nn.init.normal_(parameter)
    decoder.load_state_dict({name: value if value.numel() else torch.zeros_like(decoder.state_dict()[name])
                             for name, value in model.decoder.state_dict().items()})  # fmt: skip
    x = sequences([[3, 0], [4, 1, 2, 0]])
    torch.testing.assert_close(model.log_prob(x), decoder.log_prob(torch.randn(2, 3), x).sum(-1))


def test_samples_come_from_the_law() -> None:
    model = LanguageModel(3, end=0, max_steps=3, embedding=2, hidden=3).eval()
    drawn = model.sample(4000, TokenSampling(temperature=1.0), torch.Generator().manual_seed(0))
    share = (drawn.lengths == 1).float().mean()
    assert float(share) == pytest.approx(float(model.log_prob(sequences([[0]])).exp()), abs=0.03)


def test_fitting_learns_what_is_certain_and_returns_the_best_epoch() -> None:
    corpus = made(["ab"] * 30 + ["abab"] * 10, ["ab"] * 3 + ["abab"])
    model, reached = fit_language_model(corpus, "text", CONFIG, TRAINING, progress=False)
    nats = negative_log_likelihood(model, corpus.datasets["valid"], "text")
    assert float(nats.mean()) == pytest.approx(reached["valid_nll"], abs=1e-5)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))  # of which of the two it is: all that is to be told
    assert entropy < reached["valid_nll"] < entropy + 0.1
    assert not model.training


def test_it_stops_when_validation_no_longer_gains() -> None:
    corpus = made(["ab"] * 30, ["ba"] * 4)  # the better it knows the one, the less it thinks of the other
    _, reached = fit_language_model(corpus, "text", CONFIG, replace(TRAINING, patience=3), progress=False)
    assert reached["epochs"] == reached["best_epoch"] + 3 < TRAINING.epochs


def test_the_same_seed_gives_the_same_model() -> None:
    corpus = made(["ab", "ba"] * 8, ["ab"])
    once, again = (fit_language_model(corpus, "text", CONFIG, replace(TRAINING, epochs=2), False)[0] for _ in range(2))
    for a, b in zip(once.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_there_is_loaded_unless_it_is_of_other_settings(tmp_path: Path) -> None:
    corpus, how = made(["ab", "ba"] * 8, ["ab"]), replace(TRAINING, epochs=2)
    first = language_model_or_load(corpus, "text", tmp_path, CONFIG, how)
    written = (tmp_path / "language_model.safetensors").stat().st_mtime_ns
    again = language_model_or_load(corpus, "text", tmp_path, CONFIG, how)
    assert (tmp_path / "language_model.safetensors").stat().st_mtime_ns == written
    valid = corpus.datasets["valid"]
    assert torch.equal(negative_log_likelihood(first, valid, "text"), negative_log_likelihood(again, valid, "text"))
    language_model_or_load(corpus, "text", tmp_path, CONFIG, replace(how, seed=1))
    assert (tmp_path / "language_model.safetensors").stat().st_mtime_ns != written


def test_what_cannot_be_fitted_is_named() -> None:
    corpus = made(["ab", "ba"], [])
    with pytest.raises(ValueError, match="valid has none"):
        fit_language_model(corpus, "text", CONFIG, TRAINING)
    with pytest.raises(ValueError, match="audio is not"):
        fit_language_model(corpus, "audio", CONFIG, TRAINING)
