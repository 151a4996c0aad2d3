"""How fast is the same training in MultiVae and here? Same recordings, cells, sizes, objective and batch, in turns.

    python -m benchmarks.peers.side_by_side --data-dir DIR        # 2 minutes of MultiVae for each objective, one thread

Both train in one process, an epoch of the one after an epoch of the other, each by its own trainer; after every epoch
both write down 300 recordings that neither has learnt from. Every finished race is a line of
benchmarks/results/side_by_side.jsonl and is not run again; the table is benchmarks/results/side_by_side.md.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import lightning
import torch
from tqdm import tqdm

from benchmarks.ledger import Ledger, Record
from benchmarks.peers.accuracy import RESULTS, Bench, surroundings
from mmseqvae.config import CACHE_DIR, ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.data import make_loader
from mmseqvae.files import write_text
from mmseqvae.metrics import exact_match
from mmseqvae.model import MultimodalVAE
from mmseqvae.pipeline.build import build
from mmseqvae.training.lightning_module import TrainingModule
from recipes import spoken_digits as recipe

# What MultiVae's networks have: cells and their sizes, sizes of what the recurrences read, and the likelihood's scale.
NETWORKS = ModelConfig(
    latent=32, token_embedding=32, token_encoder=64, token_decoder=64,
    frame_encoder=128, frame_inputs=32, frame_decoder=128, reduction=1, scale="fixed", prior="standard",
)  # fmt: skip
BATCH, LEARNING_RATE = 64, 2e-3
ALWAYS = 10**9  # steps: the learning rate stays what it is after its warm-up


@dataclass(frozen=True)
class Pair:
    """One objective in both toolkits: MultiVae's model with its settings, our fusion and objective; weights alike."""

    model: str
    settings: Mapping[str, Any]
    fusion: str
    objective: ObjectiveConfig


def ours_of(name: str, beta: float = 1.0, **options: float | bool | str) -> ObjectiveConfig:
    return ObjectiveConfig(name, options=options, beta=beta, beta_warm_up=0)


# Without warm-up on either side. MMVAE as an ELBO with Gaussian experts and prior N(0, I); the other settings are
# MultiVae's defaults. In its MoPoE only the product of all experts holds the base expert, in ours every product does.
GAUSSIAN = {"K": 1, "prior_and_posterior_dist": "normal", "learn_prior": False, "loss": "iwae_looser"}
PAIRS = {
    "joint ELBO": Pair("MVAE", {"use_subsampling": False, "warmup": 0}, "poe", ours_of("elbo")),
    "MVAE": Pair("MVAE", {"warmup": 0}, "poe", ours_of("mvae")),
    "MMVAE": Pair("MMVAE", GAUSSIAN, "moe", ours_of("mixture")),
    "MoPoE": Pair("MoPoE", {}, "mopoe", ours_of("mixture", tight=False, stratified=False)),
    "MVTCAE": Pair("MVTCAE", {}, "poe-without-base", ours_of("mvtcae", beta=2.5, alpha=0.1)),
}


@dataclass
class Curve:
    """seconds: processor time of each epoch. accuracy: audio to text, exact, after it."""

    seconds: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)

    @property
    def total(self) -> float:
        return sum(self.seconds)

    @property
    def best(self) -> float:
        return max(self.accuracy)

    def until(self, accuracy: float) -> float | None:
        """Seconds of training until that accuracy was reached; None where it was not."""
        for epoch, reached in enumerate(self.accuracy, start=1):
            if reached >= accuracy:
                return sum(self.seconds[:epoch])
        return None


def main(
    data_dir: Path | None = None,
    objectives: list[str] = list(PAIRS),  # noqa: B006
    seeds: list[int] = [0],  # noqa: B006
    seconds: float = 120,
    cache_dir: Path = Path(CACHE_DIR),
    results: Path = RESULTS,
) -> None:
    """Run the races that are not in the results yet, and write the table of all that are.

    Args:
        data_dir: folder with the recordings of the Free Spoken Digit Dataset; without it they are downloaded.
        objectives: which of them to race.
        seeds: one race for each.
        seconds: of processor time that MultiVae trains on one thread; ours trains as many epochs, or as long.
        cache_dir: where recordings, features and judges are kept.
        results: folder of the results.
    """
    if strange := sorted(set(objectives) - set(PAIRS)):
        raise ValueError(f"--objectives names {strange}; there are {list(PAIRS)}")
    torch.set_num_threads(1)
    ledger = Ledger(results / "side_by_side.jsonl")
    runs = [{"objective": name, "seed": seed, "seconds": seconds} for seed in seeds for name in objectives]
    waiting = ledger.left(runs)
    if waiting:
        bench = Bench.prepare(recipe.prepare_fsdd(cache_dir, data_dir, holdout=True), "valid", cache_dir)
        for run in tqdm(waiting, "races", unit="race"):
            pair = PAIRS[str(run["objective"])]
            ledger.append({"run": run, **race(bench, pair, int(run["seed"]), seconds), **surroundings()})
    text = page(ledger.records())
    print(text)
    write_text(results / "side_by_side.md", text + "\n")


def race(bench: Bench, pair: Pair, seed: int, seconds: float) -> Record:
    """Both curves of one objective, the number of recordings in an epoch, and the parameters of either."""
    from benchmarks.peers.multivae_models import Kind, Peer, quiet, rescaling, trainer
    from benchmarks.peers.multivae_models import build as build_peer

    torch.manual_seed(seed)
    shapes = bench.fixed.shapes
    data, real = bench.data(bench.train, bench.train_words), bench.data(bench.real, bench.words)
    kind = Kind(pair.model, pair.settings)
    longest = {"audio": int(bench.train.lengths.max()) + 1, "text": bench.fixed.characters}
    ours = build(bench.corpus.front_ends, longest, replace(NETWORKS, fusion=pair.fusion))
    generator = ours.generator(seed)

    def ours_writes() -> list[str]:
        made = ours.eval().generate({"audio": bench.real}, ["text"], ["audio"], generator=generator)["text"]
        ours.train()
        return [bench.fixed.tokenizer.decode(item) for item in made.items()]

    with quiet(), tempfile.TemporaryDirectory() as folder:
        run = trainer(build_peer(kind, shapes), data, ALWAYS, seed, folder)
        run.callback_handler.callbacks.clear()  # its progress bars
        peer = Peer(kind, run.model, shapes)
        turns = Turns(
            run.train_step,
            lambda: accuracy(bench.words, bench.fixed.words(peer.write(real, "audio", "text"))),
            lambda: accuracy(bench.words, ours_writes()),
            seconds,
        )
        settings = TrainingConfig(batch_size=BATCH, learning_rate=LEARNING_RATE, seed=seed)
        module = TrainingModule(ours, pair.objective, settings, rescaling(shapes), ALWAYS)
        lightning.Trainer(
            accelerator="cpu", devices=1, max_epochs=ALWAYS, gradient_clip_val=settings.gradient_clip, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, callbacks=[turns],
        ).fit(module, make_loader(bench.corpus.datasets["train"], BATCH, seed=seed))  # fmt: skip
        return {
            "peer": asdict(turns.peer) | {"parameters": parameters(run.model)},
            "ours": asdict(turns.ours) | {"parameters": parameters(ours)},
            "samples": len(bench.train),
        }


class Turns(lightning.Callback):
    """After each epoch of ours one of the peer's; only what either trains is timed."""

    def __init__(
        self,
        peer_epoch: Callable[[int], Any],
        judge_peer: Callable[[], float],
        judge_ours: Callable[[], float],
        seconds: float,
    ) -> None:
        self.peer_epoch, self.judge_peer, self.judge_ours, self.limit = peer_epoch, judge_peer, judge_ours, seconds
        self.peer, self.ours = Curve(), Curve()
        self.started = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.started = time.process_time()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.ours.seconds.append(time.process_time() - self.started)
        self.ours.accuracy.append(self.judge_ours())
        if self.peer.total < self.limit:
            started = time.process_time()
            self.peer_epoch(len(self.peer.seconds) + 1)
            self.peer.seconds.append(time.process_time() - started)
            self.peer.accuracy.append(self.judge_peer())
        elif self.ours.total >= self.peer.total or self.ours.best >= self.peer.best:
            trainer.should_stop = True
        self.started = time.process_time()


def accuracy(wanted: list[str], written: list[str]) -> float:
    return exact_match(wanted, written).value


def parameters(model: MultimodalVAE | torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


# ------------------------------------------------------------------------------------------------------- the table

HEAD = """# The same training in MultiVae and in mmseqvae

`python -m benchmarks.peers.side_by_side --data-dir DIR`

Free Spoken Digit Dataset, 2,400 recordings to learn from, 300 kept back. Same features, cells and sizes (bidirectional
GRU 128 / 64, GRU 128 / 64, latent 32), objective, weights of the modalities, batch (64), optimiser (Adam 2e-3), one
thread, in turns in one process, each by its own trainer. MultiVae pads or crops to 64 frames, and its decoders are fed
the latent alone; ours reads and scores what was recorded, and its decoders read their own past as well. Seconds are
processor time of training, without the judging. Samples a second: median over the epochs.
"""

COLUMNS = [
    "objective", "seed", "MultiVae's seconds", "MultiVae, samples/s", "ours", "times", "MultiVae's best audio -> text",
    "after, s", "ours as good after, s", "times", "95 % of it after, s", "ours, s", "times", "our best", "parameters",
]  # fmt: skip


def page(records: list[Record]) -> str:
    """All races as Markdown, in the order of PAIRS."""
    order = list(PAIRS)
    records = sorted(
        records, key=lambda r: (-r["run"]["seconds"], order.index(r["run"]["objective"]), r["run"]["seed"])
    )
    lines = [HEAD, "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(cells(record)) + " |" for record in records]
    packages = sorted({f"{r['date']}: torch {r['torch']}, MultiVae {r['multivae']}, {r['machine']}" for r in records})
    return "\n".join([*lines, "", *packages])


def cells(record: Record) -> list[str]:
    """One row, a cell for each of COLUMNS."""
    theirs, ours = (Curve(record[name]["seconds"], record[name]["accuracy"]) for name in ("peer", "ours"))
    speeds = [record["samples"] / median(curve.seconds) for curve in (theirs, ours)]
    row = [record["run"]["objective"], str(record["run"]["seed"]), f"{record['run']['seconds']:g}"]
    row += [f"{speed:.0f}" for speed in speeds]
    row += [f"{speeds[1] / speeds[0]:.2f}", f"{theirs.best:.3f}"]
    for target in (theirs.best, 0.95 * theirs.best):
        their, our = (curve.until(target) if target else None for curve in (theirs, ours))
        row += ["never" if seconds is None else f"{seconds:.0f}" for seconds in (their, our)]
        row += [f"{their / our:.1f}" if their and our else ""]
    counts = " / ".join(f"{record[name]['parameters']:,}" for name in ("peer", "ours"))
    return [*row, f"{ours.best:.3f}", counts]


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.peers.side_by_side")
