"""The plain models that benchmarks/speed/training.py is timed against compute what the library computes."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.plain_model import Plain, weights_of
from benchmarks.speed.training_workloads import (
    EMBEDDING,
    HIDDEN,
    INPUTS,
    LATENT,
    MELS,
    SUBSETS,
    Workload,
    flops,
    make,
    ours,
    plain,
)


@pytest.mark.parametrize("naive", [True, False], ids=["naive", "padded"])
def test_loss_and_gradients_are_those_of_the_library(naive: bool) -> None:
    """Loss within 1e-5, every gradient within 1e-4 of its norm, in float32."""
    random = np.random.default_rng(0)
    text, audio = random.integers(2, 12, 64), random.integers(10, 60, 64)
    workload = Workload("", text, audio, 30)
    batch = workload.batch(text, audio, 0)
    model = make(30, 12, 60, 0)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)  # biases of 0 would hide a swap

    torch.manual_seed(1)
    expected = ours(model, batch)
    wanted = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)

    other = Plain(model, naive)
    torch.manual_seed(1)
    found = torch.func.functional_call(
        _Loss(other), {f"model.{k}": v for k, v in weights_of(model, naive).items()}, batch
    )
    gradients = torch.autograd.grad(found, list(model.parameters()), allow_unused=True)

    assert abs(found - expected) < 1e-5 * abs(expected)
    compared = 0
    for (name, _), a, b in zip(model.named_parameters(), wanted, gradients, strict=True):
        if name.endswith("hole"):
            continue  # nothing is a hole here
        assert a is not None, name
        assert b is not None, name
        assert (a - b).norm() < 1e-4 * a.norm(), name
        compared += 1
    assert compared == sum(not name.endswith("hole") for name, _ in model.named_parameters())


class _Loss(torch.nn.Module):
    def __init__(self, model: Plain) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict) -> torch.Tensor:
        return plain(self.model, batch)


def test_flops_are_those_that_torch_counts() -> None:
    """Of the naive model, whose draws share nothing and which multiplies z at every step; heads are left out."""
    text, audio = np.full(64, 5), np.full(64, 40)
    workload = Workload("", text, audio, 50)
    batch, model = workload.batch(text, audio, 0), make(50, 5, 40, 0)
    counter = FlopCounterMode(display=False)
    with counter:
        plain(Plain(model, naive=True), batch).backward()
    gates, steps = 3 * HIDDEN, 64 * (5 + 40)
    inputs = 64 * (5 * gates * EMBEDDING + 40 * (gates * INPUTS + MELS * INPUTS))
    more = 6 * ((len(SUBSETS) - 1) * inputs + len(SUBSETS) * steps * gates * LATENT)
    assert 0.97 < (flops(workload, batch) + more) / counter.get_total_flops() < 1.0
