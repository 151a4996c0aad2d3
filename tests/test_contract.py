"""Every encoder, decoder, likelihood and objective keeps the contract of `mmseqvae.testing`.

On the batches that anyone's part is verified on, and on drawn shapes, lengths and holes.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.distributions.likelihoods import FRAME_LIKELIHOODS, SCALES
from mmseqvae.encoders import POOLINGS, FrameEncoder, TokenEncoder
from mmseqvae.objectives import OBJECTIVES, Objective
from mmseqvae.rnn.layer import CELLS
from mmseqvae.sequence import Sequence
from mmseqvae.testing import small_model, verify_decoder, verify_encoder, verify_objective
from mmseqvae.testing.contract import junk, longer

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


def verify(part: Part, batches: list[Sequence] | None = None) -> None:
    module = part()
    (verify_decoder if hasattr(module, "log_prob") else verify_encoder)(module, batches=batches)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@every_part
def test_every_part_keeps_the_contract(part: Part) -> None:
    verify(part)


@every_part
def test_parts_of_the_library_need_no_step(part: Part) -> None:
    """Nobody else's must do that: a model asks no part about a batch without a step."""
    values = torch.zeros(3, 0, dtype=torch.long) if part.tokens else torch.zeros(3, 0, C, dtype=torch.float64)
    verify(part, [Sequence(values, torch.zeros(3, dtype=torch.long))])


@every_part
@short
@given(data=st.data())
def test_every_part_keeps_the_contract_on_drawn_batches(part: Part, data: st.DataObject) -> None:
    verify(part, [data.draw(batches(part.tokens))])


@pytest.mark.parametrize(
    "part", [p for n, p in PARTS.items() if "Decoder" in n], ids=[n for n in PARTS if "Decoder" in n]
)
@short
@given(data=st.data())
def test_decoders_score_every_observed_step(part: Part, data: st.DataObject) -> None:
    x = data.draw(batches(part.tokens))
    assert part().log_prob(latents(len(x)), x)[x.mask].all()  # no scored step happens to be certain here


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
    vae, rows = small_model(), len(batch["text"])
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


KNOWN: dict[str, dict[str, Any]] = {
    "mmvae_plus": {"own_posterior": True},  # a mixture, whatever the fusion
    "cvae": {"untrained": ["text.decoder"]},  # what is given is not written
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


@every_objective
def test_every_objective_keeps_the_contract(objective: Objective) -> None:
    verify_objective(objective, **KNOWN.get(objective.__name__, {}))


@every_objective
@settings(max_examples=12)
@given(batch=model_batches())
def test_every_objective_keeps_the_contract_on_drawn_batches(objective: Objective, batch: dict[str, Sequence]) -> None:
    """With free bits, and anything missing."""
    free_bits = FREE_BITS.get(objective.__name__, {"free_bits": 0.05})
    verify_objective(objective, batches=[batch], **free_bits, **KNOWN.get(objective.__name__, {}))
