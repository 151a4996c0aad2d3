"""The table of priors and baselines: made of models that are there, of numbers that a slow computation repeats."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.quality import priors as benchmark
from benchmarks.quality.trial import Completed
from mmseqvae.config import ModelConfig, TrainingConfig
from mmseqvae.data import prepare
from mmseqvae.files import write_text
from mmseqvae.priors import flows
from mmseqvae.priors.base import StandardNormal
from mmseqvae.priors.mixtures import LearntMixture
from mmseqvae.training.trainer import fit
from recipes import spoken_digits as recipe

MODEL = ModelConfig(
    latent=4, token_embedding=4, token_encoder=4, token_decoder=4, frame_encoder=4, frame_inputs=4, frame_decoder=4,
    prior="mixture", prior_components=3,
)  # fmt: skip


def test_every_prior_of_a_finished_model_has_its_line(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipe, "FSDD_SUMS", recordings.parent / "sums")
    monkeypatch.setattr(recipe, "WORDS", ["zero", "one", "two"])
    monkeypatch.setattr(flows, "EPOCHS", 2)
    cache, models = recordings.parent / "cache", tmp_path / "models"
    corpus = prepare(recipe.prepare_fsdd(cache, recordings), audio=recipe.AUDIO, cache_dir=cache)
    run = models / "spoken_digits-fsdd-7"
    fit(corpus, run, model=MODEL, training=TrainingConfig(epochs=1, batch_size=16, fitted_components=2), progress=False)
    write_text(run / "metrics.json", "{}")

    benchmark.main(recordings, [7], pairs=20, models=models, cache_dir=cache, results=tmp_path)
    found = json.loads((tmp_path / "priors.json").read_text())["seeds"]["7"]
    assert found.keys() == benchmark.NAMES.keys()
    assert all(f["pairs"] == f["coherence"]["log_mel"]["of"] == 20 for f in found.values())
    assert found["learnt"]["over_learnt"] == 0
    for figures in found.values():
        assert figures["over_learnt"] == pytest.approx(figures["nats"] - found["learnt"]["nats"], abs=1e-4)
    table = (tmp_path / "priors.md").read_text()
    assert all(table.count(f"\n| {shown} |") == 1 for shown in benchmark.NAMES.values())
    assert table.strip() in capsys.readouterr().out


def test_a_model_that_is_not_there_is_told_before_anything_is_prepared(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"spoken_digits-fsdd-3.*run python -m benchmarks.quality.spoken_digits"
    ):
        benchmark.main(tmp_path / "nowhere", [3], models=tmp_path)


def test_a_completed_prior_is_dense_where_it_completes_nothing() -> None:
    first, z = LearntMixture(3, 2), torch.randn(5, 2)
    whole = Completed(first, torch.tensor([True, True]), StandardNormal(2))
    torch.testing.assert_close(whole.log_prob(z), first.log_prob(z))
    with pytest.raises(ValueError, match="has no log-density"):
        Completed(first, torch.tensor([True, False]), StandardNormal(2)).log_prob(z)
