"""Against torch's own modules with copied weights over packed sequences, which are the definition of right here."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mmseqvae.rnn.kernels import packed_rnn
from mmseqvae.rnn.kernels.packed_rnn import Packing, Padded
from mmseqvae.rnn.layer import CELLS, Recurrent
from mmseqvae.sequence import step_mask

ROUTES = {"packed": Recurrent.forward, "padded": Recurrent._padded}
every_kind = pytest.mark.parametrize("kind", CELLS)


def library(model: Recurrent, inputs: int) -> nn.RNNBase:
    """torch's multi-layer module with the weights of `model`."""
    twin = CELLS[model.kind](
        inputs, model.hidden, num_layers=model.layers, bidirectional=model.bidirectional, batch_first=True
    ).double()
    for suffix, stack in (("", model.forwards), ("_reverse", model.backwards)):
        for layer, rnn in enumerate(stack):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(twin, f"{name}_l{layer}{suffix}").data.copy_(getattr(rnn, f"{name}_l0"))
    return twin


def packed(twin: nn.RNNBase, x: Tensor, lengths: Tensor, state: list[tuple[Tensor, ...]] | None) -> Tensor:
    """The packed route; rows of length 0, which it does not allow, are left out and stay 0."""
    alive = lengths > 0
    out = x.new_zeros(*x.shape[:2], twin.hidden_size * (2 if twin.bidirectional else 1))
    if not alive.any():
        return out
    first = None
    if state is not None:
        parts = tuple(torch.stack([layer[i][alive] for layer in state]) for i in range(len(state[0])))
        first = parts if twin.mode == "LSTM" else parts[0]
    sequence = pack_padded_sequence(x[alive], lengths[alive], batch_first=True, enforce_sorted=False)
    found, _ = pad_packed_sequence(twin(sequence, first)[0], batch_first=True, total_length=x.shape[1])
    return out.index_put((alive.nonzero().squeeze(1),), found)


def make(kind: str, layers: int, both: bool) -> tuple[Recurrent, nn.RNNBase]:
    torch.manual_seed(0)
    model = Recurrent(3, 4, kind=kind, layers=layers, bidirectional=both).double()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)  # biases of 0 would hide a swap
    return model, library(model, 3)


def initial_state(model: Recurrent, rows: int) -> list[tuple[Tensor, ...]]:
    pieces = 2 if model.kind == "lstm" else 1
    return [
        tuple(torch.randn(rows, model.hidden, dtype=torch.float64).requires_grad_() for _ in range(pieces))
        for _ in range(model.layers)
    ]


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES.keys())
@every_kind
@pytest.mark.parametrize(("layers", "both"), [(1, False), (1, True), (3, False), (2, True)])
@settings(max_examples=6)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    padding=st.integers(0, 3),
    begin=st.booleans(),
    piece=st.integers(1, 20),
)
def test_outputs_and_gradients_are_those_of_packed_torch(
    route: Callable, kind: str, layers: int, both: bool, lengths: list[int], padding: int, begin: bool, piece: int
) -> None:
    model, twin = make(kind, layers, both)
    n = torch.tensor(lengths)
    x = torch.randn(len(lengths), max(lengths) + padding, 3, dtype=torch.float64).requires_grad_()
    state = initial_state(model, len(lengths)) if begin and not both else None
    weight = torch.randn(*x.shape[:2], model.channels, dtype=torch.float64)
    inputs = [x, *(s for layer in state or [] for s in layer)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_rnn, "PIECE", piece)
        found = route(model, x, n, state)
    expected = packed(twin, x, n, state)
    torch.testing.assert_close(found, expected)
    if not any(lengths):
        return
    gradients = torch.autograd.grad((weight * found).sum(), [*inputs, *model.parameters()])
    wanted = torch.autograd.grad((weight * expected).sum(), [*inputs, *twin.parameters()])
    for a, b in zip(gradients[: len(inputs)], wanted[: len(inputs)], strict=True):
        torch.testing.assert_close(a, b)
    mine = dict(zip((name for name, _ in model.named_parameters()), gradients[len(inputs) :], strict=True))
    theirs = dict(zip((name for name, _ in twin.named_parameters()), wanted[len(inputs) :], strict=True))
    for stack, suffix in (("forwards", ""), ("backwards", "_reverse")):
        for layer in range(layers if not suffix or both else 0):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                a, b = mine[f"{stack}.{layer}.{name}_l0"], theirs[f"{name}_l{layer}{suffix}"]
                torch.testing.assert_close(a, b)
    assert len(mine) == len(theirs)


@every_kind
@pytest.mark.parametrize("layers", [1, 2])
@settings(max_examples=8)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    draws=st.integers(1, 3),
    begin=st.booleans(),
    piece=st.integers(1, 20),
)
def test_draws_that_share_their_inputs_are_padded_rows_of_their_own(
    kind: str, layers: int, lengths: list[int], draws: int, begin: bool, piece: int
) -> None:
    """Outputs, and gradients of inputs, shifts, states and weights."""
    model, _ = make(kind, layers, False)
    packing = Packing.of(torch.tensor(lengths), max(lengths) + 1)
    x = torch.randn(sum(lengths), 3, dtype=torch.float64).requires_grad_()
    shift = torch.randn(draws, len(lengths), 3, dtype=torch.float64).requires_grad_()
    flat = initial_state(model, draws * len(lengths)) if begin else None
    state = flat and [tuple(s.unflatten(0, (draws, -1)) for s in layer) for layer in flat]
    inputs = [x, shift, *(s for layer in flat or [] for s in layer), *model.parameters()]
    weight = torch.randn(sum(lengths), draws, model.hidden, dtype=torch.float64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_rnn, "PIECE", piece)
        found = model.packed(x, packing, state, shift)
    padded = Padded(packing.lengths, packing.steps)
    expected = model.packed(packing.spread(x[:, None])[0].flatten(0, 1), padded, state, shift)
    expected = packing.gather(padded.spread(expected).permute(1, 2, 0, 3))
    torch.testing.assert_close(found, expected)
    if any(lengths):
        gradients = torch.autograd.grad((weight * found).sum(), inputs)
        for a, b in zip(gradients, torch.autograd.grad((weight * expected).sum(), inputs), strict=True):
            torch.testing.assert_close(a, b)


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5), padding=st.integers(0, 2))
@settings(max_examples=30)
def test_packing_is_torchs(lengths: list[int], padding: int) -> None:
    n = torch.tensor(lengths)
    x = torch.arange(1, 1 + len(lengths) * (max(lengths) + padding)).reshape(len(lengths), -1)
    packing = Packing.of(n, x.shape[1])
    assert packing.gather(x).tolist() == [
        x[row, t] for t in range(max(lengths)) for row in n.argsort(descending=True, stable=True) if t < lengths[row]
    ]
    assert torch.equal(packing.spread(packing.gather(x)[:, None])[0], torch.where(step_mask(n, x.shape[1]), x, 0))
    assert packing.gather(x).tolist() == [int(x[r, t]) for r, t in zip(packing.rows, packing.times, strict=True)]
    padded = Padded(n, x.shape[1])
    assert padded.gather(x).tolist() == x.flatten().tolist()
    assert padded.gather(x).tolist() == [int(x[r, t]) for r, t in zip(padded.rows, padded.times, strict=True)]
    assert torch.equal(padded.spread(padded.gather(x)[:, None])[0], torch.where(step_mask(n, x.shape[1]), x, 0))
    turned = packing.gather(x)[packing.turned()]
    assert turned.tolist() == [
        int(x[r, lengths[r] - 1 - t]) for r, t in zip(packing.rows.tolist(), packing.times.tolist(), strict=True)
    ]


@every_kind
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    model, _ = make(kind, 1, False)
    x, n = torch.randn(3, 5, 3, dtype=torch.float64).requires_grad_(), torch.tensor([5, 2, 0])
    state = initial_state(model, 3)[0]
    assert torch.autograd.gradcheck(lambda x, *state: model(x, n, [state]), (x, *state))


@every_kind
def test_bf16_autocast_rounds_products_only(kind: str) -> None:
    """Outputs and gradients differ from float32 by the rounding of bf16 (2^-9), and states stay float32."""
    torch.manual_seed(0)
    model, n = Recurrent(8, 32, kind=kind, bidirectional=True), torch.tensor([40, 25, 3])
    x, weight = torch.randn(3, 40, 8, requires_grad=True), torch.randn(3, 40, 64)
    found = {}
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            outputs = model(x, n)
        gradients = torch.autograd.grad((outputs.float() * weight).sum(), [x, *model.parameters()])
        found[low] = [outputs.detach().float(), *gradients]
    if kind != "lstm" or torch.ops.mkldnn._is_mkldnn_bf16_supported():  # without, torch's LSTM stays in float32
        assert not torch.equal(found[False][0], found[True][0])
    for exact, rounded in zip(found[False], found[True], strict=True):
        assert rounded.dtype == torch.float32
        assert (exact - rounded).norm() < 0.02 * exact.norm()


@every_kind
@pytest.mark.parametrize("both", [False, True])
def test_last_is_the_final_state_of_packed_torch(kind: str, both: bool) -> None:
    model, twin = make(kind, 1, both)
    n, x = torch.tensor([5, 1, 0, 7]), torch.randn(4, 9, 3, dtype=torch.float64)
    found = model.final(x, n)
    torch.testing.assert_close(model.last(model(x, n), n), found)
    alive = n > 0
    after = twin(pack_padded_sequence(x[alive], n[alive], batch_first=True, enforce_sorted=False))[1]
    final = after[0] if kind == "lstm" else after
    torch.testing.assert_close(found[alive], torch.cat(list(final), -1))
    assert not found[~alive].any()


@every_kind
@pytest.mark.parametrize("layers", [1, 2])
def test_step_by_step_is_the_layer(kind: str, layers: int) -> None:
    model, _ = make(kind, layers, False)
    x = torch.randn(3, 20, 3, dtype=torch.float64)
    state = initial_state(model, 3)
    expected = model(x, torch.full((3,), 20), state)
    for t in range(20):
        output, state = model.step(x[:, t], state)
        torch.testing.assert_close(output, expected[:, t])


@every_kind
def test_no_steps_and_no_rows(kind: str) -> None:
    for both in (False, True):
        model, _ = make(kind, 2, both)
        assert model(torch.zeros(3, 0, 3).double(), torch.zeros(3, dtype=torch.long)).shape == (3, 0, model.channels)
        assert model(torch.zeros(0, 5, 3).double(), torch.zeros(0, dtype=torch.long)).shape == (0, 5, model.channels)


@every_kind
def test_initial_weights(kind: str) -> None:
    """Every gate's recurrent matrix is orthogonal, its input matrix Glorot-uniform, and biases are 0 but one."""
    model = Recurrent(30, 20, kind=kind, layers=2, bidirectional=True).double()
    rnns = [*model.forwards, *model.backwards]
    assert len(rnns) == 4
    for rnn in rnns:
        for gate in rnn.weight_hh_l0.split(20):
            torch.testing.assert_close(gate @ gate.T, torch.eye(20).double(), atol=1e-6, rtol=0)
        for gate in rnn.weight_ih_l0.split(20):
            bound = (6 / (20 + gate.shape[1])) ** 0.5
            assert 0.9 * bound < gate.abs().max() <= bound
        bias = (rnn.bias_ih_l0 + rnn.bias_hh_l0).reshape(-1, 20)
        forget = torch.zeros_like(bias)
        if kind == "lstm":
            forget[1] = 1
        assert torch.equal(bias, forget)


def test_the_forget_bias_is_where_torch_has_its_forget_gate() -> None:
    """A large forget bias keeps the cell, whatever the input; in any other place it would not."""
    model = Recurrent(3, 4, kind="lstm").double()
    for parameter in model.parameters():
        parameter.data.zero_()
    model.forwards[0].bias_ih_l0.data[4:8] = 50
    cell = torch.tensor([[0.1, -0.2, 0.3, 0.4]], dtype=torch.float64)
    _, [(_, after)] = model.step(torch.randn(1, 3).double(), [(torch.zeros(1, 4).double(), cell)])
    torch.testing.assert_close(after, cell)
    fresh = Recurrent(3, 4, kind="lstm").forwards[0].bias_ih_l0
    assert fresh.tolist() == [0] * 4 + [1] * 4 + [0] * 8


def test_dropout_acts_between_layers_and_in_training_only() -> None:
    x, n = torch.randn(2, 6, 3), torch.tensor([6, 4])
    one, two = (Recurrent(3, 4, layers=layers, dropout=0.5) for layers in (1, 2))
    assert torch.equal(one(x, n), one(x, n))
    assert not torch.equal(two(x, n), two(x, n))
    two.eval()
    assert torch.equal(two(x, n), two(x, n))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of tanh, gru, lstm, got 'rnn'"):
        Recurrent(3, 4, kind="rnn")
    with pytest.raises(ValueError, match="at least 1"):
        Recurrent(3, 4, layers=0)
    with pytest.raises(ValueError, match="one direction"):
        Recurrent(3, 4, bidirectional=True)(torch.zeros(1, 2, 3), torch.tensor([2]), [(torch.zeros(1, 4),)])
    with pytest.raises(ValueError, match="one direction"):
        Recurrent(3, 4, bidirectional=True).packed(
            torch.zeros(2, 3), Packing.of(torch.tensor([2]), 2), shift=torch.zeros(1, 1, 3)
        )
    with pytest.raises(ValueError, match="tells them apart"):
        packed_rnn.run(Recurrent(3, 4).forwards[0], torch.zeros(2, 3), [1, 1], draws=2)
