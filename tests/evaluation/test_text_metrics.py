"""Figures of texts: a VAE that has collapsed is the language model; shares and ratios whose answer is known."""

import math

import pytest
import torch

from mmseqvae.config import ModelConfig, TextConfig
from mmseqvae.data import Corpus, prepare
from mmseqvae.evaluation.language_model_baseline import build_language_model, negative_log_likelihood
from mmseqvae.evaluation.text_metrics import beside_language_model, sample_figures, text_metrics
from mmseqvae.pipeline.build import build
from mmseqvae.pipeline.trained_model import Trained

CONFIG = ModelConfig(latent=3, prior="standard", token_embedding=4, token_encoder=4, token_decoder=5)


@pytest.fixture
def corpus() -> Corpus:
    texts = ["play it", "rate it 5", "play", "it is 5"]
    rows = [{"text": text, "mood": text[:4], "split": split} for split in ("train", "test") for text in texts]
    rows.append({"mood": "play", "split": "test"})  # a text that is missing
    return prepare(rows, text=TextConfig(units="words"), labels=["mood"])


def untrained(corpus: Corpus) -> Trained:
    longest = {"text": 9}
    return Trained(build(corpus.front_ends, longest, CONFIG), corpus.front_ends, longest, CONFIG)


def test_a_collapsed_vae_is_the_language_model(corpus: Corpus) -> None:
    trained, alone = untrained(corpus), build_language_model(corpus, "text", CONFIG).eval()
    decoder, encoder = trained.model.modality("text").decoder, trained.model.modality("text").encoder
    alone.decoder.max_steps = decoder.max_steps
    for parameter in alone.parameters():
        torch.nn.init.normal_(parameter)
    decoder.load_state_dict({
        name: value if value.numel() else torch.zeros_like(decoder.state_dict()[name])
        for name, value in alone.decoder.state_dict().items()
    })  # fmt: skip
    torch.nn.init.zeros_(encoder.to_latent.weight)
    with torch.no_grad():
        encoder.to_latent.bias.copy_(torch.tensor([0.0] * 3 + [60.0] * 3))  # an expert that says nothing
    found = beside_language_model(trained, alone, corpus, ["test"], draws=7, progress=False)["test"]
    vae = found["vae"]
    assert found["ratio"] == pytest.approx(1, abs=1e-5)
    assert vae["perplexity"] == pytest.approx(found["language_model"]["perplexity"], rel=1e-4)
    assert vae["effective_draws"] == pytest.approx(7, abs=1e-3)
    assert vae["kl"] == pytest.approx(0, abs=1e-5)
    assert vae["mutual_information"] == pytest.approx(0, abs=1e-5)
    assert vae["active_units"] == 0
    assert vae["items"] == vae["mutual_information_items"] == 4
    nats = negative_log_likelihood(alone, corpus.datasets["test"], "text")
    tokens = 3 + 4 + 2 + 4  # words and ends
    assert vae["tokens_an_item"] == tokens / 4
    assert found["language_model"]["perplexity"] == pytest.approx(math.exp(float(nats.sum()) / tokens))
    to_latent = 3 * (4 + 5 + 5)  # to the inputs, the first state and the output
    assert vae["decoder_parameters"] - found["language_model"]["parameters"] == to_latent


def test_nats_of_the_text_are_those_of_the_model_whatever_else_stands_beside_it(corpus: Corpus) -> None:
    trained = untrained(corpus)
    found = text_metrics(trained, corpus.datasets["test"], draws=4000, seed=1, progress=False)
    batch = corpus.datasets["test"].__getitems__(range(4))
    exact = trained.model.log_prob({"text": batch["text"]}, ["text"], draws=4000, generator=torch.Generator())
    assert found["nll"] == pytest.approx(float(-exact.mean().detach()), abs=0.02)
    assert found["fitted"] is None
    assert found["mutual_information"] <= math.log(4)
    with pytest.raises(ValueError, match="no item"):
        text_metrics(trained, corpus.datasets["valid"])


def test_samples_that_are_the_real_texts_are_as_good_and_all_copied() -> None:
    real = ["a b", "a c"]
    seen: list[list[list[int]]] = []

    def perplexity(sequences: list[list[int]]) -> float:
        seen.append(sequences)
        return 2.0 * len(seen)

    def encode(text: str) -> list[int]:
        return [ord(symbol) for symbol in text if symbol != " "] + [0]

    found = sample_figures(["a b", "a d"], real, ["a b", "x"], encode, perplexity)
    assert (found["perplexity_sampled"], found["perplexity_real"]) == (2.0, 4.0)
    assert seen == [[[97, 98, 0], [97, 100, 0]], [[97, 98, 0], [97, 99, 0]]]
    assert found["distinct_2_sampled"] == found["distinct_2_real"] == 1.0
    assert (found["copied_from_training"]["hits"], found["copied_from_training"]["of"]) == (1, 2)
    assert found["tokens_real"] == 3
    with pytest.raises(ValueError, match="got 1 and 2"):
        sample_figures(["a"], real, [], encode, perplexity)
