"""Do the priors beat the baselines? Matching pairs and held-out log-density, by prior, of the models of spoken digits.

    python -m benchmarks.quality.spoken_digits --source fsdd --data-dir DIR        # trains the models
    python -m benchmarks.quality.priors --data-dir DIR                             # a minute or two a seed

Each model's priors are N(0, I), the one learnt with it, a mixture and a flow fitted afterwards; the baselines, a
training item and a draw of its posterior, and a word and a draw of q(z | word). Pairs are judged as in
benchmarks/quality/spoken_digits.py. Held out: the mean over test items of log p(z) for draws z of their joint
posterior, which is what the prior adds to their ELBO. A baseline that only replays training items says the words well
and has no density where others lie. Writes results/priors.md and .json.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.page_heading import heading
from benchmarks.quality.corpus_and_judges import Place
from benchmarks.quality.trial import fitted_priors
from mmseqvae.config import CACHE_DIR
from mmseqvae.evaluation.cross_generation import matching_pairs
from mmseqvae.evaluation.summary import encoded
from mmseqvae.files import write_json, write_text
from mmseqvae.pipeline.trained_model import Trained, load
from recipes import spoken_digits as recipe

RESULTS = Path(__file__).parents[1] / "results"
DRAWS = 20  # of the posterior of a test item
NAMES = {
    "standard": "N(0, I)",
    "learnt": "learnt with the model",
    "fitted": "mixture of at most 50, fitted",
    "flow": "flow, fitted",
    "resampled": "baseline: resampled training posteriors",
    "word": "baseline: a word, then its posterior",
}
Figures = dict[str, Any]


def main(
    data_dir: Path | None = None,
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    pairs: int = 3000,
    models: Path = Path("runs/benchmark"),
    cache_dir: Path = Path(CACHE_DIR),
    results: Path = RESULTS,
) -> None:
    """Measure every prior of the finished models, print the table, and write it.

    Args:
        data_dir: folder with the recordings of the Free Spoken Digit Dataset; without it they are downloaded.
        seeds: of the models.
        pairs: drawn and judged from each prior.
        models: the folder in which benchmarks/quality/spoken_digits.py left its models.
        cache_dir: where recordings, features and judges are kept.
        results: folder for the table.
    """
    runs = {seed: models / f"spoken_digits-fsdd-{seed}" for seed in seeds}
    if missing := [str(run) for run in runs.values() if not (run / "metrics.json").exists()]:
        raise FileNotFoundError(
            f"no finished model in {', '.join(missing)}: run python -m benchmarks.quality.spoken_digits --source "
            "fsdd first, or name the folder that it wrote with --models"
        )
    place = Place.prepare(data_dir, False, "test", cache_dir, models)
    found = {str(seed): measured(load(run), place, pairs, seed) for seed, run in runs.items()}
    command = "python -m benchmarks.quality.priors" + (" --data-dir DIR" if data_dir else "")
    command += f" --seeds {' '.join(map(str, seeds))} --pairs {pairs}"
    text = page(found, command, place.judges.accuracy["word"]["log_mel"]["value"])
    print(text)
    write_text(results / "priors.md", text + "\n")
    write_json(results / "priors.json", {"command": command, "pairs": pairs, "seeds": found})


@torch.no_grad()
def measured(trained: Trained, place: Place, pairs: int, seed: int) -> dict[str, Figures]:
    """Every prior of a model: its pairs, and how dense it is where the test items lie, over the learnt one."""
    model = trained.model.eval()
    said = encoded(model, place.corpus.datasets["train"])
    z = encoded(model, place.corpus.datasets["test"]).posterior().rsample(DRAWS, generator=model.generator(seed))
    priors = fitted_priors(trained, said, list(recipe.WORDS), seed)
    dense = {name: prior.log_prob(z).mean(0) for name, prior in priors.items()}
    beside = dense.get("learnt", dense["standard"])
    judge, words = place.judges.word.labels, list(recipe.WORDS)
    figures = {name: matching_pairs(trained, prior, pairs, words, judge, seed=seed) for name, prior in priors.items()}
    for name, nats in dense.items():
        over = nats - beside
        figures[name] |= {
            "nats": float(nats.mean()), "over_learnt": float(over.mean()),
            "standard_error": float(over.std() / len(over) ** 0.5),
        }  # fmt: skip
    return figures


def page(found: dict[str, dict[str, Figures]], command: str, ceiling: float) -> str:
    """A line a prior: medians over seeds, and every seed's figure."""
    lines = [
        *heading("Priors and baselines", command, 0),
        "Models of `python -m benchmarks.quality.spoken_digits --source fsdd --data-dir DIR`, medians of the seeds",
        f"{', '.join(found)}, in brackets every seed. Pairs: the share in which the judge, who hears {ceiling:.3f} of",
        "real recordings right, hears the word written. Nats: the mean log-density of draws from the joint posteriors",
        "of test items less that under the prior learnt with the model, an item (standard errors in brackets).",
        "",
        "| prior | pairs | effective digits | nats over the learnt prior |",
        "|---|---|---|---|",
    ]
    for name, shown in NAMES.items():
        of = [seed[name] for seed in found.values() if name in seed]
        if not of:
            continue
        pairs, nats = [f["coherence"]["log_mel"]["value"] or 0.0 for f in of], [f["over_learnt"] for f in of]
        each = [f"{more:+.2f} [{f['standard_error']:.2f}]" for more, f in zip(nats, of, strict=True)]
        lines.append(
            f"| {shown} | **{median(pairs):.3f}** ({', '.join(f'{share:.3f}' for share in pairs)}) "
            f"| {median(f['effective_words'] for f in of):.2f} | **{median(nats):+.2f}** ({', '.join(each)}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.quality.priors")
