"""What items lack of words is written in where the model is sure of it, and makes pairs of them."""

import numpy as np
import pytest
import torch

from mmseqvae.config import ModelConfig, TrainingConfig
from mmseqvae.data import DataWarning, SequenceDataset
from mmseqvae.data.dataset import Column
from mmseqvae.model import MultimodalVAE
from mmseqvae.pipeline.build import frame_modality, token_modality
from mmseqvae.pipeline.dataset_posteriors import encoded
from mmseqvae.sequence import Sequence
from mmseqvae.training.density_fitting import fit_conditionals
from mmseqvae.training.pseudo_labels import with_pseudo_labels

SIZES = ModelConfig(
    latent=3, token_embedding=4, token_encoder=6, token_decoder=6, frame_encoder=6, frame_inputs=5, frame_decoder=6,
)  # fmt: skip
ITEMS = 100
TYPED = 60  # those with a word; of the others there is the movement alone
WORD = [2, 2, 0]  # what the model writes, its end included


@pytest.fixture
def dataset() -> SequenceDataset:
    random = np.random.default_rng(0)
    lengths = np.full(ITEMS, 3)
    moves = Column(random.normal(size=(3 * ITEMS, 2)).astype(np.float32), np.arange(ITEMS) * 3, lengths)
    words = Column(random.integers(1, 4, 3 * ITEMS), np.arange(ITEMS) * 3, np.where(np.arange(ITEMS) < TYPED, 3, 0))
    ids = [str(number) for number in range(ITEMS)]
    return SequenceDataset(ids, ids, {"text": words, "move": moves})


def model_that_writes(sure: float) -> MultimodalVAE:
    """Untrained, but of a decoder that writes WORD whatever z is, each token of it with that probability."""
    torch.manual_seed(0)
    model = MultimodalVAE({"text": token_modality(4, 0, 3, SIZES), "move": frame_modality(2, 4, SIZES)}).eval()
    decoder = model.modality("text").decoder
    with torch.no_grad():
        decoder.to_logits.weight.zero_()
        decoder.to_logits.bias.copy_(torch.log(torch.tensor([(1 - sure) / 3] * 2 + [sure] + [(1 - sure) / 3])))
    return model


def test_items_without_words_get_those_that_the_model_is_sure_of(dataset: SequenceDataset) -> None:
    model = model_that_writes(0.99)  # so the word of two tokens, behind which the end is certain, has 0.98
    said = encoded(model, dataset)
    with pytest.warns(DataWarning) as told:
        whole = with_pseudo_labels(model, dataset, said, 0.97)
    assert [str(warning.message) for warning in told] == [
        "40 of 40 items without text are taken to have what is written"  # and none about moves, which are no words
    ]
    batch = dataset.__getitems__(list(range(TYPED, ITEMS)))
    batch["text"] = Sequence(torch.tensor([WORD] * (ITEMS - TYPED)), torch.full((ITEMS - TYPED,), 3))
    expected = model.encode(batch)
    torch.testing.assert_close(whole[torch.arange(ITEMS, 140)].experts.mean, expected.experts.mean)
    assert whole.present[:, ITEMS:].all()
    torch.testing.assert_close(whole[torch.arange(ITEMS)].experts.logvar, said.experts.logvar)
    assert len(with_pseudo_labels(model, dataset, said, 0.99).like) == ITEMS  # not as sure as that


def test_of_chosen_items_those_are_completed(dataset: SequenceDataset) -> None:
    model, items = model_that_writes(0.99), np.array([3, 70, 90])
    said = encoded(model, dataset, items=items)
    whole = with_pseudo_labels(model, dataset, said, 0.9, items)
    assert len(whole.like) == 5
    torch.testing.assert_close(whole.experts.mean[1, 3:], said.experts.mean[1, 1:])


def test_conditionals_are_fitted_to_completed_items_too(dataset: SequenceDataset) -> None:
    """A movement that is always written as one word makes that word stand for all movements without one."""
    text = {"text": Sequence(torch.tensor([WORD]), torch.tensor([3]))}
    answers = {}
    for sure in (None, 0.9, 0.999):
        model = model_that_writes(0.99)
        fit_conditionals(model, dataset, encoded(model, dataset), TrainingConfig(pseudo_label_threshold=sure))
        answers[sure] = model.posterior(text).mean
    torch.testing.assert_close(answers[None], answers[0.999], rtol=0, atol=0)
    assert not torch.allclose(answers[None], answers[0.9], atol=1e-3)


def test_a_probability_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"pseudo_label_threshold is a probability, between 0 and 1, got 1\.5"):
        TrainingConfig(pseudo_label_threshold=1.5)
