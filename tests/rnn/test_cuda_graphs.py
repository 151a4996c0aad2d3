"""Free running by chunks: here a chunk's function is called, on a GPU (`test_gpu.py`) a graph that captured it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.decoding import FrameSampling, TokenSampling
from mmseqvae.distributions.likelihoods import Bernoulli, Normal
from mmseqvae.rnn import autoregressive
from mmseqvae.rnn.kernels import cuda_graphs
from mmseqvae.sequence import Sequence

every_kind = pytest.mark.parametrize("kind", ["tanh", "gru", "lstm"])


class Called:
    """A graph that does not capture what it runs."""

    def __init__(self, body: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> None:
        self.body = body

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.body(*inputs)


def both(
    decoder: TokenDecoder | FrameDecoder, rows: int, how: TokenSampling | FrameSampling, patch: pytest.MonkeyPatch
) -> tuple[Sequence, Sequence]:
    """Draws by chunks and step by step, with the same numbers."""
    z, found = torch.randn(rows, 3, generator=torch.Generator().manual_seed(1)), []
    patch.setattr(cuda_graphs, "Graph", Called)
    patch.setattr(autoregressive, "AHEAD", cuda_graphs.CHUNK)  # so that noise is drawn for as many blocks at once
    for fits in (True, False):
        patch.setattr(cuda_graphs, "fits", lambda z, fits=fits: fits)
        found.append(decoder.sample(z, how, torch.Generator().manual_seed(2)))  # type: ignore[arg-type]
    return found[0], found[1]


def assert_same(a: Sequence, b: Sequence) -> None:
    assert torch.equal(a.lengths, b.lengths)
    torch.testing.assert_close(a.filled(), b.filled(), atol=1e-5, rtol=1e-4)


@every_kind
@pytest.mark.parametrize("rows", [1, 5, 8])
@pytest.mark.parametrize(
    "how",
    [TokenSampling(), TokenSampling(1.0), TokenSampling(0.7, top_k=3, top_p=0.9), TokenSampling(1.0, max_steps=7)],
)
def test_tokens(kind: str, rows: int, how: TokenSampling, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    decoder = TokenDecoder(6, 3, end=0, max_steps=40, embedding=4, hidden=5, kind=kind, layers=2, never_first=(0, 1))
    decoder.to_logits.bias.data[0] = -2
    chunks, steps = both(decoder.eval(), rows, how, monkeypatch)
    assert_same(chunks, steps)
    assert not ((chunks.values[:, 0] == 0) | (chunks.values[:, 0] == 1)).any()
    assert rows == 1 or how != TokenSampling(1.0) or len(set(chunks.lengths.tolist())) > 1


@every_kind
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("how", [FrameSampling(), FrameSampling(1.0, "draw"), FrameSampling(0.0, max_steps=10)])
def test_frames(kind: str, rows: int, r: int, how: FrameSampling, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    likelihood = Normal(2)
    decoder = FrameDecoder(likelihood, 3, max_steps=96 * r - 1, reduction=r, hidden=5, inputs=4, kind=kind, layers=2)
    decoder.to_end.bias.data[0] = 3.0
    chunks, steps = both(decoder.eval(), rows, how, monkeypatch)
    assert_same(chunks, steps)
    assert rows == 1 or how.end != "draw" or len(set(chunks.lengths.tolist())) > 1


def test_what_is_not_additive_is_drawn_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = FrameDecoder(Bernoulli(2), 3, max_steps=20, hidden=5, inputs=4).eval()
    assert_same(*both(decoder, 3, FrameSampling(1.0, "draw"), monkeypatch))


def test_graphs_are_kept_for_shapes_and_weights_and_few_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "Graph", Called)
    layer = torch.nn.Linear(2, 2)

    def of(rows: int, key: object = None) -> object:
        return cuda_graphs.graph_of((layer,), key, lambda x: (layer(x),), torch.zeros(rows, 2))

    first = of(1)
    assert of(1) is first
    assert of(2) is not first
    assert of(1, "another") is not first
    layer.weight.data = layer.weight.data.clone()
    assert of(1) is not first
    for rows in range(2, 3 * cuda_graphs.KEPT):
        of(rows)
    assert len(cuda_graphs._GRAPHS[layer]) == cuda_graphs.KEPT
