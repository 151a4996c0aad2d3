"""Settings of single modalities: 0/1 rolls beside real-valued sensors and words in one model."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmseqvae
from mmseqvae.cli.commands import main
from mmseqvae.config import ModalityConfig, ModelConfig, TrainingConfig
from mmseqvae.config.model import DEFAULTS
from mmseqvae.data import Corpus, prepare
from mmseqvae.decoding import FrameSampling
from mmseqvae.distributions.likelihoods import Bernoulli, Laplace, Normal
from mmseqvae.evaluation.language_model_baseline import build_language_model
from mmseqvae.pipeline.build import build
from mmseqvae.training.trainer import check_settings, fit

SMALL = ModelConfig(
    latent=3, prior="standard", token_embedding=4, token_encoder=4, token_decoder=6, frame_encoder=4, frame_inputs=5,
    frame_decoder=6, reduction=1,
)  # fmt: skip
ROLLS = replace(
    SMALL,
    modalities={
        "roll": ModalityConfig(likelihood="bernoulli", hidden=7, inputs=3, reduction=2),
        "sensor": ModalityConfig(likelihood="laplace", hidden=5, decoder_hidden=9, cell="lstm", bidirectional=False),
        "text": ModalityConfig(embedding=3, layers=2, cell="tanh"),
    },
)
TRAINING = TrainingConfig(epochs=2, batch_size=8, fitted_components=1, unimodal_posteriors="none", threads=1)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rolls of 0 and 1, sensors of real numbers, and words."""
    folder, numbers = tmp_path_factory.mktemp("rolls"), np.random.default_rng(0)
    lines = ["text,roll,sensor,split"]
    for item in range(24):
        high, steps = item % 2, int(numbers.integers(3, 6))
        np.save(folder / f"roll{item}.npy", (numbers.random((steps, 4)) < (0.8 if high else 0.2)).astype("f4"))
        np.save(folder / f"sensor{item}.npy", numbers.normal(2 * high, 1, (steps, 2)).astype("f4"))
        word, split = ("high" if high else "low"), ("train" if item < 16 else "valid")
        lines.append(f"{word},roll{item}.npy,sensor{item}.npy,{split}")
    (folder / "manifest.csv").write_text("\n".join(lines))
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def corpus(manifest: Path) -> Corpus:
    return prepare(manifest, frames=["roll", "sensor"], cache_dir=manifest.parent / "cache")


def test_rolls_beside_sensors_train_and_are_saved_loaded_and_written(corpus: Corpus, tmp_path: Path) -> None:
    trained = fit(corpus, tmp_path / "run", model=ROLLS, training=TRAINING, progress=False)
    loaded = mmseqvae.load(tmp_path / "run")
    assert loaded.config == ROLLS
    kinds = {name: type(loaded.model.modality(name).decoder.likelihood) for name in ("roll", "sensor")}  # type: ignore[union-attr]
    assert kinds == {"roll": Bernoulli, "sensor": Laplace}
    how = FrameSampling(noise=1, end="draw", max_steps=6)
    made = [
        each.generate(["roll", "sensor"], 3, {"roll": how, "sensor": how}, seed=1, text="high")
        for each in (trained, loaded)
    ]
    for name in ("roll", "sensor"):
        for a, b in zip(made[0][name], made[1][name], strict=True):
            np.testing.assert_array_equal(a, b)
    assert {x for roll in made[1]["roll"] for x in roll.flatten().tolist()} == {0.0, 1.0}
    assert not all(float(x).is_integer() for sensor in made[1]["sensor"] for x in sensor.flatten())


def test_networks_are_of_the_sizes_that_are_asked_for(corpus: Corpus) -> None:
    longest = {"text": 9, "roll": 9, "sensor": 9}
    model = build(corpus.front_ends, longest, ROLLS)
    rnns: Any = {n: (model.modality(n).encoder.rnn, model.modality(n).decoder.net.rnn) for n in longest}  # type: ignore[union-attr]
    found = {name: [(rnn.kind, rnn.layers, rnn.hidden) for rnn in pair] for name, pair in rnns.items()}
    assert found == {
        "text": [("tanh", 2, 4), ("tanh", 2, 6)], "roll": [("gru", 1, 7), ("gru", 1, 7)],
        "sensor": [("lstm", 1, 5), ("lstm", 1, 9)],
    }  # fmt: skip
    assert model.modality("text").encoder.embedding.weight.shape[1] == 3  # type: ignore[union-attr]
    assert [model.modality(name).decoder.reduction for name in ("roll", "sensor")] == [2, 1]  # type: ignore[union-attr]
    assert rnns["sensor"][0].channels == 5  # in one direction
    assert rnns["roll"][0].channels == 14


def test_what_is_said_of_every_modality_is_what_the_model_says_of_all(corpus: Corpus) -> None:
    """The same weights from the same seed, whether a setting stands in ModelConfig or in each of its modalities."""
    of_tokens = {
        "layers": 2,
        "cell": "tanh",
        "pooling": "mean",
        "dropout": 0.1,
        "bidirectional": False,
        "mean_scale": 0.5,
    }
    of_frames = of_tokens | {"likelihood": "laplace", "scale": "predicted", "scale_floor": 0.1, "input_noise": 0.2}
    whole = replace(SMALL, **of_frames)  # type: ignore[arg-type]
    frames = ModalityConfig(**of_frames)  # type: ignore[arg-type]
    each = {"text": ModalityConfig(**of_tokens), "roll": frames, "sensor": frames}  # type: ignore[arg-type]
    built = []
    for config in (whole, replace(SMALL, modalities=each)):
        torch.manual_seed(0)
        built.append(build(corpus.front_ends, {"text": 9, "roll": 9, "sensor": 9}, config))
    assert str(built[0]) == str(built[1])
    for a, b in zip(built[0].state_dict().values(), built[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_every_setting_of_a_modality_has_a_default_and_a_kind() -> None:
    known = {field.name for field in fields(ModalityConfig)}
    assert {*DEFAULTS["tokens"], *DEFAULTS["frames"], "hidden"} == known
    given: Any = {"cell": "lstm", "hidden": 3, "encoder_hidden": 4}
    config = ModelConfig(modalities={"a": ModalityConfig(**given)})
    assert config.of("tokens", "a") == {
        "cell": "lstm", "layers": 1, "bidirectional": True, "pooling": "last", "dropout": 0.0, "input_dropout": 0.4,
        "mean_scale": 0.0, "embedding": 32, "encoder_hidden": 4, "decoder_hidden": 3,
    }  # fmt: skip
    assert config.of("tokens", "b") == ModelConfig().of("tokens") != config.of("tokens", "a")
    assert ModelConfig(modalities={"a": given}) == config  # type: ignore[dict-item]  # as a file has it


def test_the_language_model_is_of_its_modality(corpus: Corpus) -> None:
    model = build_language_model(corpus, "text", ROLLS)
    rnn = model.decoder.net.rnn
    assert (rnn.kind, rnn.layers, rnn.hidden) == ("tanh", 2, 6)
    assert model.decoder.embedding.weight.shape[1] == 3


@pytest.mark.parametrize(
    ("modalities", "told"),
    [
        ({"rol": {"layers": 2}}, "model.modalities names rol, which is no modality here; there are text, roll, sensor"),
        ({"roll": {"embedding": 2}}, "model.modalities.roll.embedding does not go with frames, which roll holds"),
        (
            {"text": {"likelihood": "normal"}},
            "model.modalities.text.likelihood does not go with tokens, which text holds",
        ),
        (
            {"sensor": {"likelihood": "bernoulli"}},
            "bernoulli is a likelihood of frames of 0 and 1, which those of sensor",
        ),
        ({"roll": {"likelihood": "bernoulli", "scale": "fixed"}}, "model.modalities.roll: bernoulli has no scale"),
    ],
)
def test_what_does_not_fit_the_corpus_is_refused(corpus: Corpus, tmp_path: Path, modalities: Any, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        fit(corpus, tmp_path / "run", model=replace(SMALL, modalities=modalities), training=TRAINING, progress=False)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (
            {"likelihood": "cauchy"},
            "modalities.roll.likelihood must be one of normal, laplace, bernoulli, got 'cauchy'",
        ),
        ({"cell": "rnn"}, "modalities.roll.cell must be one of tanh, gru, lstm, got 'rnn'"),
        ({"pooling": "sum"}, "modalities.roll.pooling must be one of last, mean, max, got 'sum'"),
        ({"scale": "free"}, "modalities.roll.scale must be one of fixed, learnt, predicted, got 'free'"),
        ({"layers": 0}, "model.modalities.roll.layers must be at least 1, got 0"),
        ({"hidden": 0}, "model.modalities.roll.hidden must be at least 1, got 0"),
        ({"input_dropout": 1.5}, "model.modalities.roll.input_dropout is a share, between 0 and 1, got 1.5"),
    ],
)
def test_unknown_names_and_bad_numbers_are_refused_without_data(setting: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        check_settings(
            ModelConfig(modalities={"roll": ModalityConfig(**setting)}), mmseqvae.ObjectiveConfig(), TRAINING
        )


def test_settings_of_a_modality_on_the_command_line_and_in_a_file(manifest: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        "model:\n  latent: 2\n  modalities:\n    roll: {likelihood: bernoulli, hidden: 3}\n", encoding="utf-8"
    )
    common = ["--frames", "roll", "sensor", "--cache-dir", str(manifest.parent / "cache"), "--training.epochs=1",
              "--training.fitted-components=1", "--training.threads=1", "--model.prior=standard"]  # fmt: skip
    more = ["--model.modalities.sensor.scale-floor", "0.5", "--model.modalities.roll.hidden=4"]
    main(["train", str(manifest), "--out", str(tmp_path / "run"), "--config", str(file), *common, *more])
    found = json.loads((tmp_path / "run" / "config.json").read_text())["model"]["modalities"]
    given = {name: ModalityConfig(**one).given for name, one in found.items()}
    assert given == {"roll": {"likelihood": "bernoulli", "hidden": 4}, "sensor": {"scale_floor": 0.5}}
    loaded = mmseqvae.load(tmp_path / "run").model
    likelihood: Any = loaded.modality("sensor").decoder.likelihood  # type: ignore[union-attr]
    assert (type(likelihood), likelihood.floor) == (Normal, 0.5)
