"""How fast is a recurrent layer over variable lengths? Forward and backward, three ways, interleaved, medians.

    python -m benchmarks.recurrent            # one thread, batch 64, hidden 256, 80 channels

Ratios are of one run; machines are noisy, so compare them and not the milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mmseqvae.recurrent import Recurrent, run_padded, run_staircase


def packed(rnn: nn.RNNBase, x: Tensor, lengths: Tensor, state: None) -> Tensor:
    """What torch offers: x [T, B, C] -> [T, B, H]."""
    sequence = pack_padded_sequence(x, lengths, enforce_sorted=False)
    return pad_packed_sequence(rnn(sequence)[0], total_length=x.shape[0])[0]


def milliseconds(run: Callable[..., Tensor], rnn: nn.RNNBase, x: Tensor, lengths: Tensor) -> float:
    """One forward and backward pass."""
    rnn.zero_grad()
    started = time.perf_counter()
    run(rnn, x, lengths, None).sum().backward()
    return 1000 * (time.perf_counter() - started)


def main(
    steps: list[int] = [50, 100, 200, 400],  # noqa: B006
    batch: int = 64,
    hidden: int = 256,
    channels: int = 80,
    kind: str = "gru",
    repeats: int = 7,
    seed: int = 0,
) -> None:
    """Time packed, padded and staircase passes over lengths drawn evenly from a third of the longest to the longest.

    Args:
        steps: the longest sequence, one row each.
        batch: sequences.
        hidden: units.
        channels: of the input.
        kind: tanh, gru or lstm.
        repeats: passes of each way, after one that does not count.
        seed: of lengths and values.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    ways: dict[str, Callable[..., Tensor]] = {"packed": packed, "padded": run_padded, "staircase": run_staircase}
    print(f"{kind}, {channels} -> {hidden}, batch {batch}, torch {torch.__version__}, one thread, seed {seed}\n")
    print("| longest | packed, ms | padded, ms | staircase, ms | staircase / padded | staircase / packed |")
    print("|---|---|---|---|---|---|")
    for longest in steps:
        layer = Recurrent(channels, hidden, kind=kind).forwards[0]
        assert isinstance(layer, nn.RNNBase)
        x = torch.randn(longest, batch, channels, requires_grad=True)
        lengths = torch.randint(longest // 3, longest + 1, (batch,))
        lengths[0] = longest
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats + 1):
            for name, run in ways.items():
                times[name].append(milliseconds(run, layer, x, lengths))
        now = {name: median(found[1:]) for name, found in times.items()}
        print(
            f"| {longest} | {now['packed']:.1f} | {now['padded']:.1f} | {now['staircase']:.1f} "
            f"| {now['staircase'] / now['padded']:.2f} | {now['staircase'] / now['packed']:.2f} |"
        )


if __name__ == "__main__":
    from mmseqvae.arguments import run

    run(main, prog="python -m benchmarks.recurrent")
