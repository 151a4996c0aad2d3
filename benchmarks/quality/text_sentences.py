"""A text VAE of a text file beside the same decoder without a latent, as published tables have it, on train and test.

    python -m benchmarks.quality.text_sentences --text tang300 --name tang --units characters

Runs the recipe of sentences once for each seed (what is finished is kept) and writes
benchmarks/results/sentences-NAME.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from benchmarks.page_heading import heading
from mmseqvae.config import CACHE_DIR, ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.files import write_text
from recipes import text_sentences as recipe

RESULTS = Path(__file__).parents[1] / "results"
HEAD = ["split", "seed", "model", "nats", "perplexity", "KL", "mutual information", "of sentences", "active units"]


def main(
    *,
    text: Path,
    name: str,
    valid: Path | None = None,
    test: Path | None = None,
    units: Literal["spaces", "words", "characters", "bpe", "bytes"] = "spaces",
    seeds: list[int] = [0],  # noqa: B006
    out: Path = Path("runs/benchmark"),
    cache_dir: Path = Path(CACHE_DIR),
    results: Path = RESULTS,
    draws: int = 500,
    model: ModelConfig = recipe.MODEL,
    objective: ObjectiveConfig = recipe.OBJECTIVE,
    training: TrainingConfig = recipe.TRAINING,
) -> None:
    """Run the recipe for every seed, print the table and write it.

    Args:
        text: the file to train on, one sentence a line.
        name: of the data, in the table's name.
        valid: as the recipe has it.
        test: as the recipe has it.
        units: of text.
        seeds: one training each.
        out: folder of the run directories, which are kept and used again.
        cache_dir: where the manifest is kept.
        results: folder for the table.
        draws: of the importance-weighted likelihood.
        model: as the recipe has it.
        objective: as the recipe has it.
        training: as the recipe has it.
    """
    figures = {}
    for seed in seeds:
        run = out / f"sentences-{name}-{seed}"
        recipe.main(
            text=text, valid=valid, test=test, units=units, out=run, cache_dir=cache_dir, seed=seed, draws=draws,
            model=model, objective=objective, training=training,
        )  # fmt: skip
        figures[seed] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    files = " ".join(f"--{split} FILE" for split, file in (("valid", valid), ("test", test)) if file is not None)
    command = (
        f"python -m benchmarks.quality.text_sentences --text {text.name} --name {name} --units {units} {files}".strip()
    )
    command += f" --seeds {' '.join(map(str, seeds))}" + changed(model, objective, training)
    page = "\n".join(lines(figures, command, name))
    print(page)
    write_text(results / f"sentences-{name}.md", page + "\n")


def changed(*configs: Any) -> str:
    """The options of a command line that settings other than the recipe's stand for."""
    usual = {"model": recipe.MODEL, "objective": recipe.OBJECTIVE, "training": recipe.TRAINING}
    return "".join(
        f" --{name}.{field} {value}"
        for (name, base), config in zip(usual.items(), configs, strict=True)
        for field, value in vars(config).items()
        if value != getattr(base, field)
    )


def lines(figures: dict[int, dict[str, Any]], command: str, name: str) -> list[str]:
    """The page: nats and perplexity of both models, and what the latent says, on train and test."""
    first = next(iter(figures.values()))["likelihood"]
    sizes = ", ".join(f"{split} {found['vae']['items']:,}" for split, found in first.items())
    vae = first["test"]["vae"]
    page = [
        *heading(f"Sentences: {name}", command, min(figures)),
        f"Sentences: {sizes}; {vae['tokens_an_item']:.1f} tokens each in test, the end included. Nats a sentence,",
        f"importance-weighted with {vae['draws']} draws under {vae['prior']}, and perplexity a token; latent",
        f"{vae['dimensions']}, decoder of {vae['decoder_parameters']:,} parameters, language model of",
        f"{first['test']['language_model']['parameters']:,}.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|---" * len(HEAD) + "|",
    ]
    for split in first:
        for seed, run in figures.items():
            vae, alone = (run["likelihood"][split][which] for which in ("vae", "language_model"))
            told = [f"{vae['kl']:.2f}", f"{vae['mutual_information']:.2f}", str(vae["mutual_information_items"])]
            rows = {"VAE": (vae, [*told, str(vae["active_units"])]), "no latent": (alone, ["", "", "", ""])}
            page += [
                "| " + " | ".join([split, str(seed), which, f"{f['nll']:.2f}", f"{f['perplexity']:.2f}", *rest]) + " |"
                for which, (f, rest) in rows.items()
            ]
    return page


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.quality.text_sentences")
