"""Tables of texts: medians beside their bars, both samplings side by side, and the command that made them."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import text_sentences as sentences
from benchmarks.quality import typed_requests as requests
from tests.made_texts import poems
from tests.recipes.test_recipes import TINY

SHARE = {"value": 0.96, "low": 0.94, "high": 0.97, "hits": 672, "of": 700}


def figures(nll: float, macro_f1: float = 0.9) -> dict[str, Any]:
    vae = {
        "items": 700, "tokens_an_item": 11.0, "draws": 500, "prior": "N(0, I)", "nll": nll, "fitted": None,
        "effective_draws": 9.0, "perplexity": 14.0, "mutual_information": 3.5, "mutual_information_items": 700,
        "kl": 4.0, "active_units": 20, "dimensions": 32, "decoder_parameters": 1200,
    }  # fmt: skip
    alone = {"nll": 30.0, "perplexity": 13.0, "parameters": 1000}
    samples = {
        "temperature": 0.9, "texts": 700, "perplexity_sampled": 36.0, "perplexity_real": 24.0,
        "distinct_2_sampled": 0.4,
        "distinct_2_real": 0.5, "copied_from_training": SHARE, "real_in_training": SHARE, "of_an_intent": SHARE,
        "of_an_intent_different": 0.9, "judge": SHARE,
    }  # fmt: skip
    intent = {how: {"accuracy": SHARE, "macro_f1": macro_f1} for how in ("written", "likeliest", "probe")}
    run = {"split": "test", "training_seconds": None}
    likelihood = {"vae": vae, "language_model": alone, "ratio": nll / 30}
    return copy.deepcopy({"run": run, "likelihood": likelihood, "samples": samples, "intent": intent})


def cells(page: str, name: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_medians_meet_or_miss_their_bars() -> None:
    plain = {0: figures(30.3), 1: figures(30.9), 2: figures(30.6)}
    skewed = {"plain": {0: figures(33.0, 0.81)}, "balanced": {0: figures(33.0, 0.87)}}
    page = requests.page(plain, skewed, "python -m benchmarks.quality.typed_requests")
    assert cells(page, "nats over the language model's") == ["<= 1.02 (met)", "**1.020**", "1.010", "1.030", "1.020"]
    assert cells(page, "perplexity of samples over held-out")[:2] == ["<= 1.3 (MISSED)", "**1.50**"]
    assert cells(page, "distinct-2 of samples over held-out")[:2] == [">= 0.8 (met)", "**0.80**"]
    assert cells(page, "intent from the latent, linear probe")[2] == "0.960 [0.940, 0.970]"
    assert cells(page, "minutes of training")[2:] == ["none", "none", "none"]
    assert cells(page, "macro-F1, likeliest by its decoder") == ["0.810", "0.870"]


def test_a_table_of_sentences_is_made_from_a_text_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = replace(sentences.recipe.TRAINING, pretraining=0, epochs=1, batch_size=8, fitted_components=2)
    objective = sentences.recipe.OBJECTIVE
    sentences.main(
        text=poems(tmp_path / "poems"), name="poems", units="characters", seeds=[3], out=tmp_path / "runs",
        cache_dir=tmp_path / "cache", results=tmp_path, draws=2, model=TINY, objective=objective, training=how,
    )  # fmt: skip
    page = (tmp_path / "sentences-poems.md").read_text(encoding="utf-8")
    assert "--text poems --name poems --units characters --seeds 3" in page
    assert "--training.epochs 1" in page
    assert "train 20, test 2; " in page
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(("| train", "| test"))]
    assert [row[:3] for row in rows] == [
        [split, "3", which] for split in ("train", "test") for which in ("VAE", "no latent")
    ]
    assert page in capsys.readouterr().out
