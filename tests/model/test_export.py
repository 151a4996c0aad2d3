"""Exported, compiled and traced programs give what the fastest kernel gives, at shapes that they were not made from."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.utils import _pytree as pytree

from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.decoding import FrameSampling
from mmseqvae.distributions.gaussian import Gaussian
from mmseqvae.distributions.likelihoods import Normal
from mmseqvae.encoders import FrameEncoder, TokenEncoder
from mmseqvae.inference import DecoderStep
from mmseqvae.rnn.autoregressive import PreparedSteps, steps
from mmseqvae.rnn.layer import CELLS
from mmseqvae.sequence import Sequence

V, C, D, H = 6, 3, 4, 5
BATCH, TIME = Dim("batch"), Dim("time")
SHAPES = [(1, 1), (1, 9), (5, 2), (2, 13)]  # others than the example's; neither 13 nor 2 is a multiple of 3
every_kind = pytest.mark.parametrize("kind", CELLS)
EXAMPLE = (3, 7)


def batch(tokens: bool, rows: int, time: int, holes: bool, missing: bool = False) -> Sequence:
    rng = torch.Generator().manual_seed(100 * rows + time)
    values = torch.randint(V, (rows, time), generator=rng) if tokens else torch.randn(rows, time, C, generator=rng)
    lengths = torch.randint(0, time + 1, (rows,), generator=rng) * (not missing)
    return Sequence(values, lengths, torch.rand(rows, time, generator=rng) < 0.7 if holes else None)


def made(tokens: bool, **how: Any) -> nn.Module:
    encoder = TokenEncoder(V, D, embedding=3, hidden=H, **how) if tokens else FrameEncoder(C, D, hidden=H, **how)
    for parameter in encoder.parameters():  # learnt vectors that start at 0 would hide what they are mixed up with
        parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder.eval()


def close(found: Any, expected: Any) -> None:
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def exported(encoder: nn.Module, x: Sequence, strict: bool = False) -> torch.export.ExportedProgram:
    by_step = {0: BATCH, 1: TIME}
    shapes = [by_step, {0: BATCH}, *([by_step] if x.observed is not None else [])]
    return export(encoder, (x,), dynamic_shapes=(shapes,), strict=strict)


@pytest.mark.parametrize(
    ("tokens", "holes", "strict", "how"),
    [
        (True, False, False, {"kind": "gru", "pooling": "last"}),
        (True, True, True, {"kind": "lstm", "pooling": "max"}),
        (True, True, False, {"kind": "tanh", "pooling": "mean", "bidirectional": False, "layers": 2}),
        (False, False, True, {"kind": "gru", "pooling": "mean", "layers": 2, "mean_scale": 0.5}),
        (False, True, False, {"kind": "lstm", "pooling": "last", "bidirectional": False, "reduction": 3}),
        (False, False, False, {"kind": "tanh", "pooling": "max", "reduction": 3}),
        (False, True, True, {"kind": "gru", "pooling": "last", "reduction": 3}),
    ],
)
def test_exported_encoders_run_on_any_shape(tokens: bool, holes: bool, strict: bool, how: dict[str, Any]) -> None:
    encoder = made(tokens, **how)
    program = exported(encoder, batch(tokens, *EXAMPLE, holes), strict).module()
    for rows, time in SHAPES:
        x = batch(tokens, rows, time, holes)
        found = program(x)
        assert isinstance(found, Gaussian)
        close(found, encoder(x))
    nothing = batch(tokens, 3, 4, holes, missing=True)
    close(program(nothing), encoder(nothing))


def test_exported_encoders_are_saved_and_have_gradients() -> None:
    encoder = made(True)
    torch.export.save(exported(encoder, batch(True, *EXAMPLE, False)), file := io.BytesIO())
    file.seek(0)
    program, x = torch.export.load(file).module(), batch(True, 4, 9, False)
    close(program(x), encoder(x))
    found = []
    for module in (encoder, program):
        q = module(x)
        (q.mean.square() + q.logvar).sum().backward()
        found.append({name: parameter.grad for name, parameter in module.named_parameters()})
    assert found[0].keys() == found[1].keys()
    close(found[1], found[0])


@every_kind
def test_exported_steps_draw_what_free_running_draws(kind: str) -> None:
    how = {"max_steps": 12, "hidden": H, "kind": kind, "layers": 2}
    text = TokenDecoder(V, D, end=0, embedding=3, never_first=(0, 4), **how).eval()
    sound = FrameDecoder(Normal(C), D, inputs=4, reduction=3, **how).eval()
    sound.to_end.bias.data[0] = 1000.0  # only the limit ends a sequence
    for decoder, example in ((text, torch.tensor([1, 2, 3])), (sound, torch.randn(3, 3 * C))):
        module, z = DecoderStep(decoder), torch.randn(3, D)
        rows = [tuple({0: BATCH} for _ in layer) for layer in module(z)[1]]
        first = export(module, (z,), dynamic_shapes=({0: BATCH},)).module()
        inputs = z, example, module(z)[1]
        later = export(module, inputs, dynamic_shapes=({0: BATCH}, {0: BATCH}, rows)).module()
        for count in (1, 5):
            z = torch.randn(count, D)
            with torch.no_grad():
                (tokens_drawn if decoder is text else frames_drawn)(decoder, z, first, later)


def tokens_drawn(text: TokenDecoder, z: Tensor, first: nn.Module, later: nn.Module) -> None:
    """Greedy tokens, and the logits that they are the largest of."""
    step = steps(text.net, z, 6, text.embedding)
    assert isinstance(step, PreparedSteps) == (text.net.rnn.kind != "lstm")
    token, (outputs, state) = torch.full((len(z),), text.start_token), first(z)
    for t in range(6):
        expected = text.to_logits(step(token) + step.added)
        if t == 0:
            expected[:, text.never_first] = -torch.inf
        close(outputs["logits"], expected)
        token = expected.argmax(-1)
        outputs, state = later(z, token, state)


def frames_drawn(sound: FrameDecoder, z: Tensor, first: nn.Module, later: nn.Module) -> None:
    """The middle of every frame, and the logits of where blocks end."""
    step, (outputs, state) = steps(sound.net, z, 4), first(z)
    block, drawn = sound.start.expand(len(z), -1), []
    for _ in range(4):
        close(outputs["ends"], sound.to_end(step(sound.from_block(block)) + step.added))
        block = outputs["parameters"]
        drawn.append(block)
        outputs, state = later(z, block, state)
    expected = sound.sample(z, FrameSampling(noise=0.0))
    assert expected.steps > 9  # it runs into the last block
    close(torch.stack(drawn, 1).reshape(len(z), -1, C)[:, : expected.steps], expected.values)


@pytest.mark.parametrize(
    ("kind", "reduction", "backend"), [("gru", 1, "inductor"), ("lstm", 3, "aot_eager"), ("tanh", 3, "aot_eager")]
)
def test_compiled_encoders_agree_in_outputs_and_gradients(kind: str, reduction: int, backend: str) -> None:
    torch._dynamo.reset()
    encoder = made(False, kind=kind, reduction=reduction)
    program = torch.compile(encoder, fullgraph=True, dynamic=True, backend=backend)
    for rows, time in (EXAMPLE, (4, 13)):
        x, found = batch(False, rows, time, True), []
        for module in (encoder, program):
            encoder.zero_grad()
            q = module(x)
            (q.mean.square() + q.logvar).sum().backward()
            found.append([q.mean.detach(), q.logvar.detach(), *(p.grad.clone() for p in encoder.parameters())])
        close(found[1], found[0])


class OfTensors(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        q = self.encoder(Sequence(values, lengths))
        return q.mean, q.logvar


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@every_kind
def test_traced_encoders_run_on_any_shape(kind: str) -> None:
    module = OfTensors(made(False, kind=kind, layers=2, reduction=3))
    x = batch(False, *EXAMPLE, False)
    program = torch.jit.trace(module, (x.values, x.lengths))
    for rows, time in SHAPES:
        x = batch(False, rows, time, False)
        close(program(x.values, x.lengths), module(x.values, x.lengths))


def test_the_example_of_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(example.strip().splitlines()) <= 20
    names: dict[str, Any] = {}
    exec(example, names)
    close(names["q"], names["encoder"](names["x"]))
    z = torch.randn(7, 32)
    outputs, state = names["first"](z)
    expected, expected_state = names["step"](z)
    close((outputs, state), (expected, expected_state))
    token = outputs["logits"].argmax(-1)
    close(names["later"](z, token, state), names["step"](z, token, expected_state))
