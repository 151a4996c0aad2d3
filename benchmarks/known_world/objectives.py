"""What does every objective lose, in nats, where the truth is known? And what keeps accuracy, variety and likelihood?

    python -m benchmarks.known_world.objectives  # both worlds, every objective, two runs side by side

Every run trains the same small networks with the same likelihood, scale rule, optimiser and budget of processor time,
as on speech (`benchmarks/quality/objectives.py`), on fresh pairs from the world of `benchmarks/known_world/world.py`,
then counts what it loses against exact values (`benchmarks/known_world/divergences.py`) and what the truth hears in it
(`benchmarks/known_world/cross_generation.py`). Only the objective, the fusion that belongs to it, and the prior differ.
The time of a step is measured once and kept with the results, so that a run makes as many wherever it is made. The
first seed screens; the constructions that lose least, `CLOSE`, are trained with every seed. Two worlds: voices v ~ N(0,
I), and a crowd of four speakers, between whom there are holes. A finished run is a line in results/known_world.jsonl
and is not made again; tables and pictures are written from these.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import shlex
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.known_world.compared_models import CLOSE, DEFAULT, RUNS, Run
from benchmarks.known_world.cross_generation import crossed, invented, latent_ranks, share, voice_ranks
from benchmarks.known_world.divergences import Figures, likelihoods, priors
from benchmarks.known_world.entropies import truth
from benchmarks.known_world.objectives_page import average, page, picture
from benchmarks.known_world.world import CHANNELS, END, LETTERS, MOST_FRAMES, MOST_LETTERS, Draws, Scores, World
from benchmarks.ledger import Ledger
from mmseqvae.config import ModelConfig, TrainingConfig
from mmseqvae.files import write_text
from mmseqvae.fusion import FUSIONS
from mmseqvae.model import MultimodalVAE
from mmseqvae.objectives import OBJECTIVES
from mmseqvae.pipeline.build import frame_modality, token_modality
from mmseqvae.priors.mixtures import LearntMixture
from mmseqvae.training.lightning_module import parameter_groups
from mmseqvae.training.schedules import warm_up, warm_up_then_cosine

RESULTS = Path(__file__).parents[1] / "results"
LATENT, HIDDEN = 6, 32
COMPONENTS = 50  # of the prior that is fitted, and of the one that is learnt
PAIRS, BATCH, RATE, CLIP = 200_000, 256, 5e-3, 20.0
FITTED, TEST = 4000, 500
TEST_SEED = 2
PROBED = 60  # steps whose time tells how many of them fit into a budget


def main(
    only: list[str] | None = None,
    speakers: list[int] = [1, 4],  # noqa: B006
    seeds: list[int] = [0, 1, 2, 3, 4, 5],  # noqa: B006
    seconds: float = 45,
    draws: int = 200,
    test_seed: int = TEST_SEED,
    results: Path = RESULTS,
    side_by_side: int = 2,
) -> None:
    """Train what is not yet in the results, measure it, and write tables and pictures.

    Args:
        only: names of runs; by default all of them.
        speakers: of the worlds, 1 for v ~ N(0, I), 4 for a crowd.
        seeds: of networks, batches and draws: the first for every run, all of them for those in CLOSE. The figures of
            a run are averages over those of its seeds that are finished; all have the same test pairs.
        seconds: of processor time for every training: as many steps as take it, the same for every seed.
        draws: importance draws of every log-likelihood.
        test_seed: of the test pairs; others, with seeds of networks that chose nothing, tell whether a choice holds, on
            pages of their own.
        results: folder for the lines, tables and pictures.
        side_by_side: runs at a time, one thread each.
    """
    names = only or list(RUNS)
    if strange := sorted(set(names) - set(RUNS)):
        raise ValueError(f"there is no run {strange}; there are {list(RUNS)}")
    ledger = Ledger(results / "known_world.jsonl")
    for crowd in speakers:
        if ledger.find({"world": crowd}) is None:
            ledger.append({"run": {"world": crowd}, "truth": truth(World(crowd)).to_dict()})

    other = {"test_seed": test_seed} if test_seed != TEST_SEED else {}

    def described(name: str, crowd: int, seed: int) -> dict[str, Any]:
        common = {"world": crowd, "seed": seed, "seconds": seconds, "draws": draws, **other}
        return {"name": name, **common, **RUNS[name].settings()}

    wanted = [
        described(name, crowd, seed)
        for crowd in speakers
        for name in names
        for seed in seeds[: None if name in CLOSE else 1]
    ]
    waiting = [(run, max(1, round(seconds / pace(RUNS[run["name"]], ledger)))) for run in ledger.left(wanted)]
    for record in tqdm(made(waiting, side_by_side), "known world", total=len(waiting), unit="run"):
        ledger.append(record)

    options = f" --seeds {' '.join(map(str, seeds))} --draws {draws} --seconds {seconds:g}"
    options += f" --test-seed {test_seed}" if other else ""
    command = "python -m benchmarks.known_world.objectives" + options + (f" --only {shlex.join(names)}" if only else "")
    for crowd in speakers:
        known = ledger.find({"world": crowd})
        assert known is not None
        found = {name: average(ledger.finished(described(name, crowd, seed) for seed in seeds)) for name in names}
        stem = results / f"known_world-{'crowd' if crowd > 1 else 'smooth'}{f'-{test_seed}' if other else ''}"
        text = page(crowd, known["truth"], found, command, DEFAULT)
        print(text)
        write_text(stem.with_suffix(".md"), text + "\n")
        picture(World(crowd), found, stem.with_suffix(".png"))


def pace(run: Run, ledger: Ledger) -> float:
    """Seconds a step, measured once for all runs that differ only in what is fitted afterwards."""
    training = replace(run, conditional=None)
    found = ledger.find({"pace": training.settings()})
    if found is None:
        found = {"run": {"pace": training.settings()}, "seconds a step": seconds_a_step(training)}
        ledger.append(found)
    return float(found["seconds a step"])


def made(waiting: list[tuple[dict[str, Any], int]], side_by_side: int) -> Iterator[dict[str, Any]]:
    """The records of runs, each as soon as it is finished."""
    if side_by_side == 1:
        yield from (finished(*run) for run in waiting)
        return
    with ProcessPoolExecutor(side_by_side, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(finished, *run) for run in waiting]):
            yield done.result()


def finished(run: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train and measure one run."""
    torch.set_num_threads(1)
    world, chosen = World(run["world"]), Run(**{f.name: run[f.name] for f in fields(Run) if f.name in run})
    pairs = world.draw(PAIRS, seed=1)
    started = time.process_time()
    model = fitted(optimised(chosen, pairs, steps, run["seed"]), chosen, pairs, run["seed"])
    seconds = time.process_time() - started
    figures: Figures = measure(
        model, world, world.draw(TEST, seed=run.get("test_seed", TEST_SEED)), run["draws"], seed=run["seed"]
    )
    return {
        "run": run,
        "figures": figures,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "seconds": round(seconds, 1),
        "measured in": round(time.process_time() - started - seconds, 1),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()} with {os.cpu_count()} cores",
        "torch": torch.__version__,
    }


def build(run: Run) -> MultimodalVAE:
    """The networks of a run, with weights that depend on torch's seed."""
    config = ModelConfig(
        latent=LATENT - run.private,
        private=run.private,
        bidirectional=False,
        token_embedding=8,
        token_encoder=HIDDEN,
        token_decoder=HIDDEN,
        frame_encoder=HIDDEN,
        frame_inputs=HIDDEN,
        frame_decoder=HIDDEN,
        reduction=1,
        input_dropout=0.0,
        input_noise=0.0,
    )
    modalities = {
        "text": token_modality(LETTERS + 1, END, MOST_LETTERS + 1, config),
        "audio": frame_modality(CHANNELS, MOST_FRAMES, config),
    }
    latent = config.latent + len(modalities) * config.private
    prior = LearntMixture(COMPONENTS, latent) if run.prior == "mixture" else None
    return MultimodalVAE(modalities, FUSIONS[run.fusion](len(modalities), latent), prior)


def seconds_a_step(run: Run) -> float:
    """Of processor time, over `PROBED` steps behind as many others."""
    torch.set_num_threads(1)
    pairs = World(1).draw(PAIRS, seed=1)
    times = []
    for _ in range(2):
        started = time.process_time()
        optimised(run, pairs, PROBED, 0)
        times.append(time.process_time() - started)
    return times[-1] / PROBED


def optimised(run: Run, pairs: Draws, steps: int, seed: int) -> MultimodalVAE:
    """A model trained on random batches of `pairs`."""
    torch.manual_seed(seed)
    model = build(run).train()
    optimizer = torch.optim.Adam(parameter_groups(model, RATE, TrainingConfig.prior_rate), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_up_then_cosine(step, 50, steps))
    for step in range(steps):
        batch = some(pairs, torch.randint(PAIRS, (BATCH,)))
        terms = OBJECTIVES[run.objective](model, batch, beta=warm_up(step, steps // 5, start=0.1), **run.options)
        optimizer.zero_grad()
        (-terms.objective.mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
    return model.eval()


def fitted(model: MultimodalVAE, run: Run, pairs: Draws, seed: int) -> MultimodalVAE:
    """The model with a mixture fitted to its posteriors, and with conditionals if the run has some."""
    with torch.no_grad():
        encoded = model.encode(some(pairs, torch.arange(FITTED)))
        model.fit_prior(encoded.posterior().rsample(), COMPONENTS, seed)
        for name in encoded.names if run.conditional else ():
            model.fit_conditional(name, encoded, kind=run.conditional, seed=seed)
    return model


def some(pairs: Draws, rows: torch.Tensor) -> dict[str, Any]:
    return {name: sequence[rows] for name, sequence in pairs.batch.items()}


@torch.no_grad()
def measure(
    model: MultimodalVAE, world: World, test: Draws, draws: int = 200, samples: int = 8, seed: int = 0
) -> Figures:
    """All figures of a model on the items `test`. draws: importance draws; samples: generated items a test item."""
    generator = model.generator(seed)
    true = Scores(world, test.batch)
    return {
        "likelihood": likelihoods(model, test.batch, true, draws, generator),
        "text to audio": crossed(model, world, test, true, "text", samples, generator),
        "audio to text": crossed(model, world, test, true, "audio", samples, generator),
        "pairs": {
            name: invented(model, world, prior, samples * len(test.word), generator)
            for name, prior in priors(model).items()
        },
        "real pairs coherent": share(true.word("text") == true.word("audio")),
        "ranks": {**voice_ranks(model, world, test, generator), **latent_ranks(model, len(test.word), generator)},
    }


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.known_world.objectives")
