"""The commands, from a manifest to files, through the same door as a shell's: main(args)."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mmseqvae.cli.commands import main
from mmseqvae.cli.common import command
from mmseqvae.cli.parser import run
from mmseqvae.config import ModelConfig
from mmseqvae.pipeline.trained_model import load

pytestmark = pytest.mark.filterwarnings("default::mmseqvae.DataWarning")  # as outside of this suite

PITCHES = {"low": 300, "mid": 700, "high, so high": 1500}  # Hz
RATE = 8000
TINY = [
    "--audio.sample-rate=8000", "--audio.n-fft=256", "--audio.hop-length=128", "--audio.n-mels=12",
    "--model.latent=4", "--model.token-encoder=8", "--model.token-decoder=8", "--model.token-embedding=4",
    "--model.frame-encoder=8", "--model.frame-decoder=8", "--model.frame-inputs=8",
    "--training.epochs=2", "--training.batch-size=8", "--training.fitted_components=2", "--training.threads=1",
    "--frames", "motion", "--seed", "3",
]  # fmt: skip


def tones(folder: Path) -> Path:
    """A manifest of 30 rows: tones of three pitches, their names, and arrays of two channels; one cell is empty."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    rows = [("id", "audio", "text", "motion", "split", "label", "colour")]
    for i in range(30):
        word = list(PITCHES)[i % 3]
        time = np.arange(int(RATE * random.uniform(0.2, 0.3))) / RATE
        wave = 0.5 * np.sin(2 * np.pi * PITCHES[word] * random.uniform(0.9, 1.1) * time)
        soundfile.write(folder / f"{i}.wav", wave, RATE)
        np.save(folder / f"{i}.npy", random.normal(i % 3, 1, (5, 2)).astype(np.float32))
        split = "train" if i < 21 else "valid" if i < 25 else "test"
        rows.append((f"item{i}", f"{i}.wav", "" if i == 4 else word, f"{i}.npy", split, word[0], "red"))
    with (folder / "tones.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "tones.csv"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tones(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return ["--cache-dir", str(tmp_path_factory.mktemp("cache"))]


@pytest.fixture(scope="module")
def trained(manifest: Path, cache: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tones"
    main(["train", str(manifest), "--out", str(out), *cache, *TINY])
    return out


def refused(args: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """What `main(args)` complains about, before anything but warnings is printed."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    said = [line for line in shown.err.splitlines() if not line.startswith("warning: ")]
    assert said[0].startswith("mmseqvae: error: ")
    assert "Traceback" not in shown.err
    return shown.err


def index_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------------ train


def test_train_writes_the_run_directory(trained: Path) -> None:
    there = files_in(trained)
    assert {"config.json", "model.safetensors", "metrics.json", "skipped.csv", "checkpoints", "tensorboard"} <= {*there}
    metrics = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    assert metrics.pop("run")["recipe"] == "mmseqvae train"
    assert {split: figures["items"] for split, figures in metrics.items()} == {"valid": 4, "test": 5}
    assert all(figures["seed"] == 3 for figures in metrics.values())
    config = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    assert config["model"]["latent"] == 4
    assert config["front_ends"]["audio"]["config"]["sample_rate"] == RATE
    assert list(config["front_ends"]) == ["text", "audio", "motion"]


def test_train_again_keeps_a_finished_run_and_refuses_other_settings(
    trained: Path,
    manifest: Path,
    cache: list[str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = (trained / "model.safetensors").read_bytes()
    main(["train", str(manifest), "--out", str(trained), *cache, *TINY])
    shown, told = capsys.readouterr()
    assert (trained / "model.safetensors").read_bytes() == before
    assert "train: 21 items; text 20 (1 missing), audio 21, motion 21" in caplog.messages
    assert told.splitlines().count("warning: unused columns: colour") == 1
    assert f"mmseqvae generate {trained} --text low" in shown
    with pytest.raises(SystemExit):
        main(["train", str(manifest), "--out", str(trained), *cache, *TINY, "--model.latent=5"])
    assert "other settings" in capsys.readouterr().err
    assert (trained / "model.safetensors").read_bytes() == before


def test_a_config_file_gives_what_options_do_not(tmp_path: Path) -> None:
    seen: list[tuple[ModelConfig, bool, list[str]]] = []

    def command(model: ModelConfig, skip_bad: bool = False, tokens: list[str] | None = None) -> None:
        seen.append((model, skip_bad, tokens or []))

    file = tmp_path / "run.yaml"
    file.write_text("model:\n  latent: 5\n  cell: tanh\nskip_bad: true\ntokens: [a]\n", encoding="utf-8")
    run(command, ["--config", str(file), "--model.latent", "7"])
    run(command, ["--config", str(file), "--tokens", "b", "c d", "--model.token_encoder", "9"])
    assert seen == [
        (ModelConfig(7, cell="tanh"), True, ["a"]),
        (ModelConfig(5, cell="tanh", token_encoder=9), True, ["b", "c d"]),
    ]


def test_bad_rows_stop_the_training_or_are_listed(
    tmp_path: Path, cache: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tones(tmp_path)
    (tmp_path / "7.wav").write_bytes(b"")
    (tmp_path / "8.wav").write_bytes((tmp_path / "8.wav").read_bytes()[:-100])
    train: list[Any] = ["train", manifest, "--out", tmp_path / "run", *cache, *TINY]
    said = refused(train, capsys)
    assert "line 9 (id item7)" in said
    assert "7.wav: file is empty" in said
    assert not (tmp_path / "run").exists()
    main([*map(str, train), "--skip-bad", "--training.epochs=1"])
    skipped = (tmp_path / "run" / "skipped.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[:2] for line in skipped] == [["row", "id"], ["9", "item7"], ["10", "item8"]]


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["MANIFEST", "--tokens", "nothing"], "has no column 'nothing'"),
        (["MANIFEST", "--tokens"], "--tokens"),
        (["nowhere.csv"], "nowhere.csv: there is no such manifest"),
        ([], "manifest"),
        (["MANIFEST", "--out", "MANIFEST"], "is a file"),
        (["MANIFEST", "--audio.n-fft", "255"], "n_fft must be an even number"),
        (["MANIFEST", "--model.latent", "many"], "latent"),
        (["MANIFEST", "--objective.name", "nothing", *TINY], "objective must be one of"),
        (["MANIFEST", "--objective.weights", '{"smell": 2}', *TINY], "smell"),
        (["MANIFEST", "--epoch", "3"], "--epoch"),
        (["nowhere.csv", "--training.epochs", "0"], "training.epochs must be at least 1, got 0"),  # before it is read
        (
            ["nowhere.csv", "--objective.options.self_reconstruction", "much"],
            "the option self_reconstruction of coordinated must be of type float",
        ),
        (["nowhere.csv", "--model.fusion", "sum"], "fusion must be one of poe, "),
    ],
)
def test_train_refuses(
    args: list[str],
    complaint: str,
    manifest: Path,
    cache: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [str(manifest) if arg == "MANIFEST" else arg for arg in args]
    out = [] if "--out" in args else ["--out", str(tmp_path / "run")]
    assert complaint in refused(["train", *filled, *out, *cache], capsys)


# --------------------------------------------------------------------------------------------------- generate


def test_generate_from_text_writes_sounds_of_the_runs_rate(trained: Path, tmp_path: Path) -> None:
    main(["generate", str(trained), "--text", "low", "--want", "audio", "--samples", "3", "--out", str(tmp_path)])
    assert files_in(tmp_path) == ["audio-001.wav", "audio-002.wav", "audio-003.wav", "index.csv"]
    assert {soundfile.info(path).samplerate for path in tmp_path.glob("*.wav")} == {RATE}
    rows = index_of(tmp_path)
    assert [row["text"] for row in rows] == ["low"] * 3
    assert [row["audio"] for row in rows] == files_in(tmp_path)[:3]


def test_what_is_wanted_is_what_is_not_given(
    trained: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = manifest.parent / "0.wav"
    main(["generate", str(trained), "--audio", str(sound), "--samples=2", "--out", str(tmp_path / "a")])
    assert files_in(tmp_path / "a") == ["index.csv", "motion-001.npy", "motion-002.npy"]
    assert {row["audio"] for row in index_of(tmp_path / "a")} == {str(sound)}
    assert "motion-002.npy" in capsys.readouterr().out
    motion = f"motion={manifest.parent / '0.npy'}"
    main(["generate", str(trained), "--given", motion, "--text=low", "--samples=1", "--out", str(tmp_path / "b")])
    assert files_in(tmp_path / "b") == ["audio-001.wav", "index.csv"]


def test_the_same_seed_generates_the_same_and_noise_matters(trained: Path, tmp_path: Path) -> None:
    made = {}
    for name, more in {"a": [], "b": [], "seed": ["--seed=1"], "noise": ["--noise=1"], "half": ["--noise=0.5"]}.items():
        main(["generate", str(trained), "--sample=2", "--want=audio", "--out", str(tmp_path / name), *more])
        made[name] = (tmp_path / name / "audio-002.wav").read_bytes()
    assert made["a"] == made["b"] == made["half"]
    assert len({made["a"], made["seed"], made["noise"]}) == 3


def test_latent_noise_reaches_the_latent(trained: Path, tmp_path: Path) -> None:
    made = {}
    for name, more in {"full": [], "same": ["--latent-noise=1"], "none": ["--latent-noise=0"]}.items():
        args = ["--text=low", "--want=motion", "--samples=3", "--noise=0", "--out", str(tmp_path / name), *more]
        main(["generate", str(trained), *args])
        made[name] = [(tmp_path / name / f"motion-00{i}.npy").read_bytes() for i in (1, 2, 3)]
    assert made["full"] == made["same"]
    assert len({*made["full"]}) == 3
    assert made["none"] != made["full"]


def test_temperature_and_its_cuts_reach_the_tokens(trained: Path, tmp_path: Path) -> None:
    texts = {}
    for name, more in {"greedy": [], "hot": ["--temperature=3"], "one": ["--temperature=3", "--top-k=1"],
                       "least": ["--temperature=3", "--top-p=1e-6"]}.items():  # fmt: skip
        main(["generate", str(trained), "--sample=6", "--want=text", "--out", str(tmp_path / name), *more])
        texts[name] = [row["text"] for row in index_of(tmp_path / name)]
    assert texts["greedy"] == texts["one"] == texts["least"] != texts["hot"]


def test_interpolation_ends_at_its_ends(trained: Path, manifest: Path, tmp_path: Path) -> None:
    """Both ends are posterior means, so that the way back is the way there in reverse where nothing is drawn."""
    for kind, (a, b) in {"text": ("low", "high, so high"), "audio": ("0.wav", "2.wav")}.items():
        ends = [str(manifest.parent / end) if kind == "audio" else end for end in (a, b)]
        for name, pair in {"there": ends, "back": ends[::-1]}.items():
            out = str(tmp_path / kind / name)
            main(["generate", str(trained), "--interpolate", *pair, "--samples=4", "--noise=0", "--out", out])
        there, back = ([np.load(tmp_path / kind / name / f"motion-00{i}.npy") for i in (1, 2, 3, 4)]
                       for name in ("there", "back"))  # fmt: skip
        for x, y in zip(there, back[::-1], strict=True):
            np.testing.assert_allclose(x, y, atol=1e-4)
        assert not np.array_equal(there[0], there[-1])


def test_the_index_is_a_manifest(
    trained: Path, cache: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main(["generate", str(trained), "--sample", "4", "--out", str(tmp_path)])
    assert f"drawn from the prior: {load(trained).model.fitted}" in caplog.messages
    main(["embed", str(trained), str(tmp_path / "index.csv"), "--out", str(tmp_path / "z.npz"), *cache])
    assert sorted(np.load(tmp_path / "z.npz")["ids"]) == ["001", "002", "003", "004"]


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([], "choose one of"),
        (["--text", "low", "--sample", "2"], "--sample"),
        (["--interpolate", "low", "mid", "--sample", "2"], "got --sample and --interpolate"),
        (["--interpolate", "low"], "interpolate"),
        (["--interpolate", "low", "nowhere.wav"], "nowhere.wav: there is no such file"),
        (["--interpolate", "low", "mid", "--samples", "1"], "at least 2"),
        (["--audio", "nowhere.wav"], "nowhere.wav: there is no such file"),
        (["--audio", "MANIFEST"], "cannot be read as sound"),
        (["--sample", "0"], "--sample must be at least 1"),
        (["--sample", "2", "--samples", "2"], "--samples does not go with"),
        (["--text", "low", "--want", "smell"], "smell is wanted"),
        (["--given", "smell=x"], "smell is given"),
        (["--given", "smell"], "NAME=VALUE"),
        (["--text", "low", "--given", "text=mid"], "text is given twice"),
        (["--text", "low", "--noise", "2"], "noise must lie in [0, 1]"),
        (["--text", "low", "--latent-noise", "-1"], "--latent-noise must be at least 0"),
        (["--sample", "2", "--latent-noise", "0"], "--latent-noise goes with"),
        (["--text", "low", "--top-p", "0"], "top_p must lie in (0, 1]"),
        (["--text", "low", "--want", "audio", "--temperature", "1"], "are frames"),
        (["--sample", "2", "--want", "text", "--noise", "1"], "are tokens"),
        (["--text", "low", "--out", "MANIFEST"], "is a file"),
    ],
)
def test_generate_refuses(
    args: list[str], complaint: str, trained: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [str(manifest) if arg == "MANIFEST" else arg for arg in args]
    assert complaint in refused(["generate", trained, *filled], capsys)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no such run directory" in refused(["generate", tmp_path / "no", "--sample", "1"], capsys)
    assert "config.json is missing" in refused(["generate", tmp_path, "--sample", "1"], capsys)


def test_a_text_stays_a_text_whatever_it_looks_like() -> None:
    seen: list[str] = []

    def command(text: str = "", want: list[str] | None = None) -> None:
        seen.extend(want or [text])

    texts = ["7", "007", "1e3", "true", "[a", "{x: 1}", "a: b", "# a", "näh 🙂", "null", ""]
    for text in texts:
        run(command, [f"--text={text}"])
    run(command, ["--want", *texts])
    assert seen == [*texts, *texts]


# ------------------------------------------------------------------------------------------- evaluate, embed


def test_evaluate_prints_and_writes_the_same_figures_as_the_training(
    trained: Path, manifest: Path, cache: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "figures.json"
    main(["evaluate", str(trained), str(manifest), "--seed=3", "--out", str(out), *cache])
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out) == figures
    assert figures == json.loads((trained / "metrics.json").read_text(encoding="utf-8"))["test"]


def test_evaluate_refuses_an_empty_split(
    trained: Path, cache: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.csv").write_text("text,split\nlow,train\n", encoding="utf-8")
    said = refused(["evaluate", trained, tmp_path / "m.csv", *cache], capsys)
    assert "m.csv: no row is in the split test" in said
    assert "draws must be at least 1" in refused(["evaluate", trained, tmp_path / "m.csv", "--draws=0"], capsys)


def test_embed_writes_the_posterior_of_every_row(
    trained: Path,
    manifest: Path,
    cache: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mmseqvae.pipeline.trained_model import load

    main(["embed", str(trained), str(manifest), "--out", str(tmp_path / "all.npz"), *cache])
    with np.load(tmp_path / "all.npz", allow_pickle=False) as arrays:
        assert {name: array.shape for name, array in arrays.items()} == {
            "ids": (30,), "splits": (30,), "labels": (30,), "means": (30, 4), "logvars": (30, 4),
        }  # fmt: skip
        row = list(arrays["ids"]).index("item26")
        assert (arrays["splits"][row], arrays["labels"][row]) == ("test", "h")
        folder = manifest.parent
        item = {"text": list(PITCHES)[2], "audio": str(folder / "26.wav"), "motion": str(folder / "26.npy")}
        np.testing.assert_allclose(arrays["means"][row], load(trained).embed([item])[0], atol=1e-5)

    main(["embed", str(trained), str(manifest), "--given", "text", "--out", str(tmp_path / "text.npz"), *cache])
    with np.load(tmp_path / "text.npz", allow_pickle=False) as arrays:
        assert len(np.unique(arrays["means"].round(4), axis=0)) == 4  # three words, and the row without one
        assert not arrays["means"][list(arrays["ids"]).index("item4")].any()
    told = capsys.readouterr().err.splitlines()
    assert told.count("warning: 1 rows hold none of ['text']: theirs is the prior, mean 0") == 1
    assert "must end in .npz" in refused(["embed", trained, manifest, "--out", tmp_path / "z.txt"], capsys)
    assert "smell is given" in refused(
        ["embed", trained, manifest, "--given", "smell", "--out", tmp_path / "z.npz"], capsys
    )


# ------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", [[], ["train"], ["generate"], ["evaluate"], ["embed"], ["forecast"], ["classify"]])
def test_help_needs_no_torch(command: list[str]) -> None:
    code = """if True:
        import runpy, sys
        try:
            runpy.run_module("mmseqvae", run_name="__main__", alter_sys=False)
        except SystemExit as stop:
            assert not stop.code, stop.code
        heavy = {"torch", "lightning", "numpy", "librosa", "sklearn", "matplotlib"} & sys.modules.keys()
        assert not heavy, heavy
    """
    shown = subprocess.run([sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "usage: mmseqvae" in shown.stdout
    assert ("--skip-bad" in shown.stdout) == (command not in ([], ["generate"]))


def test_next_commands_can_be_typed_as_they_stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    assert command("mmseqvae") == str(Path("bin") / "mmseqvae")
    script = tmp_path / "mmseqvae"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert command("mmseqvae") == "mmseqvae"
