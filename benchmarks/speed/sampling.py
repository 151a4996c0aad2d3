"""How fast is free-running generation? Against the obvious loop and the bare matrix products, in turns, in one run.

    python -m benchmarks.speed.sampling

The obvious loop has the same weights: `nn.Embedding`, `nn.GRU` called on one step, the latent projected once and
added, `nn.Linear`, `torch.distributions.Categorical(...).sample()`; for frames `nn.Linear`, `nn.GRU`, `nn.Linear` and a
normal draw. GRU 256, latent 32, embeddings 64, 80 mels, inputs 128. Ends are made impossible before the limit, so that
all ways do the same number of steps. Processor time of one thread, medians. Writes benchmarks/results/sampling.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from benchmarks.page_heading import heading
from benchmarks.speed.training_workloads import EMBEDDING, HIDDEN, INPUTS, LATENT, MELS, RESULTS
from mmseqvae.config import LogMelConfig, ModelConfig
from mmseqvae.data import FrontEnd
from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.decoding import FrameSampling, TokenSampling
from mmseqvae.distributions.likelihoods import Normal
from mmseqvae.features.arrays import Standard
from mmseqvae.features.log_mel import LogMel
from mmseqvae.files import write_text
from mmseqvae.pipeline.build import build
from mmseqvae.pipeline.trained_model import Trained
from mmseqvae.tokenizers.characters import Tokenizer

NEVER = -1e4  # logit of an end before the limit
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
IN_A_ROW = 3
Way = Callable[[], object]
Key = TypeVar("Key")


# -------------------------------------------------------------------------------------------------------- the ways


class ObviousLoop(nn.Module):
    """A decoder's own weights in `nn.GRU`, called on one step after another."""

    def __init__(self, decoder: TokenDecoder | FrameDecoder) -> None:
        super().__init__()
        self.decoder, self.net, self.rnn = decoder, decoder.net, cast(nn.GRU, decoder.net.rnn.forwards[0])

    def begin(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The state, and what the latent adds to inputs and outputs."""
        return self.net.begin(z)[0][0][None], self.net.to_input(z), self.net.to_output(z)


class ObviousTokens(ObviousLoop):
    @torch.no_grad()
    def forward(self, z: Tensor, limit: int) -> Tensor:
        """z [N, D] -> tokens [N, T]."""
        decoder = self.decoder
        assert isinstance(decoder, TokenDecoder)
        state, to_input, to_output = self.begin(z)
        token = torch.full((len(z),), decoder.start_token, device=z.device)
        done = torch.zeros_like(token, dtype=torch.bool)
        tokens = []
        for _ in range(limit):
            output, state = self.rnn((decoder.embedding(token) + to_input)[None], state)
            logits = decoder.to_logits(output[0] + to_output)
            token = torch.distributions.Categorical(logits=logits).sample()
            tokens.append(token)
            done |= token == decoder.end
            if done.all():
                break
        return torch.stack(tokens, 1)


class ObviousFrames(ObviousLoop):
    @torch.no_grad()
    def forward(self, z: Tensor, limit: int, noise: float = 0.5) -> Tensor:
        """z [N, D] -> frames [N, T, C]; a row ends where going on is not the likeliest."""
        decoder = self.decoder
        assert isinstance(decoder, FrameDecoder)
        state, to_input, to_output = self.begin(z)
        block: Tensor = decoder.start.expand(len(z), -1)
        assert isinstance(decoder.likelihood, Normal)
        scale = noise * decoder.likelihood.log_scale.exp().repeat(decoder.reduction)
        done = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        blocks = []
        for _ in range(-(-limit // decoder.reduction)):
            output, state = self.rnn((decoder.from_block(block) + to_input)[None], state)
            hidden = output[0] + to_output
            location = decoder.to_frames(hidden)
            block = location + scale * torch.randn_like(location)
            blocks.append(block)
            done |= decoder.to_end(hidden).argmax(-1) > 0
            if done.all():
                break
        return torch.stack(blocks, 1).reshape(len(z), -1, decoder.channels)[:, :limit]


def products(rows: int, steps: int, sizes: list[tuple[int, int]]) -> Way:
    """The matrix products of a loop and nothing else: inputs and outputs of each."""
    pairs = [(torch.randn(rows, a), torch.randn(a, b), torch.empty(rows, b)) for a, b in sizes]

    def run() -> None:
        for _ in range(steps):
            for x, weight, out in pairs:
                torch.mm(x, weight, out=out)

    return run


def token_decoder(vocabulary: int, limit: int) -> TokenDecoder:
    decoder = TokenDecoder(vocabulary, LATENT, end=0, max_steps=limit, embedding=EMBEDDING, hidden=HIDDEN)
    decoder.to_logits.bias.data[0] = NEVER
    return decoder.eval()


def frame_decoder(reduction: int, limit: int) -> FrameDecoder:
    decoder = FrameDecoder(Normal(MELS), LATENT, max_steps=limit, reduction=reduction, hidden=HIDDEN, inputs=INPUTS)
    decoder.to_end.bias.data[1:] = NEVER
    return decoder.eval()


def text_ways(vocabulary: int, batch: int, steps: int) -> dict[str, Way]:
    decoder, z = token_decoder(vocabulary, steps), torch.randn(batch, LATENT)
    obvious, how = ObviousTokens(decoder), TokenSampling(temperature=1.0)
    return {
        "obvious": lambda: obvious(z, steps),
        "ours": lambda: decoder.sample(z, how),
        "floor": products(batch, steps, [(EMBEDDING, 3 * HIDDEN), (HIDDEN, 3 * HIDDEN), (HIDDEN, vocabulary)]),
    }


def audio_ways(reduction: int, batch: int, frames: int) -> dict[str, Way]:
    decoder, z = frame_decoder(reduction, frames), torch.randn(batch, LATENT)
    obvious, how, block = ObviousFrames(decoder), FrameSampling(), reduction * MELS
    sizes = [(block, INPUTS), (INPUTS, 3 * HIDDEN), (HIDDEN, 3 * HIDDEN), (HIDDEN, block), (HIDDEN, reduction + 1)]
    return {
        "obvious": lambda: obvious(z, frames),
        "ours": lambda: decoder.sample(z, how),
        "floor": products(batch, -(-frames // reduction), sizes),
    }


def speaking(reduction: int, frames: int, device: str = "cpu") -> Trained:
    """An untrained model of words and of log-mels at 16 kHz, 80 frames a second, whose words last `frames`."""
    tokenizer, log_mel = (
        Tokenizer.train(WORDS),
        LogMel(LogMelConfig(n_mels=MELS), Standard(torch.zeros(MELS) - 10, torch.ones(MELS))),
    )
    front_ends: dict[str, FrontEnd] = {"text": tokenizer, "audio": log_mel}
    longest = {"text": 1 + max(map(len, WORDS)), "audio": frames}
    config = ModelConfig(latent=LATENT, reduction=reduction, frame_decoder=HIDDEN, frame_inputs=INPUTS)
    model = build(front_ends, longest, config)
    decoder = model.modalities.decoder("audio")
    assert isinstance(decoder, FrameDecoder)
    decoder.to_end.bias.data[1:] = NEVER
    return Trained(model.eval().to(device), front_ends, longest, config)


def speech_ways(reduction: int, frames: int, device: str = "cpu") -> dict[str, Way]:
    """From a typed word to its first block of frames, to all of them, and to samples."""
    trained = speaking(reduction, frames, device)
    start = {"audio": FrameSampling(max_steps=reduction)}

    def frames_of(decode: dict[str, FrameSampling] | None) -> object:
        batch = trained.encode([{"text": WORDS[7]}])
        return trained.model.generate(batch, ["audio"], ["text"], decode=decode)

    return {
        "first block": lambda: frames_of(start),
        "all frames": lambda: frames_of(None),
        "samples": lambda: trained.generate(text=WORDS[7], want="audio"),
    }


# ------------------------------------------------------------------------------------------------------- the tables


def main(
    steps: int = 24,
    frames: int = 200,
    batches: list[int] = [1, 64],  # noqa: B006
    vocabularies: list[int] = [64, 8000],  # noqa: B006
    reductions: list[int] = [1, 4],  # noqa: B006
    repeats: int = 9,
    results: Path = RESULTS,
    seed: int = 0,
) -> None:
    """Time free-running generation and write the table.

    Args:
        steps: tokens a row.
        frames: frames a row.
        batches: rows drawn at once.
        vocabularies: numbers of tokens.
        reductions: frames a step of the audio decoder.
        repeats: turns of each way.
        results: folder for the table.
        seed: of weights and draws.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    command = f"python -m benchmarks.speed.sampling --steps {steps} --frames {frames} --repeats {repeats} --seed {seed}"
    for name, values in (("batches", batches), ("vocabularies", vocabularies), ("reductions", reductions)):
        command += f" --{name} {' '.join(map(str, values))}"
    lines = [
        *heading("Free-running generation", command, seed),
        f"{steps} tokens or {frames} frames a row; milliseconds of all rows together.",
        "",
        "| what | batch | obvious loop, ms | ours, ms | bare products, ms | ours / obvious | ours / products |",
        "|---|---|---|---|---|---|---|",
    ]
    every = {(f"text, V {v:,}", b): text_ways(v, b, steps) for v in vocabularies for b in batches}
    every |= {(f"audio, r = {r}", b): audio_ways(r, b, frames) for r in reductions for b in batches}
    found = in_turns({(what, name): way for what, ways in every.items() for name, way in ways.items()}, repeats)
    for what in every:
        now = {name: found[what, name] for name in every[what]}
        lines.append(
            f"| {what[0]} | {what[1]} | {now['obvious']:.2f} | {now['ours']:.2f} | {now['floor']:.2f} "
            f"| {now['ours'] / now['obvious']:.2f} | {now['ours'] / now['floor']:.2f} |"
        )
    lines += ["", f"| {reductions[0]} frame a step over r | batch | times as fast |", "|---|---|---|"]
    for r in reductions[1:]:
        for b in batches:
            ratio = found[(f"audio, r = {reductions[0]}", b), "ours"] / found[(f"audio, r = {r}", b), "ours"]
            lines.append(f"| {r} | {b} | {ratio:.2f} |")
    lines += ["", *latency(reductions, frames, repeats)]
    text = "\n".join(lines) + "\n"
    print(text)
    write_text(results / "sampling.md", text)


def latency(reductions: list[int], frames: int, repeats: int) -> list[str]:
    rate = LogMelConfig().frames_per_second
    lines = [
        f"From a typed word to sound, batch 1, {frames} frames ({frames / rate:.2f} s); samples by Griffin-Lim.",
        "",
        "| frames a step | first block of frames, ms | all frames, ms | all samples, ms | of the sound's duration |",
        "|---|---|---|---|---|",
    ]
    for r in reductions:
        now = in_turns(speech_ways(r, frames), repeats)
        lines.append(
            f"| {r} | {now['first block']:.2f} | {now['all frames']:.2f} | {now['samples']:.1f} "
            f"| {now['samples'] / (1000 * frames / rate):.2f} |"
        )
    return lines


def in_turns(ways: dict[Key, Way], repeats: int) -> dict[Key, float]:
    """Median milliseconds of each way, run several times in a row each turn; first runs, which load, do not count."""
    times: dict[Key, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            way()
            for _ in range(IN_A_ROW):
                started = time.process_time()
                way()
                times[name].append(1000 * (time.process_time() - started))
    return {name: median(taken) for name, taken in times.items()}


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.speed.sampling")
