"""One contract for every encoder, every decoder and every likelihood, over drawn shapes, lengths and holes.

What lies in padding and in holes is junk (NaN, or tokens outside the vocabulary) wherever it is not said otherwise.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.distributions.likelihoods import FRAME_LIKELIHOODS, SCALES
from mmseqvae.encoders import POOLINGS, FrameEncoder, TokenEncoder
from mmseqvae.modality import Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.objectives import OBJECTIVES
from mmseqvae.rnn.layer import CELLS
from mmseqvae.sequence import Sequence

V, C, D, H, LONGEST = 5, 2, 3, 4, 20  # LONGEST passes a slice of the staircase


@dataclass(frozen=True)
class Part:
    """Something under contract: how it is built, and whether it reads tokens or frames."""

    build: Callable[[], nn.Module]
    tokens: bool

    def __call__(self) -> nn.Module:
        torch.manual_seed(0)
        part = self.build().double().eval()
        for parameter in part.parameters():  # learnt vectors that start at 0 would hide what they are mixed up with
            parameter.data += 0.1 * torch.randn_like(parameter)
        return part


def likelihood(kind: str, scale: str) -> nn.Module:
    return FRAME_LIKELIHOODS[kind](C) if kind == "bernoulli" else FRAME_LIKELIHOODS[kind](C, scale, floor=0.5)


ENCODERS = {
    f"{kind}-{pooling}-{'both' if both else 'one'}-{layers}": {
        "kind": kind,
        "pooling": pooling,
        "bidirectional": both,
        "layers": layers,
        "hidden": H,
    }
    for kind, pooling, (both, layers) in itertools.product(CELLS, POOLINGS, [(True, 1), (False, 2)])
}
ENCODERS["normalised"] = {"kind": "gru", "pooling": "last", "hidden": H, "mean_scale": 0.6}
PARTS: dict[str, Part] = {}
for name, how in ENCODERS.items():
    PARTS[f"TokenEncoder-{name}"] = Part(lambda how=how: TokenEncoder(V, D, embedding=3, **how), True)
    for r in (1, 3) if how["kind"] == "gru" else (2,):
        PARTS[f"FrameEncoder-{name}-r{r}"] = Part(lambda how=how, r=r: FrameEncoder(C, D, reduction=r, **how), False)
for kind, layers in itertools.product(CELLS, (1, 2)):
    PARTS[f"TokenDecoder-{kind}-{layers}"] = Part(
        lambda kind=kind, layers=layers: TokenDecoder(
            V, D, end=0, max_steps=LONGEST + 1, embedding=3, hidden=H, kind=kind, layers=layers
        ),
        True,
    )
    PARTS[f"FrameDecoder-{kind}-{layers}"] = Part(
        lambda kind=kind, layers=layers: FrameDecoder(
            likelihood("normal", "learnt"), D, max_steps=LONGEST, hidden=H, inputs=3, kind=kind, layers=layers
        ),
        False,
    )
for kind, scale, r in itertools.product(FRAME_LIKELIHOODS, SCALES, (1, 3)):
    PARTS[f"FrameDecoder-{kind}-{scale}-r{r}"] = Part(
        lambda kind=kind, scale=scale, r=r: FrameDecoder(
            likelihood(kind, scale), D, max_steps=LONGEST, hidden=H, inputs=3, reduction=r
        ),
        False,
    )

every_part = pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
short = settings(max_examples=6)


@st.composite
def batches(draw: st.DrawFn, tokens: bool, holes: bool = True) -> Sequence:
    """1 to 4 items of 0 to LONGEST steps, one in four of them missing, with up to 5 steps of padding and some holes."""
    lengths = draw(st.lists(st.one_of(st.just(0), *[st.integers(0, LONGEST)] * 3), min_size=1, max_size=4))
    steps = max(lengths) + draw(st.integers(0, 5))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    observed = None
    if holes and draw(st.booleans()):
        observed = torch.rand(len(lengths), steps, generator=rng) < draw(st.sampled_from([0.0, 0.5, 0.8]))
    if tokens:
        values = torch.randint(V, (len(lengths), steps), generator=rng)
    else:
        values = torch.rand(len(lengths), steps, C, generator=rng, dtype=torch.float64)  # fit for the Bernoulli too
    return Sequence(values, torch.tensor(lengths), observed)


def latents(rows: int) -> Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def run(part: nn.Module, x: Sequence, z: Tensor) -> Tensor:
    """What a part says about every item: [B, 2 D] of an expert, or the nats of its steps [B, LONGEST + 5]."""
    if hasattr(part, "log_prob"):
        nats = part.log_prob(z, x)
        return torch.nn.functional.pad(nats, (0, LONGEST + 10 - nats.shape[1]))
    expert = part(x)
    return torch.cat([expert.mean, expert.logvar], -1)


def junk(x: Sequence, where: Tensor) -> Sequence:
    if x.values.is_floating_point():
        return replace(x, values=torch.where(where[..., None], torch.nan, x.values))
    return replace(x, values=torch.where(where, -(10**6), x.values))


def longer(x: Sequence, by: int) -> Sequence:
    values = torch.cat([x.values, x.values.new_full((len(x), by, *x.values.shape[2:]), 1)], 1)
    observed = None if x.observed is None else torch.cat([x.observed, x.observed.new_ones(len(x), by)], 1)
    return Sequence(values, x.lengths, observed)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@every_part
@short
@given(data=st.data())
def test_what_padding_and_holes_hold_changes_nothing(part: Part, data: st.DataObject) -> None:
    x = data.draw(batches(part.tokens))
    module, z = part(), latents(len(x))
    expected = run(module, x, z)
    assert expected.isfinite().all()
    same(run(module, junk(x, ~x.valid), z), expected)
    same(run(module, junk(x, ~x.mask), z), expected)


@every_part
@short
@given(data=st.data())
def test_alone_is_as_in_a_batch(part: Part, data: st.DataObject) -> None:
    x = data.draw(batches(part.tokens))
    module, z = part(), latents(len(x))
    expected = run(module, x, z)
    for i, length in enumerate(x.lengths.tolist()):
        alone = Sequence(
            x.values[i : i + 1, :length],
            x.lengths[i : i + 1],
            None if x.observed is None else x.observed[i : i + 1, :length],
        )
        same(run(module, alone, z[i : i + 1]), expected[i : i + 1])


@every_part
@short
@given(data=st.data(), by=st.integers(1, 5))
def test_longer_padding_changes_nothing(part: Part, data: st.DataObject, by: int) -> None:
    x = data.draw(batches(part.tokens))
    module, z = part(), latents(len(x))
    same(run(module, longer(x, by), z), run(module, x, z))


@every_part
@short
@given(data=st.data())
def test_gradients_are_finite_and_free_of_padding(part: Part, data: st.DataObject) -> None:
    """Every parameter has a finite gradient when an item is there, missing ones beside it or not; junk adds nothing."""
    x = data.draw(batches(part.tokens))
    z = latents(len(x))
    gradients = []
    for view in (x, junk(x, ~x.mask)):
        module = part()
        # squares, so that every output carries its own gradient; what a missing item says counts for nothing
        torch.where(x.present[:, None], run(module, view, z), 0).square().sum().backward()
        gradients.append({name: p.grad for name, p in module.named_parameters()})
    for name, gradient in gradients[0].items():
        if gradient is None:
            assert not x.present.any(), f"{name} has no gradient, although an item is there"
            assert gradients[1][name] is None
        elif gradient is not None:
            assert gradient.isfinite().all(), name
            same(gradients[1][name], gradient)
            if not x.present.any():
                assert not gradient.any(), f"{name} learns from nothing"


@every_part
@pytest.mark.parametrize("steps", [0, 4])
def test_a_wholly_missing_batch_works(part: Part, steps: int) -> None:
    values = torch.zeros(3, steps, dtype=torch.long) if part.tokens else torch.full((3, steps, C), torch.nan).double()
    x = Sequence(values, torch.zeros(3, dtype=torch.long))
    out = run(part(), x, latents(3))
    assert out.isfinite().all()
    same(out, out[:1].expand_as(out))
    if hasattr(part(), "log_prob"):
        assert not out.any()


@pytest.mark.parametrize(
    "part", [p for n, p in PARTS.items() if "Decoder" in n], ids=[n for n in PARTS if "Decoder" in n]
)
@short
@given(data=st.data())
def test_decoders_score_observed_steps_only_and_stack_draws(part: Part, data: st.DataObject) -> None:
    x = data.draw(batches(part.tokens))
    module = part()
    z = torch.stack([latents(len(x)), -latents(len(x))])
    nats = module.log_prob(z, x)
    assert nats.shape == (2, len(x), x.steps)
    assert not nats[:, ~x.mask].any()
    assert nats[:, x.mask].all()  # no scored step happens to be certain here
    same(nats[1], module.log_prob(z[1], x))


def model() -> MultimodalVAE:
    torch.manual_seed(0)
    frames = FrameDecoder(likelihood("laplace", "predicted"), D, max_steps=LONGEST, reduction=2, hidden=H, inputs=3)
    return (
        MultimodalVAE(
            {
                "text": Modality(
                    TokenEncoder(V, D, embedding=3, hidden=H),
                    TokenDecoder(V, D, end=0, max_steps=LONGEST + 1, embedding=3, hidden=H),
                ),
                "audio": Modality(FrameEncoder(C, D, hidden=H, reduction=2), frames),
                "label": Modality(None, TokenDecoder(V, D, end=0, max_steps=LONGEST + 1, embedding=3, hidden=H)),
            }
        )
        .double()
        .eval()
    )


@st.composite
def model_batches(draw: st.DrawFn) -> dict[str, Sequence]:
    """Batches of three modalities whose items miss anything, in any combination."""
    rows = draw(st.integers(1, 4))
    batch = {}
    for name, tokens in {"text": True, "audio": False, "label": True}.items():
        lengths = torch.tensor(draw(st.lists(st.integers(0, 6), min_size=rows, max_size=rows)))
        values = torch.randint(V, (rows, 7)) if tokens else torch.rand(rows, 7, C, dtype=torch.float64)
        batch[name] = Sequence(values, lengths)
    return batch


@given(batch=model_batches())
def test_the_model_keeps_the_contract(batch: dict[str, Sequence]) -> None:
    vae, rows = model(), len(batch["text"])
    z = latents(rows)
    q, nats = vae.posterior(batch), vae.log_likelihood(z, batch)
    altered = {name: junk(longer(x, 3), ~longer(x, 3).mask) for name, x in batch.items()}
    same(vae.posterior(altered).mean, q.mean)
    same(vae.posterior(altered).logvar, q.logvar)
    for name, score in vae.log_likelihood(z, altered).items():
        same(score, nats[name])
    for i in range(rows):
        alone = {name: x[i : i + 1] for name, x in batch.items() if x.lengths[i]} or {"text": batch["text"][i : i + 1]}
        same(vae.posterior(alone).mean, q.mean[i : i + 1])
        for name, score in vae.log_likelihood(z[i : i + 1], alone).items():
            same(score, nats[name][i : i + 1])


FREE_BITS: dict[str, dict[str, float]] = {
    "importance": {},
    "mmvae_plus": {},
    "cvae": {"free_bits_item": 0.05},
}  # else a dimension


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
@given(batch=model_batches())
def test_objectives_keep_the_contract(objective: Callable, batch: dict[str, Sequence]) -> None:
    """With anything missing: finite, no gradient that is not, and the same for NaN padding."""
    altered = {name: junk(x, ~x.mask) for name, x in batch.items()}
    found = []
    for view in (batch, altered):
        vae = model()
        torch.manual_seed(1)
        terms = objective(vae, view, **FREE_BITS.get(objective.__name__, {"free_bits": 0.05}))
        terms.objective.sum().backward()
        found.append((terms, {name: p.grad for name, p in vae.named_parameters()}))
    (terms, gradients), (other, other_gradients) = found
    for field in ("objective", "elbo", "kl"):
        assert getattr(terms, field).isfinite().all()
        same(getattr(other, field), getattr(terms, field))
    nothing = ~torch.stack([x.present for x in batch.values()]).any(0)
    same(terms.elbo[nothing], torch.zeros_like(terms.elbo[nothing]))
    for name, gradient in gradients.items():
        modality = name.split(".")[1]
        if gradient is None and not (objective is OBJECTIVES["cvae"] and "text.decoder" in name):  # what is given
            assert not batch[modality].present.any(), f"{name} has no gradient, although an item is there"
        elif gradient is not None:
            assert gradient.isfinite().all(), name
            same(other_gradients[name], gradient)
