"""Checks of objectives, on a small model whose items miss anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.distributions.likelihoods import FRAME_LIKELIHOODS
from mmseqvae.encoders import FrameEncoder, TokenEncoder
from mmseqvae.modality import Batch, Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.objectives.base import Objective, Terms, rate
from mmseqvae.sequence import Sequence
from mmseqvae.testing.contract import (
    READ_WHAT_IS_THERE,
    ContractError,
    check_gradients,
    check_same,
    chosen,
    gradients,
    junk,
    made_batch,
    stirred,
    told,
)

VOCABULARY, CHANNELS, LATENT = 5, 2, 3  # of the small model; the token 0 ends
# {modality: lengths}: every combination of what may be there, each alone, nothing
LENGTHS = [
    {"text": [3, 4, 2, 0, 1, 0, 0, 0], "audio": [5, 6, 0, 4, 0, 2, 0, 0], "label": [2, 0, 1, 2, 0, 0, 2, 0]},
    {"text": [3, 0], "audio": [0, 0], "label": [0, 0]},
    {"text": [0, 0], "audio": [0, 5], "label": [0, 2]},
    {"text": [0], "audio": [0], "label": [0]},
]
SHARP = -40.0  # log-variance of experts that leave no chance to a draw
UNREDUCED = "Return every item's own nats, [B], without mean or sum over the batch: the training step averages."


def small_model() -> MultimodalVAE:
    """The model that objectives are verified on: text and audio are read and written, a label is written only.

    Returns:
        A model with the prior N(0, I), in float64: tokens 0..4, of which 0 ends, and frames of 2 channels in [0, 1).
    """
    torch.manual_seed(0)
    how: dict[str, Any] = {"end": 0, "max_steps": 32, "embedding": 3, "hidden": 4}
    laplace = FRAME_LIKELIHOODS["laplace"](CHANNELS, "predicted", floor=0.5)
    reader = TokenEncoder(VOCABULARY, LATENT, embedding=3, hidden=4)
    listener = FrameEncoder(CHANNELS, LATENT, hidden=4, reduction=2)
    speaker = FrameDecoder(laplace, LATENT, max_steps=32, reduction=2, hidden=4, inputs=3)
    modalities = {
        "text": Modality(reader, TokenDecoder(VOCABULARY, LATENT, **how)),
        "audio": Modality(listener, speaker),
        "label": Modality(None, TokenDecoder(VOCABULARY, LATENT, **how)),
    }
    model = MultimodalVAE(modalities)
    stirred(model)
    return model.double().eval()


def small_batches() -> list[Batch]:
    """Batches for `small_model`, one for each of `LENGTHS`, with padding and, in audio, holes."""
    noise = torch.Generator().manual_seed(0)
    kinds: dict[str, Any] = {name: {"vocabulary": VOCABULARY, "end": 0} for name in ("text", "label")}
    kinds["audio"] = {"channels": CHANNELS}
    return [
        {
            name: made_batch(lengths, 1, 0.8 if name == "audio" else 1, noise=noise, **kinds[name])
            for name, lengths in batch.items()
        }
        for batch in LENGTHS
    ]


def verify_objective(
    objective: Objective,
    *,
    untrained: Iterable[str] = (),
    own_posterior: bool = False,
    batches: Iterable[Batch] | None = None,
    **options: Any,
) -> None:
    """Check that a function `(model, batch, ...) -> Terms` counts unreduced nats an item, whatever is missing.

    Args:
        objective: the function.
        untrained: parts of `small_model` that it does not train, such as "text.decoder".
        own_posterior: its `elbo` is that of another posterior than `model.encode(batch).posterior()`, so that its
            value is not checked, only that it is made of `reconstruction` and `kl`.
        batches: {modality: Sequence} for `small_model`, in place of its own.
        options: what the objective is called with besides, such as free_bits=0.1.

    Raises:
        ContractError: an AssertionError that says what is wrong.
        ValueError: `batches` is empty.
    """
    untrained = tuple(untrained)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for batch in chosen(batches, small_batches()):
            terms = _check_padding(objective, batch, options, untrained)
            _check_elbo(objective, batch, options, terms)
            _check_rows_apart(objective, batch, options)
            if not own_posterior:
                _check_known_elbo(objective, batch, options)


def _terms(objective: Objective, model: MultimodalVAE, batch: Batch, options: dict[str, Any]) -> Terms:
    """What it returns, of the right shapes and finite; the same noise at every call."""
    common = {"beta": 1.0, "free_bits": 0.0, "free_bits_item": 0.0, "weights": None}
    torch.manual_seed(1)
    with told(
        f"your objective fails on {_described(batch)}",
        "Training passes beta, free_bits, free_bits_item and weights by name; an absent item has length 0.",
    ):
        terms = objective(model, batch, **common | options)
    if not all(hasattr(terms, name) for name in ("objective", "elbo", "reconstruction", "kl")):
        raise ContractError(f"your objective returns a {type(terms).__name__}: it must be objectives.base.Terms")
    rows = len(next(iter(batch.values())))
    for name, value in _numbers(terms).items():
        if tuple(value.shape) != (rows,):
            raise ContractError(
                f"`{name}` of your objective has shape {list(value.shape)}, not [B] = [{rows}]. {UNREDUCED}"
            )
        if not value.isfinite().all():
            raise ContractError(
                f"`{name}` of your objective is not finite on {_described(batch)}: {value.tolist()}. What a missing "
                "modality says is any number: choose by `encoded.here(name)` with `torch.where`"
            )
    return terms


def _numbers(terms: Terms) -> dict[str, Tensor]:
    scores = {f"reconstruction of {name}": score for name, score in terms.reconstruction.items()}
    return {"objective": terms.objective, "elbo": terms.elbo, "kl": terms.kl, **scores}


def _described(batch: Batch) -> str:
    return "a batch of lengths " + ", ".join(f"{name} {x.lengths.tolist()}" for name, x in batch.items())


def _there(batch: Batch, names: Iterable[str] | None = None) -> Tensor:
    """[B]: one of the modalities is there, by default any."""
    return torch.stack([batch[name].present for name in names or batch]).any(0)


def _maximised(objective: Objective, batch: Batch, options: dict[str, Any]) -> tuple[Terms, dict[str, Tensor | None]]:
    """The terms, and the gradients of the objective in all parameters, of those in parts that nothing needs too."""
    model = small_model()
    terms = _terms(objective, model, batch, options)
    leaves = {name.removeprefix("modalities."): parameter for name, parameter in model.named_parameters()}
    return terms, gradients(terms.objective.sum(), leaves)


def _check_padding(objective: Objective, batch: Batch, options: dict[str, Any], untrained: tuple[str, ...]) -> Terms:
    """What padding and holes hold changes nothing, and every part of a modality that is there is trained."""
    terms, clean = _maximised(objective, batch, options)
    again, dirty = _maximised(objective, {name: junk(x, ~x.mask) for name, x in batch.items()}, options)
    before, now = ({name: value[:, None] for name, value in _numbers(t).items()} for t in (terms, again))
    x = next(iter(batch.values()))
    check_same(
        "your objective reads padding", now, before, x, "when what was not observed held junk", READ_WHAT_IS_THERE
    )
    for modality, own in batch.items():
        mine = {name: gradient for name, gradient in clean.items() if name.startswith(f"{modality}.")}
        check_gradients("objective", mine, dirty, bool(own.present.any()), _described(batch), untrained)
    return terms


def _check_elbo(objective: Objective, batch: Batch, options: dict[str, Any], terms: Terms) -> None:
    """`elbo` is made of the other terms, whatever beta and weights are; an item of which nothing is there costs 0."""
    bound = sum(terms.reconstruction.values(), -terms.kl)
    _same_elbo(terms.elbo, bound, "the sum of `reconstruction` less `kl`")
    nothing = ~_there(batch)
    costs = {"elbo": terms.elbo, "kl": terms.kl}
    if not options.get("free_bits") and not options.get("free_bits_item"):  # a floor under the KL is for every row
        costs["objective"] = terms.objective
    for name, value in costs.items():
        if value[nothing].any():
            raise ContractError(
                f"`{name}` of your objective is {value[nothing].tolist()} for rows in which nothing was observed "
                f"({_described(batch)}): it must be 0, since their posterior is the prior and there is nothing to score"
            )
    other = _terms(
        objective, small_model(), batch, options | {"beta": 0.1, "weights": {"text": 0.5, "audio": 2, "label": 3}}
    )
    _same_elbo(
        other.elbo, terms.elbo, "the same with beta 0.1 and with weights as with 1: both are of `objective` alone"
    )
    if terms.objective.any() and torch.equal(other.objective, terms.objective):
        raise ContractError("your objective takes beta and weights and uses neither: it is the same with others")


def _check_rows_apart(objective: Objective, batch: Batch, options: dict[str, Any]) -> None:
    """The objective of an item has no gradient in the frames of another one."""
    audio = batch["audio"]
    values = audio.filled().requires_grad_()
    own = {**batch, "audio": Sequence(values, audio.lengths, audio.observed)}
    objectives = _terms(objective, small_model(), own, options).objective
    for i in range(len(audio)):
        found = gradients(objectives[i], {"frames": values}, keep=True)["frames"]
        others = [j for j in range(len(audio)) if found is not None and j != i and found[j].any()]
        if others:
            raise ContractError(
                f"your objective mixes the rows of a batch: what row {i} counts depends on the frames of rows {others} "
                f"in {_described(batch)}. {UNREDUCED}"
            )


def _check_known_elbo(objective: Objective, batch: Batch, options: dict[str, Any]) -> None:
    """Where experts leave nothing to chance, the bound is sum_m log p(x_m | mean) - KL(q || N(0, I)) at any draw."""
    model = small_model()
    for name in model.readable:
        layer = cast(nn.Linear, cast(nn.Module, model.modality(name).encoder).to_latent)
        layer.weight.data[LATENT:], layer.bias.data[LATENT:] = 0, SHARP
    q = model.encode(batch).posterior()
    expected = sum(model.log_likelihood(q.mean, batch).values(), -rate(q, model.standard, q.mean).kl)
    known = _there(batch, model.readable)  # else z is any draw of the prior
    found = _terms(objective, model, batch, options).elbo
    _same_elbo(found[known], expected[known], "that of `model.encode(batch).posterior()` (or say own_posterior=True)")


def _same_elbo(found: Tensor, expected: Tensor, what: str) -> None:
    if not torch.allclose(found, expected, rtol=1e-6, atol=1e-6):
        raise ContractError(
            f"`elbo` of your objective is {found.tolist()}, but it must be {what}: {expected.tolist()}. It is the "
            "bound sum_m log p(x_m | z) - KL(q || prior) by which trainings are compared: no beta, free bits or weights"
        )
