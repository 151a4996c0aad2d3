"""An objective written from scratch passes; each broken one is told what it does wrong."""

import pytest
import torch
from torch import Tensor

from mmseqvae.model import Batch, MultimodalVAE
from mmseqvae.objectives import Terms, elbo, mmvae_plus
from mmseqvae.objectives.base import Weights, weighted
from mmseqvae.testing import ContractError, verify_objective
from mmseqvae.testing.objectives import small_batches, small_model


def mean_field(
    model: MultimodalVAE, batch: Batch, *, beta: float = 1, free_bits: float = 0, free_bits_item: float = 0,
    weights: Weights = None,
) -> Terms:  # fmt: skip
    """The ELBO from scratch."""
    q = model.encode(batch).posterior()
    scores, kl = model.log_likelihood(q.rsample(), batch), q.kl().sum(-1)
    return Terms(weighted(scores, weights) - beta * kl, sum(scores.values(), -kl), scores, kl)


def altered(**changes):
    """`mean_field` with fields of its terms changed: {field: function of the terms and the batch}."""

    def objective(model: MultimodalVAE, batch: Batch, **options) -> Terms:
        terms = mean_field(model, batch, **options)
        return Terms(**{**vars(terms), **{name: change(terms, batch) for name, change in changes.items()}})

    return objective


def averages(model, batch, **options) -> Terms:
    terms = mean_field(model, batch, **options)
    return Terms(terms.objective.mean(), terms.elbo.mean(), terms.reconstruction, terms.kl)


def reads_padding(terms: Terms, batch: Batch) -> Tensor:
    return terms.objective + 0.01 * batch["audio"].values.nan_to_num(9).sum((1, 2))


def ignores_options(model, batch, **options) -> Terms:
    return mean_field(model, batch)


def takes_no_weights(model, batch, beta=1.0, free_bits=0.0, free_bits_item=0.0) -> Terms:
    return mean_field(model, batch, beta=beta)


def reports_the_objective(model, batch, **options) -> Terms:
    terms = mean_field(model, batch, **options)
    return Terms(terms.objective, terms.objective, terms.reconstruction, terms.kl)


def reports_a_scaled_bound(model, batch, **options) -> Terms:
    terms = mean_field(model, batch, **options)
    scores = {name: 2 * score for name, score in terms.reconstruction.items()}
    return Terms(terms.objective, sum(scores.values(), -terms.kl), scores, terms.kl)


def returns_a_loss(model, batch, **options) -> Tensor:
    return -mean_field(model, batch, **options).objective


def needs_everything(model, batch, **options) -> Terms:
    if not all(x.present.any() for x in batch.values()):
        raise RuntimeError("no text")
    return mean_field(model, batch, **options)


def trains_no_label(model, batch, **options) -> Terms:
    with torch.no_grad():
        silent = model.log_likelihood(model.encode(batch).posterior().mean, batch, ["label"])["label"]
    terms = mean_field(model, {name: x for name, x in batch.items() if name != "label"}, **options)
    scores = {**terms.reconstruction, "label": silent}
    return Terms(terms.objective, sum(scores.values(), -terms.kl), scores, terms.kl)


def costs(terms: Terms, batch: Batch) -> Tensor:
    return terms.objective - 1


def test_own_and_known_objectives_pass() -> None:
    noise = torch.get_rng_state()
    verify_objective(mean_field)
    verify_objective(elbo, free_bits=0.5)
    assert torch.equal(torch.get_rng_state(), noise)


def test_the_batches_hold_every_combination() -> None:
    combinations = {
        tuple(x.present[i].item() for x in b.values()) for b in small_batches() for i in range(len(b["text"]))
    }
    assert len(combinations) == 8
    assert any((x.valid & ~x.mask).any() for b in small_batches() for x in b.values())
    assert set(small_batches()[0]) == set(small_model().modalities)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (averages, r"`objective` of your objective has shape \[\], not \[B\] = \[8\]\. Return every item's own nats"),
        (altered(objective=lambda t, b: t.objective.mean().expand_as(t.objective)), "rows in which nothing was"),
        (altered(objective=lambda t, b: t.objective - t.objective.mean() * t.objective.sign().abs()),
         r"mixes the rows of a batch: what row \d counts depends on the frames of rows \[\d.*without mean or sum"),
        (altered(objective=lambda t, b: t.objective / b["audio"].lengths), "`objective` .* is not finite on"),
        (altered(objective=reads_padding), "reads padding: its objective for row"),
        (altered(objective=costs), r"`objective` .* is \[-1\.0\] for rows in which nothing was observed.*must be 0"),
        (altered(objective=lambda t, b: t.objective.detach()), r"gets no gradient from a batch of lengths text \[3, 4"),
        (altered(elbo=lambda t, b: t.elbo + 1), r"`elbo` .* the sum of `reconstruction` less `kl`"),
        (altered(kl=lambda t, b: 2 * t.kl, elbo=lambda t, b: t.elbo - t.kl), "that of `model.encode"),
        (reports_a_scaled_bound, r"that of `model\.encode\(batch\)\.posterior\(\)` \(or say own_posterior=True\)"),
        (mmvae_plus, r"that of `model\.encode\(batch\)\.posterior\(\)`"),
        (reports_the_objective, r"it must be the same with beta 0\.1 and with weights as with 1"),
        (ignores_options, "takes beta and weights and uses neither"),
        (takes_no_weights, "it raises TypeError.*'weights'.*Training passes beta"),
        (returns_a_loss, r"returns a Tensor: it must be objectives\.base\.Terms"),
        (needs_everything, r"fails on a batch of lengths text \[3, 0\], audio \[0, 0\].*RuntimeError: no text"),
        (trains_no_label, r"label\.decoder\.\S+ of your objective gets no gradient"),
    ],
)  # fmt: skip
def test_broken_objectives_are_told(objective, message: str) -> None:
    with pytest.raises(ContractError, match=message) as told:
        verify_objective(objective)
    assert "\n" not in str(told.value)


def test_what_is_left_untrained_is_said() -> None:
    verify_objective(trains_no_label, untrained=["label.decoder"])


def test_another_posterior_is_said() -> None:
    verify_objective(mmvae_plus, own_posterior=True)
