"""What does the recipe of requests reach? The medians of its seeds beside the bars, and what sampling by label changes.

    python -m benchmarks.quality.typed_requests --data-dir DIR        # seeds 0, 1 and 2, one after another

Runs the recipe once for each seed, and three times more on the skewed requests, with plain, square-root and balanced
sampling; what is finished is kept. Writes benchmarks/results/requests.md.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.page_heading import heading
from benchmarks.quality.spoken_digits import Row, heard, measured, shown
from mmseqvae.config import CACHE_DIR, ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.files import write_text
from recipes import typed_requests as recipe

RESULTS = Path(__file__).parents[1] / "results"
SAMPLINGS = ("plain", "square-root", "balanced")
Figures = dict[str, Any]


def over(*path: str, above: str, below: str) -> Any:
    """One figure over another beside it."""

    def find(figures: Figures) -> float:
        found = heard(*path)(figures)
        return found[above] / found[below]

    return find


def minutes(figures: Figures) -> float | None:
    """None where the model was there already when it was measured."""
    seconds = figures["run"]["training_seconds"]
    return None if seconds is None else seconds / 60


VAE, ALONE = ("likelihood", "vae"), ("likelihood", "language_model")
ROWS = [
    Row("nats a request, importance-weighted", heard(*VAE, "nll"), digits=2),
    Row("    under the mixture fitted after training", heard(*VAE, "fitted"), digits=2),
    Row("    effective draws", heard(*VAE, "effective_draws"), digits=1),
    Row("    perplexity", heard(*VAE, "perplexity"), digits=1),
    Row("language model without latent, nats", heard(*ALONE, "nll"), digits=2),
    Row("    perplexity", heard(*ALONE, "perplexity"), digits=1),
    Row("nats over the language model's", heard("likelihood", "ratio"), most=1.02),
    Row("mutual information, nats", heard(*VAE, "mutual_information"), least=3, digits=2),
    Row("    of requests", heard(*VAE, "mutual_information_items"), digits=0),
    Row("KL, nats", heard(*VAE, "kl"), digits=2),
    Row("active units, of 32", heard(*VAE, "active_units"), digits=0),
    Row("perplexity of samples over held-out", over("samples", above="perplexity_sampled", below="perplexity_real"),
        most=1.3, digits=2),
    Row("distinct-2 of samples over held-out", over("samples", above="distinct_2_sampled", below="distinct_2_real"),
        least=0.8, digits=2),
    Row("samples that training holds", heard("samples", "copied_from_training")),
    Row("held-out requests that training holds", heard("samples", "real_in_training")),
    Row("intent from the latent, linear probe", heard("intent", "probe", "accuracy"), least=0.95),
    Row("intent from the text, likeliest by its decoder", heard("intent", "likeliest", "accuracy"), least=0.95),
    Row("    written from one draw of the latent", heard("intent", "written", "accuracy")),
    Row("samples of an intent judged as such", heard("samples", "of_an_intent")),
    Row("    different ones", heard("samples", "of_an_intent_different")),
    Row("    the judge on held-out requests", heard("samples", "judge")),
    Row("minutes of training", minutes, digits=1),
]  # fmt: skip
SKEWED = [
    Row("macro-F1, linear probe", heard("intent", "probe", "macro_f1")),
    Row("macro-F1, likeliest by its decoder", heard("intent", "likeliest", "macro_f1")),
    Row("macro-F1, written from one draw", heard("intent", "written", "macro_f1")),
    Row("accuracy, linear probe", heard("intent", "probe", "accuracy")),
    Row("accuracy, likeliest by its decoder", heard("intent", "likeliest", "accuracy")),
    Row("nats a request", heard(*VAE, "nll"), digits=2),
]


def main(
    data_dir: Path | None = None,
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    skewed_seeds: list[int] = [0],  # noqa: B006
    out: Path = Path("runs/benchmark"),
    cache_dir: Path = Path(CACHE_DIR),
    results: Path = RESULTS,
    model: ModelConfig = recipe.MODEL,
    objective: ObjectiveConfig = recipe.OBJECTIVE,
    training: TrainingConfig = recipe.TRAINING,
) -> None:
    """Run the recipe for every seed, plain and skewed, print the tables of what it reached, and write them.

    Args:
        data_dir: folder with the requests; without it they are downloaded.
        seeds: one training each.
        skewed_seeds: three trainings each on the skewed requests, one a way of sampling.
        out: folder of the run directories, which are kept and used again.
        cache_dir: where the requests are kept.
        results: folder for the tables.
        model: as the recipe has it.
        objective: as the recipe has it.
        training: as the recipe has it.
    """

    def reached(name: str, seed: int, skewed: bool, sampling: str) -> Figures:
        run = out / f"requests-{name}-{seed}"
        how = replace(training, sampling=sampling)
        recipe.main(data_dir, run, cache_dir, seed, skewed, model=model, objective=objective, training=how)
        return json.loads((run / "metrics.json").read_text(encoding="utf-8"))

    plain = {seed: reached("plain", seed, False, "plain") for seed in seeds}
    skewed = {
        sampling: {seed: reached(f"skewed-{sampling}", seed, True, sampling) for seed in skewed_seeds}
        for sampling in SAMPLINGS
    }
    command = "python -m benchmarks.quality.typed_requests" + (" --data-dir DIR" if data_dir else "")
    command += f" --seeds {' '.join(map(str, seeds))} --skewed-seeds {' '.join(map(str, skewed_seeds))}"
    text = page(plain, skewed, command)
    print(text)
    write_text(results / "requests.md", text + "\n")


def page(plain: dict[int, Figures], skewed: dict[str, dict[int, Figures]], command: str) -> str:
    """The tables as Markdown, and what they were measured with. Of `skewed`, {sampling: {seed: figures}}."""
    first = next(iter(plain.values()))
    vae, made = first["likelihood"]["vae"], first["samples"]
    lines = [
        *heading("Requests", command, min(plain)),
        f"Split {first['run']['split']}, {vae['items']} requests of {vae['tokens_an_item']:.1f} tokens,",
        f"{vae['draws']} draws, {vae['prior']}. The decoder has {vae['decoder_parameters']:,} parameters,",
        f"the language model {first['likelihood']['language_model']['parameters']:,}.",
        f"{made['texts']} samples from the prior at temperature {made['temperature']:g}; the perplexity of held-out",
        f"requests under an n-gram model of words is {made['perplexity_real']:.1f}.",
        "In brackets 95 % intervals of the shares.",
        "",
        *table(ROWS, {f"seed {seed}": found for seed, found in plain.items()}, True),
        "",
        "## Skewed: of the second intent one training request in 2, of the seventh one in 64",
        "",
        "The test requests have as many of each intent as before.",
        "",
        *table(SKEWED, {f"{how}, seed {seed}": found for how, runs in skewed.items() for seed, found in runs.items()}),
    ]
    return "\n".join(lines)


def table(rows: list[Row], columns: dict[str, Figures], middle: bool = False) -> list[str]:
    """One line a row; with `middle` the median of the columns stands before them, with the bar that it is held to."""
    extra = ["bar", "median"] if middle else []
    lines = ["| " + " | ".join(["measure", *extra, *columns]) + " |", "|---" * (1 + len(extra) + len(columns)) + "|"]
    for row in rows:
        values = [row.of(found) for found in columns.values()]
        cells = [row.name]
        if middle:
            known = [float(v["value"] if isinstance(v, dict) else v) for v in values if measured(v)]
            cells += [row.bar(median(known) if known else None), f"**{median(known):.{row.digits}f}**" if known else ""]
        lines.append("| " + " | ".join([*cells, *(shown(value, row.digits) for value in values)]) + " |")
    return lines


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.quality.typed_requests")
