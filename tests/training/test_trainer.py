"""Training: what fit() writes, that it is deterministic, resumes exactly, stops early, clips and penalises."""

from __future__ import annotations

import copy
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmseqvae.config import ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.config.renamed_options import RENAMED
from mmseqvae.data import Corpus, DataWarning, SequenceDataset, make_loader, prepare
from mmseqvae.data.dataset import Column
from mmseqvae.distributions.gaussian import Gaussian
from mmseqvae.objectives import OBJECTIVES, Terms, elbo
from mmseqvae.pipeline.build import build
from mmseqvae.pipeline.dataset_posteriors import encoded, posteriors
from mmseqvae.pipeline.trained_model import Trained, load
from mmseqvae.priors.flows import Flow
from mmseqvae.priors.mixtures import LearntMixture, Mixture
from mmseqvae.tokenizers.characters import Tokenizer
from mmseqvae.training import lightning_module as steps
from mmseqvae.training.density_fitting import fit_prior
from mmseqvae.training.lightning_module import TrainingModule
from mmseqvae.training.trainer import check_first_step, fit, reconstruction_weights

SMALL = ModelConfig(
    latent=4, token_embedding=8, token_encoder=8, token_decoder=16, frame_encoder=8, frame_inputs=8, frame_decoder=16
)

STANDARD = replace(SMALL, prior="standard")


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


def run(
    corpus: Corpus, out: Path, objective: ObjectiveConfig | None = None, model: ModelConfig = SMALL, **settings: object
) -> Trained:
    training = TrainingConfig(**{"epochs": 2, "batch_size": 8, "warm_up": 2, "fitted_components": 3, **settings})  # type: ignore[arg-type]
    return fit(corpus, out, model=model, objective=objective, training=training, progress=False)


def same(a: Trained, b: Trained) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    )


def logged(out: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_threads_are_those_asked_for_while_it_trains_and_the_callers_afterwards(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = torch.get_num_threads(), set()
    monkeypatch.setattr(
        steps.TrainingModule, "on_train_batch_end", lambda *args: seen.add(torch.get_num_threads()), raising=False
    )
    run(corpus, tmp_path / "run", epochs=1, threads=before + 1)
    assert seen == {before + 1}
    assert torch.get_num_threads() == before


def test_training_raises_the_bound_and_leaves_a_run_directory(corpus: Corpus, tmp_path: Path) -> None:
    trained = run(corpus, tmp_path / "run", epochs=12, learning_rate=3e-2)
    there = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.json", "model.safetensors", "checkpoints", "tensorboard", "skipped.csv"} <= there
    assert json.loads((tmp_path / "run" / "config.json").read_text())["format_version"] == 3
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


def under_old_names(settings: dict[str, Any]) -> dict[str, Any]:
    """As the release before wrote them."""
    back = {new: old for names in RENAMED.values() for old, new in names.items()}
    return {
        back.get(name, name): under_old_names(value) if isinstance(value, dict) else value
        for name, value in settings.items()
    }


@pytest.mark.parametrize("by_release_before", [False, True])
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_release_before: bool
) -> None:
    objective = ObjectiveConfig(options={"self_reconstruction": 0.5})
    whole = run(corpus, tmp_path / "whole", objective, epochs=4)
    seed_the_epoch = TrainingModule.on_train_epoch_start

    def power_cut(self: TrainingModule) -> None:
        if self.current_epoch == 2:
            raise RuntimeError("power cut")
        seed_the_epoch(self)

    monkeypatch.setattr(TrainingModule, "on_train_epoch_start", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        run(corpus, tmp_path / "cut", objective, epochs=4)
    monkeypatch.undo()
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    notes = tmp_path / "cut" / "training.json"
    noted = json.loads(notes.read_text())
    if by_release_before:
        parts = {part: under_old_names(noted[part]) for part in ("model", "objective", "training")}
        notes.write_text(json.dumps(noted | parts))
        assert json.loads(notes.read_text())["objective"]["options"] == {"own": 0.5}
    assert same(whole, run(corpus, tmp_path / "cut", objective, epochs=4))


def test_the_prior_learns_at_a_rate_of_its_own(corpus: Corpus) -> None:
    """Adam's first step moves every weight by the learning rate."""
    model = build(corpus.front_ends, {"text": 9, "move": 20}, replace(SMALL, prior="mixture", prior_components=3))
    assert model.learnt is not None
    training = TrainingConfig(warm_up=1, learning_rate=1e-3, prior_rate=7.0)
    module = TrainingModule(model, ObjectiveConfig(), training, {}, total_steps=10)
    optimizer = module.configure_optimizers()["optimizer"]
    means, weight = model.learnt.means, model.modality("text").decoder.to_logits.weight  # type: ignore[union-attr]
    before = means.clone(), weight.clone()
    terms = module.terms(next(iter(make_loader(corpus.datasets["train"], 32, seed=0))))
    (-terms.objective.mean()).backward()
    optimizer.step()
    torch.testing.assert_close((means - before[0]).abs(), torch.full_like(means, 7e-3), rtol=1e-3, atol=0)
    torch.testing.assert_close((weight - before[1]).abs().max().item(), 1e-3, rtol=1e-3, atol=0)


def test_parts_of_the_prior_that_are_left_behind_are_put_to_use_in_training(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 steps of 10 items an epoch; splits before the steps 0, 3, 6, 9, where there is anything to split."""
    moved, split = [], LearntMixture.split

    def spied(prior: LearntMixture) -> int:
        with torch.no_grad():
            prior.logits[len(moved)] = -30.0
        moved.append(split(prior))
        return moved[-1]

    monkeypatch.setattr(LearntMixture, "split", spied)
    monkeypatch.setattr(steps, "REFRESH_EVERY", 3)
    mixture = replace(SMALL, prior="mixture", prior_components=6)
    learnt = run(corpus, tmp_path / "run", model=mixture, epochs=3, batch_size=10).model.learnt
    assert moved == [1, 1, 1, 1]
    assert isinstance(learnt, LearntMixture)
    assert learnt.logits.softmax(-1).min() > 0.01


@pytest.mark.parametrize("fusion", ["joint", "attention", "generalised-poe", "moe"])
def test_every_fusion_is_trained_and_gets_its_prior(corpus: Corpus, fusion: str, tmp_path: Path) -> None:
    training = TrainingConfig(epochs=1, batch_size=32, fitted_components=2)
    trained = fit(corpus, tmp_path, model=replace(SMALL, fusion=fusion), training=training, progress=False)
    assert trained.model.fitted is not None
    assert same(trained, load(tmp_path))


@pytest.mark.parametrize("fusion", ["poe", "joint", "attention"])
def test_bf16_rounds_products_but_not_nats(corpus: Corpus, fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms are float32 and near those of float32, with gradients that are too."""
    model = build(corpus.front_ends, {"text": 9, "move": 20}, replace(SMALL, fusion=fusion))
    batch = next(iter(make_loader(corpus.datasets["train"], 32, seed=0)))
    monkeypatch.setattr(torch, "randn", lambda *size, **how: torch.zeros(*size, dtype=how.get("dtype")))
    found = {}
    for low in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            terms = OBJECTIVES["coordinated"](model, batch, beta=1.0)
        gradients = torch.autograd.grad(-terms.objective.mean(), list(model.parameters()), allow_unused=True)
        found[low] = terms, torch.cat([g.flatten() for g in gradients if g is not None])
    (exact, straight), (rounded, near) = found[False], found[True]
    assert rounded.objective.dtype == torch.float32
    assert not torch.equal(exact.objective, rounded.objective)
    torch.testing.assert_close(rounded.objective, exact.objective, rtol=0.01, atol=0.1)
    assert (near - straight).norm() < 0.05 * straight.norm()


def test_precision_reaches_the_trainer(corpus: Corpus, tmp_path: Path) -> None:
    rounded, exact = run(corpus, tmp_path / "bf16", precision="bf16-mixed"), run(corpus, tmp_path / "32")
    assert not same(rounded, exact)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in rounded.model.parameters())


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


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_early_stopping_keeps_the_best_epoch_whether_interrupted_or_not(
    corpus: Corpus, tmp_path: Path, ema: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate that rises until the bound gets worse: the weights are then those of the epoch before it did."""
    how: dict[str, Any] = {"epochs": 40, "patience": 3, "learning_rate": 0.3, "warm_up": 40, "ema_decay": ema}
    how["objective"] = ObjectiveConfig(options={"coordination": 0.1})
    judged: dict[int, dict[str, torch.Tensor]] = {}  # the weights that were validated, by epoch
    validate = TrainingModule.validation_step

    def noted(self: TrainingModule, batch: Any, number: int) -> None:
        judged[self.current_epoch] = {name: value.clone() for name, value in self.model.named_parameters()}
        validate(self, batch, number)

    with monkeypatch.context() as watching:
        watching.setattr(TrainingModule, "validation_step", noted)
        stopped = run(corpus, tmp_path / "stopped", **how)
    bounds = logged(tmp_path / "stopped")["valid/elbo"]
    best = bounds.index(max(bounds))
    assert 0 < best == len(bounds) - 1 - 3 < 36
    kept = dict(stopped.model.named_parameters())
    assert [all(torch.equal(kept[name], weights[name]) for name in weights) for weights in judged.values()] == [
        epoch == best for epoch in range(len(bounds))
    ]

    module = TrainingModule(stopped.model, ObjectiveConfig(), TrainingConfig(), {}, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        again = [float(module.terms(corpus.datasets["valid"].__getitems__(range(8))).elbo.mean()) for _ in range(300)]
    assert sum(again) / len(again) == pytest.approx(bounds[best], abs=1)
    assert bounds[-1] < bounds[best] - 1.5

    seed_the_epoch = TrainingModule.on_train_epoch_start

    def power_cut(self: TrainingModule) -> None:
        if self.current_epoch == best + 2:
            raise RuntimeError("power cut")
        seed_the_epoch(self)

    monkeypatch.setattr(TrainingModule, "on_train_epoch_start", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        run(corpus, tmp_path / "cut", **how)
    monkeypatch.undo()
    assert same(stopped, run(corpus, tmp_path / "cut", **how))


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
    run(corpus, tmp_path, epochs=1, gradient_clip=0.5)
    assert norms
    assert max(norms) == pytest.approx(0.5, rel=1e-3)


def test_penalties_are_the_norms_of_the_weight_matrices_and_leave_the_prior_alone(
    corpus: Corpus, tmp_path: Path
) -> None:
    trained = run(corpus, tmp_path, epochs=1)
    module = TrainingModule(trained.model, ObjectiveConfig(), TrainingConfig(l1=0.1, l2=0.3), {}, 1)
    assert trained.model.learnt is not None
    parts = {id(p) for p in trained.model.learnt.parameters()}
    assert any(p.ndim > 1 for p in trained.model.learnt.parameters())
    matrices = [p.double() for p in trained.model.parameters() if p.ndim > 1 and id(p) not in parts]
    expected = sum(0.1 * float(p.detach().abs().sum()) + 0.15 * float(p.detach().square().sum()) for p in matrices)
    assert module.penalty().item() == pytest.approx(expected, rel=1e-5)


def test_penalties_shrink_the_weights(corpus: Corpus, tmp_path: Path) -> None:
    plain, shrunk = run(corpus, tmp_path / "plain", epochs=6), run(corpus, tmp_path / "l1", epochs=6, l1=3.0)
    parts = [{n: p for n, p in t.model.named_parameters() if p.ndim > 1} for t in (plain, shrunk)]
    size = [sum(p.detach().abs().sum().item() for n, p in t.items() if "learnt" not in n) for t in parts]
    assert size[1] < 0.9 * size[0]


def test_beta_weights_and_free_bits_reach_the_objective(corpus: Corpus, tmp_path: Path) -> None:
    trained = run(corpus, tmp_path, model=STANDARD, epochs=1)
    batch = corpus.datasets["valid"].__getitems__(range(8))

    def terms(weights: dict[str, float], **chosen: object):  # type: ignore[no-untyped-def]
        torch.manual_seed(0)
        config = ObjectiveConfig(**{"name": "elbo", "beta": 1.0, "beta_warm_up": 0, **chosen})  # type: ignore[arg-type]
        return TrainingModule(trained.model, config, TrainingConfig(), weights, 1).terms(batch)

    plain, heavy, text = terms({}), terms({}, beta=3.0), terms({"text": 5.0})
    torch.testing.assert_close(plain.objective, plain.elbo)
    torch.testing.assert_close(heavy.objective, plain.elbo - 2 * plain.kl)
    torch.testing.assert_close(text.objective, plain.elbo + 4 * plain.reconstruction["text"])
    torch.testing.assert_close(text.elbo, plain.elbo)
    assert terms({}, free_bits=50.0).objective.mean() < plain.objective.mean()


def two_steps(corpus: Corpus, objective: ObjectiveConfig) -> None:
    """Through the Lightning module; every number stays finite, and weights move."""
    torch.manual_seed(0)
    model = build(corpus.front_ends, dict.fromkeys(corpus.front_ends, 12), SMALL)
    module = TrainingModule(model, objective, TrainingConfig(), {}, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, make_loader(corpus.datasets["train"], 8))
    assert trainer.global_step == 2
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_steps_of_every_objective(corpus: Corpus, name: str) -> None:
    two_steps(corpus, ObjectiveConfig(name=name))


def test_the_example_of_a_new_objective_trains(corpus: Corpus) -> None:
    """What CONTRIBUTING shows is run as it stands there: a bound over several draws, with one of them `elbo`."""
    page = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "@register" in block)
    assert len(example.strip().splitlines()) <= 15
    names: dict[str, Any] = {}
    exec(example, names)
    try:
        two_steps(corpus, ObjectiveConfig(name="averaged", options={"draws": 2}))
    finally:
        del OBJECTIVES["averaged"]
    model = build(corpus.front_ends, dict.fromkeys(corpus.front_ends, 12), STANDARD).eval()
    batch, found = corpus.datasets["train"].__getitems__(range(8)), []
    for objective, options in ((names["averaged"], {"draws": 1}), (elbo, {})):
        torch.manual_seed(0)
        found.append(objective(model, batch, beta=0.5, free_bits=0.1, weights={"text": 2.0}, **options).objective)
    torch.testing.assert_close(*found)


def test_options_reach_the_objective(corpus: Corpus) -> None:
    model = build(corpus.front_ends, dict.fromkeys(corpus.front_ends, 12), SMALL)
    batch = corpus.datasets["train"].__getitems__(range(8))

    def terms(**options: float | bool | str) -> Terms:
        torch.manual_seed(0)
        return TrainingModule(model, ObjectiveConfig(options=options), TrainingConfig(), {}, 1).terms(batch)

    plain, twice = terms(coordination=1.0), terms(coordination=2.0)
    torch.testing.assert_close(
        plain.objective - twice.objective, sum(plain.coordination.values()), atol=1e-4, rtol=1e-4
    )


def test_modalities_are_weighed_by_their_dimensions(corpus: Corpus) -> None:
    """By hand: words of 3 and 4 letters and their end, one in six missing; arrays of 3 channels."""
    text, move = (corpus.datasets["train"].lengths(name) for name in ("text", "move"))
    words, frames = text[text > 0].mean(), 3 * move.mean()
    found = reconstruction_weights(corpus, ObjectiveConfig(by_dimension=True))
    assert found == pytest.approx({"text": frames / words, "move": 1.0})
    assert reconstruction_weights(corpus, ObjectiveConfig()) == {"text": 40.0}
    assert reconstruction_weights(corpus, ObjectiveConfig(by_dimension=True, weights={"text": 2.0}))["text"] == 2.0


@pytest.mark.parametrize(("schedule", "factors"), [("linear", [0.1, 0.55, 1]), ("cyclical", [0, 0.5, 1])])
def test_beta_follows_its_schedule(corpus: Corpus, monkeypatch, schedule: str, factors: list[float]) -> None:
    model = build(corpus.front_ends, dict.fromkeys(corpus.front_ends, 12), SMALL)
    objective = ObjectiveConfig(beta=2.0, beta_schedule=schedule, beta_warm_up=4, beta_cycles=2)
    module, found = TrainingModule(model, objective, TrainingConfig(), {}, 16), []
    for step in (0, 2, 4):
        monkeypatch.setattr(TrainingModule, "global_step", step)
        found.append(module.beta)
    assert found == pytest.approx([2 * factor for factor in factors])


def test_beta_is_adapted_to_a_target(corpus: Corpus, tmp_path: Path) -> None:
    """It starts at 0, moves with every step, is logged, and a training that was interrupted goes on with it."""
    objective = ObjectiveConfig(name="elbo", target_kl=0.01, beta=1.0)
    run(corpus, tmp_path, objective, STANDARD, epochs=3)
    curve = logged(tmp_path)["train/beta"]
    assert len(curve) == 3
    assert 0 < curve[0] < curve[1] < curve[2] < 1  # the KL is above its target
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["target_kl"]
    again = TrainingModule(
        build(corpus.front_ends, {"text": 9, "move": 9}, STANDARD), objective, TrainingConfig(), {}, 1
    )
    assert again.beta == 0
    again.on_load_checkpoint({"target_kl": state})
    assert again.beta == state["beta"] > curve[1]


def test_pretraining_is_without_beta_and_then_the_decoders_start_anew(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float, float, dict[str, torch.Tensor]]] = []
    step = TrainingModule.training_step

    def watched(self: TrainingModule, batch: Any, index: int) -> torch.Tensor:
        weights = {name: weight.clone() for name, weight in self.decoders()}
        seen.append((self.current_epoch, self.beta, self.optimizers().param_groups[0]["lr"], weights))
        return step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", watched)
    objective = ObjectiveConfig(beta=2.0, beta_warm_up=2)
    run(corpus, tmp_path, objective, pretraining=2, epochs=1, patience=None)
    first = [epoch for epoch, *_ in seen].index(2)
    assert first == 10  # five batches an epoch
    assert len(seen) == 15
    assert {beta for _, beta, _, _ in seen[:first]} == {0.0}
    assert [beta for _, beta, _, _ in seen[first:]] == pytest.approx([0.2, 1.1, 2, 2, 2])
    rates = [rate for _, _, rate, _ in seen]
    assert rates[:first] == pytest.approx([1e-3] + [2e-3] * 9)  # warm-up, then constant
    assert rates[first : first + 2] == pytest.approx([1e-3, 2e-3])  # and once more
    start, last, anew = seen[0][3], seen[first - 1][3], seen[first][3]
    assert all(torch.equal(start[name], anew[name]) for name in start)
    assert not any(torch.equal(last[name], anew[name]) for name in start if last[name].numel() > 8)


def test_pretraining_that_was_interrupted_goes_on_as_if_nothing_had_happened(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"pretraining": 2, "epochs": 1}
    whole = run(corpus, tmp_path / "whole", **settings)
    seed_the_epoch = TrainingModule.on_train_epoch_start

    def power_cut(self: TrainingModule) -> None:
        if self.current_epoch == 2:
            raise RuntimeError("power cut")
        seed_the_epoch(self)

    monkeypatch.setattr(TrainingModule, "on_train_epoch_start", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        run(corpus, tmp_path / "cut", **settings)
    monkeypatch.undo()
    assert same(whole, run(corpus, tmp_path / "cut", **settings))


def test_normalised_means_are_trained_saved_and_loaded(corpus: Corpus, tmp_path: Path) -> None:
    """After training every expert has just the spread that it is given, and running averages are on their way."""
    settings = TrainingConfig(epochs=4, batch_size=8, warm_up=2, fitted_components=3, ema_decay=0.0)
    trained = fit(corpus, tmp_path, model=replace(SMALL, mean_scale=0.6), training=settings, progress=False)
    assert same(trained, load(tmp_path))
    encoded = trained.model.train().encode(corpus.datasets["train"].__getitems__(range(40)))
    for name in encoded.names:
        spread = encoded.expert(name).mean[encoded.here(name)].std(0, correction=0)
        torch.testing.assert_close(spread, torch.full((4,), 0.6), rtol=0.02, atol=0)
    assert any("normalised.average" in name for name in trained.model.state_dict())


def test_conditionals_are_fitted_after_training(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of modalities that stand beside another often enough; they answer alone, and are saved."""
    told = "no unimodal posterior of move is fitted: 34 items have it and something else, 40 are needed"
    with pytest.warns(DataWarning, match=told):
        trained = run(corpus, tmp_path / "few", unimodal_posteriors="mixture")
    assert not trained.model.conditionals
    twice = replace_train(corpus, 2)
    with caplog.at_level("INFO"):
        trained = run(twice, tmp_path / "run", unimodal_posteriors="mixture")
    assert set(trained.model.conditionals) == {"text", "move"}
    assert "unimodal posterior of text" in caplog.text
    batch = {"text": corpus.datasets["train"].__getitems__([0])["text"]}
    q = trained.model.posterior(batch)
    assert not isinstance(q, Gaussian)
    torch.testing.assert_close(load(tmp_path / "run").model.posterior(batch).mean, q.mean)


def replace_train(corpus: Corpus, times: int) -> Corpus:
    """The same corpus whose training items come several times over."""
    train = corpus.datasets["train"]
    columns = {
        name: Column(column.flat, np.tile(column.starts, times), np.tile(column.lengths, times), column.standard)
        for name, column in train.columns.items()
    }
    ids = [f"{id}-{time}" for time in range(times) for id in train.ids]
    datasets = corpus.datasets | {"train": SequenceDataset(ids, list(train.labels) * times, columns)}
    return Corpus(corpus.front_ends, datasets, corpus.manifest, [])


def test_early_stopping_waits_for_pretraining_to_end(corpus: Corpus, tmp_path: Path) -> None:
    run(corpus, tmp_path, pretraining=5, epochs=30, patience=2, learning_rate=0.0)
    assert 5 + 2 <= len(logged(tmp_path)["valid/elbo"]) < 20


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
        (ObjectiveConfig(options={"aplha": 0.5}), {}, "has no option 'aplha'"),
        (ObjectiveConfig(beta_schedule="square"), {}, "beta_schedule must be one of"),
        (
            ObjectiveConfig(),
            {"unimodal_posteriors": "spline"},
            "unimodal_posteriors must be one of none, mixture, flow",
        ),
        (ObjectiveConfig(), {"fitted_prior": "spline"}, "fitted_prior must be one of mixture, flow"),
        (ObjectiveConfig(target_kl=0.0), {}, "target_kl"),
        (ObjectiveConfig(free_bits=0.1), {}, "free_bits counts nats a dimension"),
        (ObjectiveConfig(name="cvae", options={"given": "sound"}), {}, r"given names \['sound'\]"),
        (ObjectiveConfig(name="mvtcae", options={"alpha": 1.5}), {}, "alpha must lie between 0 and 1, got 1.5"),
        (None, {"patience": 3, "monitor": "valid/bound"}, "monitor must be one of .* got 'valid/bound'"),
        (None, {"precision": "half"}, "precision must be one of 32-true, bf16-mixed"),
        (ObjectiveConfig(weights={"video": 2.0}), {}, r"weights name \['video'\]"),
    ],
)
def test_settings_that_do_not_fit_are_told_before_training(
    corpus: Corpus, tmp_path: Path, objective: ObjectiveConfig | None, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(corpus, tmp_path, objective, **settings)
    assert not [path for path in tmp_path.iterdir() if path.name != "training.json"]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (ModelConfig, {"private": -1}, "model.private must be at least 0, got -1"),
        (ModelConfig, {"max_steps_factor": 0.9}, "model.max_steps_factor must be at least 1, got 0.9"),
        (ModelConfig, {"input_dropout": 1.5}, "model.input_dropout is a share, between 0 and 1, got 1.5"),
        (ObjectiveConfig, {"beta": float("nan")}, "objective.beta must be at least 0, got nan"),
        (ObjectiveConfig, {"weights": {"text": -1.0}}, "objective.weights.text must be at least 0, got -1.0"),
        (ObjectiveConfig, {"beta_cycles": 0}, "objective.beta_cycles must be at least 1, got 0"),
        (TrainingConfig, {"epochs": 0}, "training.epochs must be at least 1, got 0"),
        (TrainingConfig, {"learning_rate": float("inf")}, "training.learning_rate must be at least 0, got inf"),
        (TrainingConfig, {"fitted_items": 1}, "training.fitted_items must be at least 2, got 1"),
        (TrainingConfig, {"ema_decay": 1.0}, "training.ema_decay must be below 1"),
        (
            TrainingConfig,
            {"span_masking": 1.5},
            "training.span_masking is a share of sequences, between 0 and 1, got 1.5",
        ),
    ],
)
def test_numbers_out_of_their_range_are_told_at_once(kind: type, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        kind(**settings)


def test_what_is_checked_before_training_changes_nothing_in_it(corpus: Corpus) -> None:
    model = build(corpus.front_ends, dict.fromkeys(corpus.front_ends, 12), replace(SMALL, mean_scale=0.6))
    module = TrainingModule(model, ObjectiveConfig(), TrainingConfig(), {}, 1)
    before, noise = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    check_first_step(module, corpus.datasets["train"])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(noise, torch.get_rng_state())
    assert module.model.training


def test_sampling_and_batches_by_frames_reach_the_loader(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items with a word, one in two of which is to be left out: those without come, the others as weights say."""
    seen: list[Any] = []
    step = TrainingModule.training_step

    def watched(self: TrainingModule, batch: Any, index: int) -> torch.Tensor:
        seen.append(batch)
        return step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", watched)
    train = corpus.datasets["train"]
    weights = np.arange(len(train)) % 2.0
    datasets = corpus.datasets | {"train": SequenceDataset(train.ids, train.labels, train.columns, weights)}
    run(replace(corpus, datasets=datasets), tmp_path, epochs=1, sampling="weights", frames_per_batch=60)
    assert sum(len(batch["text"].lengths) for batch in seen) == len(train)
    assert all(sum(x.values.shape[0] * x.values.shape[1] for x in batch.values()) <= 60 for batch in seen)
    words = {len(text) for batch in seen for text in batch["text"].items()}
    assert words == {0, len("high") + 1}  # odd items are high, or have no word


def test_priors_are_fitted_to_so_many_items_at_most(corpus: Corpus, tmp_path: Path) -> None:
    """Items of the training set, none twice; what else is trained is the same."""
    all_of_them = run(corpus, tmp_path / "all")
    some = run(corpus, tmp_path / "some", fitted_items=12)
    rows = np.sort(np.random.default_rng(0).choice(40, 12, replace=False))
    said = encoded(all_of_them.model, corpus.datasets["train"])
    part = encoded(some.model, corpus.datasets["train"], items=rows)
    torch.testing.assert_close(part.experts.mean, said.experts.mean[:, rows])
    assert torch.equal(part.present, said.present[:, rows])
    with torch.no_grad():
        draws = part.posterior().rsample(4, generator=some.model.generator(0))
    expected = copy.deepcopy(some.model)
    expected.fit_prior(draws, 3, 0)
    assert isinstance(some.model.fitted, Mixture)
    assert isinstance(all_of_them.model.fitted, Mixture)
    assert isinstance(expected.fitted, Mixture)
    torch.testing.assert_close(some.model.fitted.means, expected.fitted.means)
    assert not torch.allclose(some.model.fitted.means, all_of_them.model.fitted.means)


def test_the_fitted_prior_may_be_a_flow(corpus: Corpus, tmp_path: Path) -> None:
    """It is told by the tenth that it was stopped by, is kept with the model, and few items get a mixture."""
    trained = run(corpus, tmp_path, epochs=1, fitted_prior="flow")
    flow = trained.model.fitted
    assert isinstance(flow, Flow)
    again = load(tmp_path).model.fitted
    assert isinstance(again, Flow)
    z = torch.randn(5, trained.model.latent)
    torch.testing.assert_close(again.log_prob(z), flow.log_prob(z))
    draws = torch.randn(2, 39, trained.model.latent).exp()  # skewed, which a flow follows
    fit_prior(trained.model, draws, TrainingConfig(fitted_prior="flow"))
    assert isinstance(trained.model.fitted, Mixture)
    draws = torch.randn(2, 400, trained.model.latent).exp()
    nats = {}
    for kind in ("mixture", "flow"):
        fit_prior(trained.model, draws, TrainingConfig(fitted_prior=kind, fitted_components=1))
        assert trained.model.fitted is not None
        nats[kind] = float(trained.model.fitted.log_prob(draws).mean())
    assert nats["flow"] > nats["mixture"]


def test_components_of_the_fitted_prior_are_chosen_by_items_held_out(corpus: Corpus, tmp_path: Path) -> None:
    """Two clusters want few components, fitted to all items; many clusters want as many as are allowed."""
    model = run(corpus, tmp_path, epochs=1).model
    model.learnt = None
    generator = torch.Generator().manual_seed(0)

    def clusters(n: int) -> torch.Tensor:
        centers = 20 * torch.randn(n, 4, generator=generator)[torch.arange(400) % n]
        return centers + torch.randn(2, 400, 4, generator=generator)

    for n, most, expected in ((2, 16, range(2, 9)), (30, 16, (16,))):  # half as many and less are nearly as good as two
        z = clusters(n)
        fit_prior(model, z, TrainingConfig(fitted_components=most))
        assert isinstance(model.fitted, Mixture)
        means, density = model.fitted.means, model.fitted.log_prob(z).mean()
        assert len(means) in expected
        again = model.fit_prior(z, len(means), TrainingConfig().seed)
        assert isinstance(again, Mixture)
        torch.testing.assert_close(again.means, means)  # all items were fitted to
        assert density > model.standard.log_prob(z).mean()


def test_one_item_is_too_few_and_is_told_before_training(tmp_path: Path) -> None:
    rows = [{"text": text, "split": split} for text, split in [("a", "train"), ("b", "valid"), ("ab", "train")]]
    with pytest.raises(ValueError, match=r"<items>: the split train has 1 item\(s\), at least 2 are needed"):
        run(prepare(rows[:2], cache_dir=tmp_path / "cache"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(prepare(rows, cache_dir=tmp_path / "cache"), tmp_path / "run", epochs=1)
    assert (tmp_path / "run" / "model.safetensors").exists()
