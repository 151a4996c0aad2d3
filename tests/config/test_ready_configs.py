"""Ready settings: each trains two steps on made data, and files build nothing but settings."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mmseqvae.cli.commands import main
from mmseqvae.cli.parser import run
from mmseqvae.config import READY, ModelConfig, ObjectiveConfig, Settings, TextConfig, TrainingConfig, load_config
from recipes import typed_requests as requests

ITEMS = 12
TINY = [
    "--model.latent=3", "--model.prior-components=2", "--model.token-embedding=3", "--model.token-encoder=4",
    "--model.token-decoder=4", "--model.frame-encoder=4", "--model.frame-inputs=4", "--model.frame-decoder=4",
    "--training.pretraining=0", "--training.epochs=2", "--training.fitted-components=1", "--training.threads=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """{ready settings: manifest and options of data that they are for}."""
    folder, numbers = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for item in range(ITEMS):
        soundfile.write(folder / f"{item}.wav", 0.1 * numbers.standard_normal(4000), 16000)
        roll = (numbers.random((9, 5)) < 0.4).astype("f4").tolist()
        pulse = numbers.standard_normal((9, 2)).tolist()
        said = {"audio": f"{item}.wav", "text": "a word or two" if item % 2 else "a word", "intent": f"{item % 2}"}
        rows.append({**said, "roll": roll, "pulse": pulse, "split": "train" if item < 8 else "valid"})

    def manifest(*columns: str) -> str:
        path = folder / f"{'-'.join(columns)}.jsonl"
        lines = ({name: row[name] for name in (*columns, "split")} for row in rows)
        path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        return str(path)

    spoken = [manifest("audio", "text")]
    return {
        "words": spoken, "sentences": spoken, "text": [manifest("text", "intent"), "--labels", "intent"],
        "piano_rolls": [manifest("roll"), "--frames", "roll"], "sensors": [manifest("pulse"), "--frames", "pulse"],
    }  # fmt: skip


@pytest.mark.parametrize("name", READY)
def test_two_steps_of_each(name: str, made: dict[str, list[str]], tmp_path: Path) -> None:
    out = tmp_path / "run"
    main(["train", *made[name], "--out", str(out), "--cache-dir", str(tmp_path / "cache"), *TINY, "--config", name])
    noted = json.loads((out / "training.json").read_text(encoding="utf-8"))
    expected = load_config(name)
    assert noted["training"]["epochs"] == 2  # options override the file, though it stands behind them
    assert noted["training"]["learning_rate"] == expected.training.learning_rate
    assert noted["objective"]["name"] == expected.objective.name
    assert noted["model"]["likelihood"] == expected.model.likelihood
    assert (out / "model.safetensors").exists()


def test_words_are_the_defaults_and_text_what_a_recipe_measures() -> None:
    """Other recipes read theirs from these files."""
    assert load_config("words") == Settings()
    text = load_config("text")
    assert (text.text.units, text.model, text.objective) == ("words", requests.MODEL, requests.OBJECTIVE)
    assert replace(requests.TRAINING, threads=None) == text.training


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {latent: 5}\ntraining:\n  learning_rate: 2e-3\ntext: {units: bpe}\n", encoding="utf-8")
    assert load_config(file) == Settings(model=ModelConfig(5), text=TextConfig("bpe"))
    file.write_text("training: {sure: 0.5}\nobjective: {options: {own: 1}}\n", encoding="utf-8")  # of the last release
    found = load_config(file)
    assert found.training == TrainingConfig(pseudo_label_threshold=0.5)
    assert found.objective == ObjectiveConfig(options={"self_reconstruction": 1})
    file.write_text("", encoding="utf-8")
    assert load_config(file) == Settings()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("modle: {latent: 5}", "FILE: modle is no part of the settings; there are audio, text, windows, model, "),
        ("model: {latnt: 5}", "FILE: .*latnt"),
        ("model: {latent: many}", "FILE: .*latent"),
        ("model: {latent: 0}", "model.latent must be at least 1, got 0"),
        ("- model", "FILE must hold settings such as .*, not list"),
        ("model: {latent: [", "FILE is no YAML: "),
        ("model: !!python/object/apply:os.system [exit]", "FILE is no YAML: "),
        ("model: {class_path: mmseqvae.config.ModelConfig}", "FILE: class_path is no setting"),
        ("model: {modalities: {roll: {class_path: a.B}}}", "FILE: class_path is no setting"),
    ],
)
def test_what_is_no_setting_is_refused(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=told.replace("FILE", re.escape(str(file)))):
        load_config(file)


def command(model: ModelConfig = ModelConfig(), seed: int = 0) -> tuple[ModelConfig, int]:  # noqa: B008
    return model, seed


def test_options_override_files_in_any_order_and_the_last_file_the_first(tmp_path: Path) -> None:
    (one := tmp_path / "one.yaml").write_text("model: {latent: 5, cell: tanh}\nseed: 3\n", encoding="utf-8")
    (two := tmp_path / "two.yaml").write_text("seed: 4\n", encoding="utf-8")
    expected = ModelConfig(7, cell="tanh")
    assert run(command, ["--config", str(one), "--model.latent", "7"]) == (expected, 3)
    assert run(command, ["--model.latent=7", f"--config={one}"]) == (expected, 3)
    assert run(command, ["--model.latent=7", "--config", str(one), "--config", str(two)]) == (expected, 4)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--config", "nothing"],
            "there is no file nothing, and no ready settings of that name: .*piano_rolls, ",
        ),
        (["--config"], "--config"),
        (["--config", "text"], "Option 'objective.options.alpha' is not accepted"),  # a command that reads no text
    ],
)
def test_the_command_line_refuses(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(command, words, "mmseqvae")
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"^mmseqvae: error: .*({told})", line)
