"""How fast is a recurrent layer over variable lengths? Forward and backward, three ways, interleaved, medians.

    python -m benchmarks.speed.recurrent            # one thread, batch 64, hidden 256, 80 channels

In float32, and in bf16 where the processor has it. Ratios are of one run; machines are noisy, so compare them and not
the milliseconds. Writes benchmarks/results/recurrent.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.page_heading import has_bf16, heading
from mmseqvae.files import write_text
from mmseqvae.rnn.layer import CELLS, Recurrent

RESULTS = Path(__file__).parents[1] / "results"
Way = Callable[[Tensor, Tensor], Tensor]


def main(
    steps: list[int] = [50, 100, 200, 400],  # noqa: B006
    batch: int = 64,
    hidden: int = 256,
    channels: int = 80,
    kind: str = "gru",
    repeats: int = 7,
    models: int = 3,
    results: Path = RESULTS,
    seed: int = 0,
) -> None:
    """Time torch's packed and padded passes and ours over lengths drawn evenly up to the longest.

    Args:
        steps: the longest sequence; one row with lengths from a third of it on, one with lengths from 95 % of it on.
        batch: sequences.
        hidden: units.
        channels: of the input.
        kind: tanh, gru or lstm.
        repeats: passes of each way, after one that does not count.
        models: trained as one, with an axis of models in the products of a step; is that faster than one by one?
        results: folder for the table.
        seed: of lengths and values.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    ours = Recurrent(channels, hidden, kind=kind)
    theirs = CELLS[kind](channels, hidden)

    def padded(x: Tensor, lengths: Tensor) -> Tensor:
        return theirs(x.transpose(0, 1))[0]

    def packed(x: Tensor, lengths: Tensor) -> Tensor:
        sequence = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(theirs(sequence)[0], batch_first=True)[0]

    ways: dict[str, Way] = {"packed": packed, "padded": padded, "ours": ours}
    settings = (
        f"--steps {' '.join(map(str, steps))} --batch {batch} --hidden {hidden} --channels {channels} --kind {kind}"
    )
    table: list[str] = []

    def add(*lines: str) -> None:
        table.extend(lines)
        print("\n".join(lines), flush=True)
        write_text(results / "recurrent.md", "\n".join(table) + "\n")

    add(
        *heading("A recurrent layer", f"python -m benchmarks.speed.recurrent {settings} --repeats {repeats}", seed),
        "| lengths | type | packed, ms | padded, ms | ours, ms | ours / padded | ours / packed |",
        "|---|---|---|---|---|---|---|",
    )
    for longest in steps:
        for shortest in (longest // 3, longest * 95 // 100):
            x = torch.randn(batch, longest, channels, requires_grad=True)
            lengths = torch.randint(shortest, longest + 1, (batch,))
            lengths[0] = longest
            for low in (False, True) if has_bf16() else (False,):
                times: dict[str, list[float]] = {name: [] for name in ways}
                for _ in range(repeats + 1):
                    for name, way in ways.items():
                        times[name].append(milliseconds(way, x, lengths, low))
                now = {name: median(found[1:]) for name, found in times.items()}
                add(
                    f"| {shortest} to {longest} | {'bf16' if low else 'float32'} | {now['packed']:.1f} "
                    f"| {now['padded']:.1f} | {now['ours']:.1f} | {now['ours'] / now['padded']:.2f} "
                    f"| {now['ours'] / now['packed']:.2f} |"
                )
    add(
        "",
        f"Products of a step of {models} models, float32:",
        "",
        "| batch | hidden | one by one, ms | batched, ms | batched / one by one |",
        "|---|---|---|---|---|",
    )
    for rows, units in ((batch, hidden), (batch, hidden // 2), (max(1, batch // 4), hidden // 2)):
        alone, batched = products(rows, units, models, repeats)
        add(f"| {rows} | {units} | {alone:.1f} | {batched:.1f} | {batched / alone:.2f} |")


def products(batch: int, hidden: int, models: int, repeats: int) -> tuple[float, float]:
    """Milliseconds of 100 steps' products of the state: of `models` models one by one, and batched over the models."""
    state, weight = torch.randn(models, batch, hidden), torch.randn(models, hidden, 3 * hidden)
    out = torch.empty(models, batch, 3 * hidden)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        started = time.process_time()
        for model in range(models):
            for _ in range(100):
                torch.mm(state[model], weight[model], out=out[model])
        times[0].append(1000 * (time.process_time() - started))
        started = time.process_time()
        for _ in range(100):
            torch.bmm(state, weight, out=out)
        times[1].append(1000 * (time.process_time() - started))
    return median(times[0][1:]), median(times[1][1:])


def milliseconds(way: Way, x: Tensor, lengths: Tensor, low: bool) -> float:
    """Processor time of one forward and backward pass; `low` under bf16 autocast."""
    started = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        outputs = way(x, lengths)
    outputs.float().sum().backward()
    return 1000 * (time.process_time() - started)


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.speed.recurrent")
