"""More epochs for a finished run, the same command twice, and trainings that start from another run's weights."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mmseqvae
from mmseqvae.cli.commands import main
from mmseqvae.config import LogMelConfig, ModelConfig, TextConfig, TrainingConfig
from mmseqvae.data import Corpus, prepare
from mmseqvae.tokenizers.categories import Category, Labels
from mmseqvae.training.lightning_module import TrainingModule
from mmseqvae.training.run_state import training_seconds
from mmseqvae.training.trainer import fit
from tests.training.test_own_parts import own_model, rows

SIZES = ModelConfig(
    latent=3, prior_components=2, token_embedding=4, token_encoder=4, token_decoder=4, frame_encoder=4, frame_inputs=4,
    frame_decoder=4, max_steps_factor=2.0,
)  # fmt: skip
QUICK = TrainingConfig(epochs=2, batch_size=8, warm_up=2, threads=1, fitted_components=2)
WORDS = ("on", "off", "up")


def corpus(folder: Path, words: tuple[str, ...] = WORDS, **how: object) -> Corpus:
    return prepare(rows(words, 48), frames=["move"], cache_dir=folder / "cache", **how)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def weights(trained: mmseqvae.Trained) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trained.model.state_dict().items()}


def test_a_finished_run_is_loaded_and_no_byte_changes(tmp_path: Path) -> None:
    data, run = corpus(tmp_path), tmp_path / "run"
    first = fit(data, run, model=SIZES, training=QUICK, progress=False)
    before, times = content(run), {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    second = fit(data, run, model=SIZES, training=QUICK, progress=False)
    assert content(run) == before
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == times
    for name, weight in weights(first).items():
        assert torch.equal(weights(second)[name], weight), name


def test_the_same_command_twice_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = ["id,text,split", *(f"{i},{WORDS[i % 3]},{'train' if i < 40 else 'test'}" for i in range(48))]
    (tmp_path / "words.csv").write_text("\n".join(table))
    sizes = [f"--model.{name}=4" for name in ("latent", "token-embedding", "token-encoder", "token-decoder")]
    command = ["train", str(tmp_path / "words.csv"), "--out", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "c"),
               *sizes, "--training.epochs=2", "--training.threads=1"]  # fmt: skip
    main(command)
    before, told = content(tmp_path / "run"), capsys.readouterr().out
    main(command)
    assert content(tmp_path / "run") == before
    assert capsys.readouterr().out == told
    main([*command, "--training.epochs=3"])
    after = content(tmp_path / "run")
    assert after["model.safetensors"] != before["model.safetensors"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["run"]["training_seconds"] == training_seconds(tmp_path / "run")  # measured anew
    (tmp_path / "run" / "finished.json").unlink()  # as a release before left it
    before = content(tmp_path / "run")
    main([*command, "--training.epochs=3"])
    assert content(tmp_path / "run") == before


def test_more_epochs_go_on_from_where_the_training_was(tmp_path: Path) -> None:
    data, run = corpus(tmp_path), tmp_path / "run"
    fit(data, run, model=SIZES, training=QUICK, progress=False)
    seconds = training_seconds(run)
    steps = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert steps == 2 * 5  # 40 items in batches of 8
    longer = replace(QUICK, epochs=5)
    fit(data, run, model=SIZES, training=longer, progress=False)
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5 * 5
    assert json.loads((run / "finished.json").read_text())["epochs"] == 5
    total = training_seconds(run)
    assert seconds is not None
    assert total is not None
    assert total > seconds  # of both parts
    with pytest.raises(ValueError, match="5 epochs, and 2 are asked for: epochs can be raised, not lowered"):
        fit(data, run, model=SIZES, training=QUICK, progress=False)
    for wrong, told in (
        (replace(longer, learning_rate=1.0), r"training\.learning_rate was 0\.002 and is 1\.0"),
        (replace(longer, epochs=9, seed=4), r"training\.seed was 0 and is 4"),
    ):
        with pytest.raises(ValueError, match=told):
            fit(data, run, model=SIZES, training=wrong, progress=False)
    (run / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(ValueError, match=r"last\.ckpt is gone"):
        fit(data, run, model=SIZES, training=replace(QUICK, epochs=6), progress=False)
    assert mmseqvae.load(run).sample(1)["text"]  # what was there stays


def test_a_run_of_the_release_before_that_was_cut_while_going_on_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its model of fewer epochs is not taken for the one of more."""
    data, run = corpus(tmp_path), tmp_path / "run"
    fit(data, run, model=SIZES, training=QUICK, progress=False)
    (run / "finished.json").unlink()  # which that release did not write
    longer, before = replace(QUICK, epochs=4), (run / "model.safetensors").read_bytes()

    def power_cut(self: TrainingModule) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(TrainingModule, "on_train_epoch_start", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(data, run, model=SIZES, training=longer, progress=False)
    monkeypatch.undo()
    assert (run / "model.safetensors").read_bytes() == before  # what was there can be loaded meanwhile
    assert mmseqvae.load(run).sample(1)["text"]
    fit(data, run, model=SIZES, training=longer, progress=False)
    assert json.loads((run / "finished.json").read_text())["epochs"] == 4
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4 * 5
    assert (run / "model.safetensors").read_bytes() != before


def test_a_training_that_goes_on_is_the_longer_one_up_to_its_schedules(tmp_path: Path) -> None:
    """With a constant rate (no warm-up, no decay in the first steps) the order and noise of epochs are the same."""
    data = corpus(tmp_path)
    seen: dict[str, list[int]] = {"whole": [], "parts": []}

    def epochs(name: str, *numbers: int) -> None:
        import lightning

        class Notes(lightning.Callback):
            def on_train_batch_start(self, trainer: lightning.Trainer, module: object, batch: dict, index: int) -> None:
                seen[name].append(int(batch["text"].lengths.sum()) * 1000 + trainer.current_epoch)

        for number in numbers:
            fit(data, tmp_path / name, model=SIZES, training=replace(QUICK, epochs=number), callbacks=[Notes()],
                progress=False)  # fmt: skip

    epochs("whole", 4)
    epochs("parts", 2, 4)
    assert seen["parts"] == seen["whole"]


def test_a_run_is_fine_tuned_with_new_symbols(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = fit(corpus(tmp_path), tmp_path / "run", model=SIZES, training=QUICK, progress=False)
    data = corpus(tmp_path, ("on", "zap", "two"), start=run.front_ends)
    old, new = run.front_ends["text"], data.front_ends["text"]
    assert set(new.vocabulary) == set(old.vocabulary) | set("zaptw")
    assert torch.equal(data.front_ends["move"].fitted.mean, run.front_ends["move"].fitted.mean)
    still = replace(QUICK, learning_rate=0.0, ema_decay=0.0, prior_rate=0.0, epochs=1)
    tuned = fit(data, tmp_path / "tuned", training=still, start=tmp_path / "run", progress=False)
    assert tuned.config == SIZES
    assert any("text: new symbols, 'a', 't', 'w', 'z'" in line for line in caplog.messages)
    before, after = weights(run), weights(tuned)
    assert torch.equal(after["modalities.move.encoder.rnn.forwards.0.weight_hh_l0"],
                       before["modalities.move.encoder.rnn.forwards.0.weight_hh_l0"])  # fmt: skip
    for part, behind in (
        ("encoder.embedding.weight", 1),
        ("decoder.embedding.weight", 2),
        ("decoder.to_logits.bias", 0),
    ):
        a, b = before[f"modalities.text.{part}"], after[f"modalities.text.{part}"]
        for symbol, number in old.vocabulary.items():
            assert torch.equal(b[new.vocabulary[symbol]], a[number]), (part, symbol)
        assert torch.equal(b[new.vocabulary["z"]], a[old.unknown_id])  # new ones begin as unknown
        if behind:
            assert torch.equal(b[-behind:], a[-behind:])
    means = [model.model.encode(model.encode([{"text": "on"}])).posterior().mean for model in (tuned, run)]
    torch.testing.assert_close(*means)
    with pytest.raises(ValueError, match="other settings or data"):
        fit(data, tmp_path / "tuned", training=still, model=SIZES, progress=False)  # from nothing is another training


def test_own_parts_are_fine_tuned(tmp_path: Path) -> None:
    run = fit(corpus(tmp_path), tmp_path / "run", model=own_model, training=QUICK, progress=False)
    data = corpus(tmp_path, ("on", "off", "no"), start=run.front_ends)
    still = replace(QUICK, learning_rate=0.0, ema_decay=0.0, prior_rate=0.0)
    tuned = fit(data, tmp_path / "tuned", model=own_model, training=still, start=run, progress=False)
    before, after = weights(run), weights(tuned)
    assert torch.equal(after["modalities.move.encoder.convolution.weight"],
                       before["modalities.move.encoder.convolution.weight"])  # fmt: skip


def test_pseudo_inputs_are_items_of_the_new_corpus(tmp_path: Path) -> None:
    vamp = replace(SIZES, prior="vamp", prior_components=3)
    run = fit(corpus(tmp_path), tmp_path / "run", model=vamp, training=QUICK, progress=False)
    data = corpus(tmp_path, ("on", "off", "zap"), start=run.front_ends)
    still = replace(QUICK, learning_rate=0.0, ema_decay=0.0, prior_rate=0.0)
    tuned = fit(data, tmp_path / "tuned", training=still, start=run, progress=False)
    texts = weights(tuned)["learnt.views.text.values"]
    known = {tuple(data.datasets["train"][i]["text"].values[0].tolist()) for i in range(40)}
    for row, length in zip(texts, weights(tuned)["learnt.views.text.lengths"], strict=True):
        assert tuple(row[:length].tolist()) in known


def test_a_corpus_that_lacks_what_the_run_knows_is_refused(tmp_path: Path) -> None:
    run = fit(corpus(tmp_path), tmp_path / "run", model=SIZES, training=QUICK, progress=False)
    with pytest.raises(ValueError, match=r"text: the corpus lacks symbols of the run, 'f', 'p', 'u': prepare it with"):
        fit(corpus(tmp_path, ("on", "no")), tmp_path / "new", training=QUICK, start=run, progress=False)
    with pytest.raises(ValueError, match="move: the features of the corpus are not those of the run"):
        fit(prepare(rows(WORDS, 48, seed=5), frames=["move"], cache_dir=tmp_path / "cache"), tmp_path / "new",
            training=QUICK, start=run, progress=False)  # fmt: skip
    with pytest.raises(ValueError, match="units of text are those of the run"):
        corpus(tmp_path, start=run.front_ends, text=TextConfig(units="bytes"))
    with pytest.raises(ValueError, match="move is a column of frames in the run to start from, and of tokens here"):
        prepare([{"move": "a"}], tokens=["move"], start=run.front_ends)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["labels", "covariates"])
def test_labels_and_covariates_learn_new_values(kind: str, tmp_path: Path) -> None:
    def spoken(words: tuple[str, ...], who: tuple[str, ...], **how: object) -> Corpus:
        table = [row | {"who": who[i % len(who)]} for i, row in enumerate(rows(words, 48))]
        return prepare(table, frames=["move"], cache_dir=tmp_path / "c", **{kind: ["who"]}, **how)  # type: ignore[arg-type]

    run = fit(spoken(WORDS, ("ann", "bob")), tmp_path / "run", model=SIZES, training=QUICK, progress=False)
    data = spoken(WORDS, ("cat", "ann"), start=run.front_ends)
    who, before = data.front_ends["who"], run.front_ends["who"]
    names = [name for name in who.vocabulary if not name.startswith("<")]
    assert names == ["ann", "bob", "cat"]
    still = replace(QUICK, learning_rate=0.0, ema_decay=0.0, prior_rate=0.0)
    tuned = fit(data, tmp_path / "tuned", training=still, start=run, progress=False)
    name = "modalities.who.encoder.embedding.weight" if kind == "labels" else "covariates.who.embedding.weight"
    a, b = weights(run)[name], weights(tuned)[name]
    unknown = a[before.unknown_id] if kind == "labels" else a[-1]
    assert isinstance(who, Labels if kind == "labels" else Category)
    for value in ("ann", "bob"):
        assert torch.equal(b[who.vocabulary[value]], a[before.vocabulary[value]])
    assert torch.equal(b[who.vocabulary["cat"]], unknown)
    assert torch.equal(b[-1], a[-1])


def test_the_command_starts_from_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, words in (("first", ("on", "no")), ("second", ("on", "up"))):
        table = ["id,text,split", *(f"{i},{words[i % 2]},{'train' if i < 40 else 'test'}" for i in range(48))]
        (tmp_path / f"{name}.csv").write_text("\n".join(table))
    common = ["--cache-dir", str(tmp_path / "c"), "--training.epochs=1", "--training.threads=1"]
    sizes = [f"--model.{name}=4" for name in ("latent", "token-embedding", "token-encoder", "token-decoder")]
    main(["train", str(tmp_path / "first.csv"), "--out", str(tmp_path / "run"), *common, *sizes])
    main(
        [
            "train",
            str(tmp_path / "second.csv"),
            "--out",
            str(tmp_path / "tuned"),
            "--from",
            str(tmp_path / "run"),
            *common,
        ]
    )
    tuned = mmseqvae.load(tmp_path / "tuned")
    assert tuned.config is not None
    assert tuned.config.latent == 4
    assert {*"onup"} < {*tuned.front_ends["text"].vocabulary}
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "first.csv"), "--out", str(tmp_path / "x"), "--from", str(tmp_path / "nowhere")])
    assert "there is no such run directory" in capsys.readouterr().err


def test_log_mels_are_those_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave the settings of audio out"):
        prepare([], audio=LogMelConfig(sample_rate=8000), start={"audio": mmseqvae.LogMel(LogMelConfig())})
