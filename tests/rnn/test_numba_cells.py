"""The compiled steps of float32 cells against the plain ones."""

import numpy as np
import pytest
import torch
from torch import nn

from mmseqvae.rnn.kernels import packed_rnn
from mmseqvae.rnn.kernels.numba_cells import FUSED, compiled, tanh


@compiled
def every_tanh(x):  # type: ignore[no-untyped-def]
    y = np.empty_like(x)
    for i in range(len(x)):
        y[i] = tanh(x[i])
    return y


def test_tanh_is_exact_to_float32_and_lets_nan_through() -> None:
    x = np.concatenate([np.linspace(-20, 20, 400_001), [1e-30, -1e-30, 1e30, np.inf, -np.inf]]).astype(np.float32)
    exact = np.tanh(x.astype(np.float64))
    found = every_tanh(x).astype(np.float64)
    assert np.abs(found - exact).max() < 2e-7
    assert (np.abs(found - exact) <= 4e-7 * np.abs(exact)).all()
    assert np.isnan(every_tanh(np.array([np.nan], np.float32))).all()


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
@pytest.mark.parametrize("draws", [0, 1, 3])  # 0: no shift and no state, as in encoders
def test_fused_steps_are_the_plain_ones(kind: type, draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rnn, counts = kind(5, 24), [6] * 150 + [4, 4, 4, 1, 1]  # more than a piece
    x = torch.randn(sum(counts), 5, requires_grad=True)
    parts = [x, *rnn.parameters()]
    shift = state = None
    if draws:
        shift, first = (torch.randn(6 * draws, size, requires_grad=True) for size in (5, 24))
        state, parts = (first,), [*parts, shift, first]
    weight = torch.randn(max(1, draws) * len(x), 24)
    found = []
    for _ in range(2):
        outputs = packed_rnn.run(rnn, x, counts, max(1, draws), shift, state)
        found.append([outputs.detach(), *torch.autograd.grad((outputs * weight).sum(), parts)])
        assert packed_rnn.cell_of(rnn.mode, torch.float32) in [*FUSED, *FUSED.values()]
        monkeypatch.setattr(packed_rnn, "cell_of", lambda mode, kind: packed_rnn.CELLS[mode])
    assert not torch.equal(found[0][0], found[1][0])  # they are not the same code
    for fused, plain in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, atol=2e-6 * float(plain.abs().max()) + 1e-6, rtol=1e-5)


def test_float64_takes_the_plain_steps() -> None:
    assert packed_rnn.cell_of("GRU", torch.float64) is packed_rnn.CELLS["GRU"]
    assert packed_rnn.cell_of("GRU", torch.float32) is FUSED[packed_rnn.CELLS["GRU"]]
