"""The commands forecast and classify, from a manifest to tables, through the same door as a shell's: main(args)."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmseqvae.cli.commands import main

pytestmark = pytest.mark.filterwarnings("default::mmseqvae.DataWarning")  # as outside of this suite

TINY = [
    "--model.latent=3", "--model.token-encoder=6", "--model.token-decoder=6", "--model.token-embedding=4",
    "--model.frame-encoder=6", "--model.frame-decoder=6", "--model.frame-inputs=4", "--training.epochs=2",
    "--training.batch-size=8", "--training.fitted_components=2", "--training.threads=1", "--training.span_masking=0.5",
    "--frames", "pulse", "--labels", "kind",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run on 40 waves of two kinds with words, one of which has a hole."""
    folder = tmp_path_factory.mktemp("waves")
    random, rows = np.random.default_rng(0), [("id", "pulse", "text", "kind", "colour", "split")]
    for i in range(40):
        wave = np.sin(np.arange(10 + i % 3) * (0.3 + i % 2))[:, None] + 0.1 * random.standard_normal((10 + i % 3, 1))
        wave[3] = np.nan if i == 5 else wave[3]
        np.save(folder / f"{i}.npy", wave.astype(np.float32))
        kind = ("slow", "fast")[i % 2]
        rows.append(
            (
                f"w{i}",
                f"{i}.npy",
                kind[::-1],
                kind,
                "red" if i % 2 else "blue",
                "train" if i < 24 else "valid" if i < 32 else "test",
            )
        )
    with (folder / "waves.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    main(
        ["train", str(folder / "waves.csv"), "--out", str(folder / "run"), "--cache-dir", str(folder / "cache"), *TINY]
    )
    return {
        "run": folder / "run",
        "manifest": folder / "waves.csv",
        "cache": folder / "cache",
        "wave": folder / "5.npy",
    }


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def asked(run: dict[str, Path], command: str, *more: Any) -> None:
    main([command, str(run["run"]), *map(str, more)])


def test_forecasts_of_a_manifest(run: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = ["--manifest", run["manifest"], "--cache-dir", run["cache"], "--samples", 20]
    asked(run, "forecast", 4, *known, "--out", tmp_path, "--quantiles", "0.25", ".75")
    rows = table(tmp_path / "pulse.csv")
    assert str(tmp_path / "pulse.csv") in capsys.readouterr().out
    assert list(rows[0]) == ["id", "step", "channel", "mean", "q0.25", "q0.75"]
    assert [(row["id"], row["step"]) for row in rows[:5]] == [*(("w32", str(s)) for s in range(1, 5)), ("w33", "1")]
    assert len(rows) == 8 * 4
    assert all(float(row["q0.25"]) < float(row["q0.75"]) for row in rows)
    asked(run, "forecast", 4, *known, "--out", tmp_path / "again", "--quantiles", "0.25", ".75")
    assert (tmp_path / "again" / "pulse.csv").read_bytes() == (tmp_path / "pulse.csv").read_bytes()


def test_backtests(run: dict[str, Path], tmp_path: Path) -> None:
    known = ["--manifest", run["manifest"], "--cache-dir", run["cache"], "--samples", 20, "--proposals", 3]
    asked(run, "forecast", 4, *known, "--out", tmp_path, "--backtest")
    found = json.loads((tmp_path / "metrics.json").read_text())["pulse"]
    assert found["steps"] == 8 * 4
    assert 0 <= found["coverage"]["0.8"] <= found["coverage"]["0.95"] <= 1
    waves = [np.load(run["manifest"].parent / f"{i}.npy") for i in range(32, 40)]
    last = np.mean([(wave[-4:] - wave[-5]) ** 2 for wave in waves])
    assert found["last value"] == pytest.approx(last, rel=1e-4)


def test_a_backtest_of_series_that_are_too_short_is_refused(
    run: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ["--manifest", run["manifest"], "--cache-dir", run["cache"], "--out", tmp_path / "none"]
    with pytest.raises(SystemExit):
        asked(run, "forecast", 500, *known, "--backtest")
    assert (
        "--backtest hides the last 500 steps, and no series of the split test is longer than" in capsys.readouterr().err
    )
    assert not (tmp_path / "none").exists()


def test_forecasts_of_one_item(run: dict[str, Path], tmp_path: Path) -> None:
    asked(run, "forecast", 2, "--frames", f"pulse={run['wave']}", "--given", "kind=fast", "--out", tmp_path)
    assert len(table(tmp_path / "pulse.csv")) == 2
    asked(run, "forecast", 3, "--given", "text=ts", "--want", "text", "--samples", 7, "--out", tmp_path)
    rows = table(tmp_path / "text.csv")
    assert [row["sample"] for row in rows] == [str(n) for n in range(1, 8)]
    assert {len(row["text"]) for row in rows} <= {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([4], "give a manifest or --frames"),
        ([4, "--frames", "pulse=x.npy", "--manifest", "y.csv"], "give a manifest or --frames"),
        ([4, "--frames", "pulse"], "--frames pulse: NAME=VALUE is needed"),
        ([4, "--frames", "sound=x.npy"], "sound is given, but is no modality"),
        ([4, "--frames", "pulse=x.npy", "--quantiles", "2"], "quantiles must lie in"),
        ([0, "--frames", "pulse=x.npy"], "must be at least 1"),
        ([4, "--given", "kind=fast", "--want", "kind"], "kind: a label is one token, which nothing follows"),
        ([4, "--frames", "pulse=x.npy", "--backtest"], "--backtest a manifest"),
    ],
)
def test_what_cannot_be_forecast(
    run: dict[str, Path], more: list[Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        asked(run, "forecast", *more)
    assert message in capsys.readouterr().err


def test_a_probe_is_fitted_measured_and_applied(run: dict[str, Path], tmp_path: Path) -> None:
    """To a column that is a modality and to one that the run does not know."""
    known = [run["manifest"], "--cache-dir", run["cache"]]
    for label in ("kind", "colour"):
        out = tmp_path / label
        asked(run, "classify", *known, "--label", label, "--given", "pulse", "--out", out)
        figures = json.loads((out / "metrics.json").read_text())
        assert figures["items"] == 8
        assert figures["accuracy"]["value"] > 0.8
        assert {path.name for path in out.iterdir()} == {
            "confusion.csv", "confusion.png", "metrics.json", "predictions.csv", "probe.json"}  # fmt: skip
        rows = table(out / "predictions.csv")
        assert [row["id"] for row in rows] == [f"w{i}" for i in range(32, 40)]
        assert sum(row["label"] == row["predicted"] for row in rows) == figures["accuracy"]["hits"]
    again = tmp_path / "again"
    probe = ["--label", "colour", "--given", "pulse", "--probe", tmp_path / "colour" / "probe.json", "--out", again]
    asked(run, "classify", *known, *probe)
    assert (again / "predictions.csv").read_bytes() == (tmp_path / "colour" / "predictions.csv").read_bytes()
    asked(run, "classify", *known, "--label", "kind", "--out", tmp_path / "rest")
    assert json.loads((tmp_path / "rest" / "metrics.json").read_text())["given"] == ["text", "pulse"]


def test_a_probe_reads_what_it_was_fitted_to(
    run: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = [run["manifest"], "--cache-dir", run["cache"], "--label", "colour"]
    asked(run, "classify", *known, "--given", "pulse", "--out", tmp_path / "first")
    saved = ["--probe", tmp_path / "first" / "probe.json"]
    asked(run, "classify", *known, *saved, "--out", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["given"] == ["pulse"]
    with pytest.raises(SystemExit):
        asked(run, "classify", *known, *saved, "--given", "text")
    assert "was fitted to posteriors of ['pulse'], and --given names ['text']" in capsys.readouterr().err


def test_what_training_never_saw_is_told(
    run: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(run, "generate", "--text", "xß", "--given", "kind=brisk", "--samples", 1, "--out", tmp_path)
    assert capsys.readouterr().err.splitlines() == [
        "warning: text 'xß': this model never saw 'x', 'ß'", "warning: kind 'brisk': this model never saw 'brisk'",
    ]  # fmt: skip
    asked(run, "generate", "--text", "slow"[::-1], "--given", "kind=fast", "--samples", 1, "--out", tmp_path)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--label", "flavour"], "has no column 'flavour'"),
        (["--label", "kind", "--given", "kind"], "is what is to be told"),
        (["--given", "sound"], "sound is given, but is no modality"),
        (["--label", "label"], "nothing is labelled"),
    ],
)
def test_what_cannot_be_classified(
    run: dict[str, Path], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        asked(run, "classify", run["manifest"], "--cache-dir", run["cache"], *more)
    assert message in capsys.readouterr().err
