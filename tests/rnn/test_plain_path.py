"""The kernel "torch" against the fastest one: same outputs, gradients and draws, in torch's own operations alone."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.decoding import FrameSampling, TokenSampling
from mmseqvae.distributions.gaussian import Gaussian, GaussianMixture
from mmseqvae.distributions.likelihoods import Bernoulli, FrameLikelihood, Normal
from mmseqvae.encoders import FrameEncoder, TokenEncoder
from mmseqvae.rnn import Recurrent, set_kernel
from mmseqvae.rnn.autoregressive import Steps, steps
from mmseqvae.rnn.kernels.plain import KERNELS, Layer, compiled, run
from mmseqvae.rnn.layer import CELLS
from mmseqvae.sequence import Sequence

V, C, D, H = 6, 3, 4, 5
every_kind = pytest.mark.parametrize("kind", CELLS)
every_type = pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(found: dict[str, Tensor], expected: dict[str, Tensor], close: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=close, rtol=close, msg=lambda text, name=name: name + text)


def gradients(part: nn.Module, total: Tensor) -> dict[str, Tensor]:
    part.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in part.named_parameters() if p.grad is not None}


def tokens(holes: bool = True) -> Sequence:
    observed = torch.rand(4, 7, generator=seeded()) < 0.7 if holes else None
    return Sequence(torch.randint(V, (4, 7), generator=seeded(1)), torch.tensor([7, 0, 3, 5]), observed)


def frames(dtype: torch.dtype) -> Sequence:
    values = torch.randn(4, 7, C, generator=seeded(), dtype=dtype)
    return Sequence(values, torch.tensor([0, 7, 2, 4]), torch.rand(4, 7, generator=seeded()) < 0.7)


@every_kind
@every_type
@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize(("both", "layers"), [(True, 1), (False, 2)])
def test_encoders(kind: str, dtype: torch.dtype, close: float, pooling: str, both: bool, layers: int) -> None:
    how = {"kind": kind, "pooling": pooling, "bidirectional": both, "layers": layers, "hidden": H}
    for encoder, x in (
        (TokenEncoder(V, D, **how).to(dtype), tokens()),
        (FrameEncoder(C, D, reduction=3, **how).to(dtype), frames(dtype)),
    ):
        found = []
        for kernel in KERNELS:
            expert = set_kernel(encoder, kernel)(x)
            values = {"mean": expert.mean.detach(), "logvar": expert.logvar.detach()}
            total = (expert.mean.square() + expert.logvar)[x.present].sum()
            found.append(values | gradients(encoder, total))
        same(found[1], found[0], close)


@every_kind
@every_type
@pytest.mark.parametrize("layers", [1, 2])
def test_decoders(kind: str, dtype: torch.dtype, close: float, layers: int) -> None:
    how = {"kind": kind, "layers": layers, "hidden": H, "max_steps": 8}
    z = torch.randn(2, 4, D, generator=seeded(), dtype=dtype)
    for decoder, x in (
        (TokenDecoder(V, D, end=0, embedding=3, **how).to(dtype), tokens()),
        (FrameDecoder(Normal(C), D, inputs=4, reduction=3, **how).to(dtype), frames(dtype)),
    ):
        found = []
        for kernel in KERNELS:
            nats = set_kernel(decoder, kernel).log_prob(z, x)
            found.append({"nats": nats.detach()} | gradients(decoder, nats.sum()))
        same(found[1], found[0], close)


@pytest.mark.parametrize("kind", ["tanh", "gru"])
@pytest.mark.parametrize("likelihood", [Normal(C), Bernoulli(C)])
def test_free_running_draws_take_plain_steps_and_are_the_same(kind: str, likelihood: FrameLikelihood) -> None:
    z = torch.randn(20, D, generator=seeded())
    text = TokenDecoder(V, D, end=0, max_steps=9, embedding=3, hidden=H, kind=kind, layers=2)
    sound = FrameDecoder(likelihood, D, max_steps=20, reduction=3, hidden=H, inputs=4, kind=kind)
    hidden = tokens(holes=False)[torch.tensor([0, 2, 3])].hiding(torch.arange(7) % 2 == 1)
    found = []
    for kernel in KERNELS:
        set_kernel(text, kernel), set_kernel(sound, kernel)
        assert isinstance(steps(text.net, z, 9, text.embedding), Steps) == (kernel == "torch")
        spoken = sound.sample(z, FrameSampling(end="draw"), seeded())
        drawn = [text.sample(z, TokenSampling(temperature=t), seeded()) for t in (0.0, 1.0)]
        drawn += [text.sample(z, TokenSampling(temperature=1.0, top_k=3), seeded()), spoken]
        found.append([x.lengths for x in drawn] + [x.filled() for x in drawn])
        found[-1].append(text.complete(z[:3], hidden, TokenSampling(), seeded()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_kernel_torch_compiles_nothing() -> None:
    """numba is not even imported, for training or for draws."""
    code = """
import sys, torch
from mmseqvae import FrameDecoder, FrameEncoder, FrameSampling, Sequence, TokenDecoder, TokenSampling
from mmseqvae.distributions.likelihoods import Normal
x = Sequence(torch.randn(3, 5, 2), torch.tensor([5, 2, 0]))
q = FrameEncoder(2, 3, kernel="torch")(x)
frames = FrameDecoder(Normal(2), 3, max_steps=9, kernel="torch")
frames.log_prob(q.rsample(), x).sum().backward()
frames.sample(q.mean, FrameSampling())
TokenDecoder(5, 3, end=0, max_steps=9, kernel="torch").sample(q.mean, TokenSampling(temperature=1.0))
print("numba" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "False"


def test_kernels_are_chosen_by_name() -> None:
    decoder = TokenDecoder(V, D, end=0, max_steps=5, kernel="torch")
    assert decoder.net.rnn.kernel == "torch"
    assert set_kernel(decoder, "auto") is decoder
    assert decoder.net.rnn.kernel == "auto"
    with pytest.raises(ValueError, match="kernel must be one of auto, torch, got 'cudnn'"):
        Recurrent(2, 3, kernel="cudnn")
    with pytest.raises(ValueError, match="kernel must be one of auto, torch, got 'numba'"):
        set_kernel(decoder, "numba")
    with pytest.raises(ValueError, match="Linear holds no recurrent layer"):
        set_kernel(nn.Linear(2, 2), "torch")


@every_kind
def test_a_layer_is_torchs_module(kind: str) -> None:
    """By name, by seed and by value, so that weights fit in both and a seed gives what it always gave."""
    torch.manual_seed(1)
    ours = Layer(kind, C, H)
    torch.manual_seed(1)
    theirs = CELLS[kind](C, H)
    same(dict(ours.named_parameters()), dict(theirs.named_parameters()), 0)
    x = torch.randn(6, 4, C)
    for state in (None, theirs(x)[1]):
        for a, b in zip(pytree.tree_leaves(ours(x, state)), pytree.tree_leaves(theirs(x, state)), strict=True):
            assert torch.equal(a, b)


@every_kind
@pytest.mark.parametrize("learnt", ["all", "inputs", "biases"])
def test_what_is_recorded_has_the_layers_outputs_and_gradients(kind: str, learnt: str) -> None:
    """The operation of torch.compile and the loop of torch.export; whatever has gradients, and whatever has none."""
    layer = Layer(kind, C, H).double()
    x = torch.randn(5, 4, C, dtype=torch.float64, requires_grad=learnt != "biases")
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(learnt == "all" or (learnt == "biases" and name.startswith("bias")))
    state = [torch.randn(1, 4, H, dtype=torch.float64) for _ in range(2 if kind == "lstm" else 1)]
    inputs = [part for part in (x, *layer.weights) if part.requires_grad]
    weight = torch.randn(5, 4, H, dtype=torch.float64)
    expected = run(x, state, layer.weights, layer.mode, True)[0]
    wanted = torch.autograd.grad((weight * expected).sum(), inputs)
    for found in (compiled(x, state, layer.weights, layer.mode), layer._scan(x, state)):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
        for a, b in zip(torch.autograd.grad((weight * found).sum(), inputs), wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_the_operation_keeps_the_rules_of_torch() -> None:
    """Shapes, layouts and shared memory are what torch.compile is told."""
    for kind, count in (("gru", 1), ("lstm", 2), ("tanh", 1)):
        layer = Layer(kind, C, H)
        x, state = torch.randn(4, 2, C, requires_grad=True), [torch.zeros(1, 2, H)] * count
        torch.library.opcheck(compiled, (x, state, layer.weights, layer.mode))


def test_sequences_and_distributions_are_containers_of_tensors() -> None:
    bare = Sequence(torch.ones(2, 3), torch.tensor([3, 1]))
    assert bare.mask.sum() == 4  # kept from here on, and no part of the container
    assert len(pytree.tree_leaves(bare)) == 2
    doubled = pytree.tree_map(lambda x: 2 * x, Sequence(torch.ones(2, 3), torch.tensor([1, 0])))
    assert (doubled.values.sum(), doubled.lengths.tolist(), doubled.observed) == (12, [2, 0], None)
    holes = Sequence(torch.ones(2, 3), torch.tensor([3, 1]), torch.ones(2, 3, dtype=torch.bool), torch.ones(2).bool())
    shapes = pytree.tree_map(lambda x: tuple(x.shape), holes)  # no tensors: nothing is checked
    assert (shapes.values, shapes.lengths, shapes.observed, shapes.there) == ((2, 3), (2,), (2, 3), (2,))
    q = Gaussian(torch.zeros(2, 3), torch.ones(2, 3))
    names = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(GaussianMixture(torch.zeros(2), q))[0]]
    assert names == [".log_weights", ".parts.mean", ".parts.logvar"]
    mixture = GaussianMixture(torch.randn(3), Gaussian(torch.randn(3, 2), torch.randn(3, 2)))
    again = pytree.tree_map(lambda x: x, mixture)
    assert torch.equal(again.log_weights, mixture.log_weights)  # not normalised once more
    assert torch.equal(again.parts.mean, mixture.parts.mean)
