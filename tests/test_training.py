"""Training: what fit() writes, that it is deterministic, resumes exactly, stops early, clips and penalises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmseqvae.config import ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.data import Corpus, prepare
from mmseqvae.pretrained import Trained, load, posteriors
from mmseqvae.text import Tokenizer
from mmseqvae.training import Training, fit

SMALL = ModelConfig(
    latent=4, token_embedding=8, token_encoder=8, token_decoder=16, frame_encoder=8, frame_inputs=8, frame_decoder=16
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """48 arrays whose level says which of two words stands beside them; every sixth word is missing."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    lines = ["id,text,move,split"]
    for item in range(48):
        level = item % 2
        np.save(folder / f"{item}.npy", random.normal(4 * level, 1, (5 + item % 4, 3)).astype(np.float32))
        text = "" if item % 6 == 5 else ("low", "high")[level]
        lines.append(f"{item},{text},{item}.npy,{'valid' if item >= 40 else 'train'}")
    (folder / "manifest.csv").write_text("\n".join(lines))
    return prepare(folder / "manifest.csv", frames=["move"], cache_dir=folder / "cache")


def run(corpus: Corpus, out: Path, objective: ObjectiveConfig | None = None, **settings: object) -> Trained:
    training = TrainingConfig(**{"epochs": 2, "batch_size": 8, "warm_up": 2, "components": 3, **settings})  # type: ignore[arg-type]
    return fit(corpus, out, model=SMALL, objective=objective, training=training, progress=False)


def same(a: Trained, b: Trained) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    )


def logged(out: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_training_raises_the_bound_and_leaves_a_run_directory(corpus: Corpus, tmp_path: Path) -> None:
    trained = run(corpus, tmp_path / "run", epochs=12, learning_rate=3e-2)
    there = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.json", "model.safetensors", "checkpoints", "tensorboard", "skipped.csv"} <= there
    assert json.loads((tmp_path / "run" / "config.json").read_text())["format_version"] == 1
    curves = logged(tmp_path / "run")
    assert curves["valid/elbo"][-1] > curves["valid/elbo"][0] + 5
    # a collapse would be seen: KL and active units of every posterior stand there epoch by epoch
    for name in ("joint", "text", "move"):
        assert len(curves[f"train/kl/{name}"]) == len(curves[f"valid/kl/{name}"]) == 12
        assert len(curves[f"valid/active_units/{name}"]) == 12
    assert str(trained.model.prior) == "mixture of 3 fitted to training posteriors"
    assert same(trained, load(tmp_path / "run"))
    assert load(tmp_path / "run").generate("text", move=np.full((6, 3), 4.0), seed=0)["text"] == ["high"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(corpus: Corpus, tmp_path: Path) -> None:
    first = run(corpus, tmp_path / "a")
    assert same(first, run(corpus, tmp_path / "b"))
    assert not same(first, run(corpus, tmp_path / "c", seed=1))


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(corpus, tmp_path / "whole", epochs=4)
    seed_the_epoch = Training.on_train_epoch_start

    def power_cut(self: Training) -> None:
        if self.current_epoch == 2:
            raise RuntimeError("power cut")
        seed_the_epoch(self)

    monkeypatch.setattr(Training, "on_train_epoch_start", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        run(corpus, tmp_path / "cut", epochs=4)
    monkeypatch.undo()
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    assert same(whole, run(corpus, tmp_path / "cut", epochs=4))


def test_a_folder_of_another_training_is_not_overwritten(corpus: Corpus, tmp_path: Path) -> None:
    run(corpus, tmp_path)
    with pytest.raises(ValueError, match="other settings"):
        run(corpus, tmp_path, learning_rate=0.5)


def test_a_folder_of_other_data_is_not_overwritten(corpus: Corpus, tmp_path: Path) -> None:
    run(corpus, tmp_path)
    other = Corpus({**corpus.front_ends, "text": Tokenizer.train(["other"])}, corpus.datasets, corpus.manifest, [])
    with pytest.raises(ValueError, match="other settings or data"):
        run(other, tmp_path)


def test_checkpoints_load_without_running_code(corpus: Corpus, tmp_path: Path) -> None:
    run(corpus, tmp_path)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1


def test_early_stopping_watches_the_named_quantity(corpus: Corpus, tmp_path: Path) -> None:
    run(corpus, tmp_path, epochs=30, patience=2, learning_rate=0.0)
    assert len(logged(tmp_path)["valid/elbo"]) < 30


def test_gradients_are_clipped_when_the_optimiser_steps(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    step = torch.optim.Adam.step

    def recorded(self: torch.optim.Adam, closure=None):  # type: ignore[no-untyped-def]
        def after(inner=closure):  # type: ignore[no-untyped-def]
            loss = inner()
            gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
            return loss

        return step(self, after)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    run(corpus, tmp_path, epochs=1, clip=0.5)
    assert norms
    assert max(norms) == pytest.approx(0.5, rel=1e-3)


def test_penalties_are_the_norms_of_the_weight_matrices(corpus: Corpus, tmp_path: Path) -> None:
    trained = run(corpus, tmp_path, epochs=1)
    module = Training(trained.model, ObjectiveConfig(), TrainingConfig(l1=0.1, l2=0.3), {}, 1)
    matrices = [p.double() for p in trained.model.parameters() if p.ndim > 1]
    expected = sum(0.1 * float(p.detach().abs().sum()) + 0.15 * float(p.detach().square().sum()) for p in matrices)
    assert module.penalty().item() == pytest.approx(expected, rel=1e-5)


def test_penalties_shrink_the_weights(corpus: Corpus, tmp_path: Path) -> None:
    plain, shrunk = run(corpus, tmp_path / "plain", epochs=6), run(corpus, tmp_path / "l1", epochs=6, l1=1.0)
    size = [sum(p.detach().abs().sum().item() for p in t.model.parameters() if p.ndim > 1) for t in (plain, shrunk)]
    assert size[1] < 0.9 * size[0]


def test_beta_weights_and_free_bits_reach_the_objective(corpus: Corpus, tmp_path: Path) -> None:
    trained = run(corpus, tmp_path, epochs=1)
    batch = corpus.datasets["valid"].__getitems__(range(8))

    def terms(weights: dict[str, float], **chosen: object):  # type: ignore[no-untyped-def]
        torch.manual_seed(0)
        config = ObjectiveConfig(**{"name": "elbo", "beta": 1.0, "beta_warm_up": 0, **chosen})  # type: ignore[arg-type]
        return Training(trained.model, config, TrainingConfig(), weights, 1).terms(batch)

    plain, heavy, text = terms({}), terms({}, beta=3.0), terms({"text": 5.0})
    torch.testing.assert_close(plain.objective, plain.elbo)
    torch.testing.assert_close(heavy.objective, plain.elbo - 2 * plain.kl)
    torch.testing.assert_close(text.objective, plain.elbo + 4 * plain.reconstruction["text"])
    torch.testing.assert_close(text.elbo, plain.elbo)
    assert terms({}, free_bits=50.0).objective.mean() < plain.objective.mean()


def test_posteriors_come_in_the_order_of_the_data(corpus: Corpus, tmp_path: Path) -> None:
    trained = run(corpus, tmp_path, epochs=1)
    data = corpus.datasets["train"]
    q = posteriors(trained.model, data, ["move"])
    mean, logvar = q.mean, q.logvar
    alone = trained.model.posterior(data[7], ["move"])
    torch.testing.assert_close(mean[7:8], alone.mean)
    torch.testing.assert_close(logvar[7:8], alone.logvar)


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        (ObjectiveConfig(name="best"), {}, "objective must be one of"),
        (ObjectiveConfig(weights={"video": 2.0}), {}, r"weights name \['video'\]"),
    ],
)
def test_settings_that_do_not_fit_are_told_before_training(
    corpus: Corpus, tmp_path: Path, objective: ObjectiveConfig, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(corpus, tmp_path, objective, **settings)
    assert not (tmp_path / "checkpoints").exists()
