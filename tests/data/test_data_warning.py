"""What does not count is told: a Python user by a warning at their own line, a terminal by one clean line."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import mmseqvae
from mmseqvae import DataWarning, ModelConfig, TrainingConfig
from mmseqvae.cli.parser import run
from mmseqvae.data.data_warning import warn

SMALL = ModelConfig(latent=2, token_encoder=4, token_decoder=4, token_embedding=3)
SHORT = TrainingConfig(epochs=1, batch_size=8, fitted_components=1, threads=1)


def table(folder: Path) -> Path:
    """24 items of a word and a colour, with a column that nobody asked for, and a row whose id is taken."""
    rows = [f"{i},{('low', 'high')[i % 2]},{('red', 'blue')[i % 2]},x,train" for i in range(24)]
    path = folder / "m.csv"
    path.write_text("\n".join(["id,text,colour,other,split", *rows, "5,low,red,x,train", "24,no,red,x,test"]) + "\n")
    return path


def test_every_call_of_a_python_user_warns_at_their_line(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", DataWarning)
        warnings.simplefilter("ignore", UserWarning, append=True)
        corpus = mmseqvae.prepare(table(tmp_path), labels=["colour"], cache_dir=tmp_path / "cache", skip_bad=True)
        trained = mmseqvae.fit(corpus, tmp_path / "run", model=SMALL, training=SHORT, progress=False)
        trained.generate(text="low?", want="colour", seed=0)
        trained.embed(text="hi!")
        trained.sample(1, want="colour", seed=0)  # which has nothing to tell
    told = [(str(warning.message), warning.category) for warning in found]
    assert told == [
        ("skipped: 1 bad rows", DataWarning),
        ("unused columns: other", DataWarning),
        ("text: 1 unknown symbols, 1 different ('n' 1)", DataWarning),
        ("no unimodal posterior of text is fitted: 24 items have it and something else, 40 are needed", DataWarning),
        ("no unimodal posterior of colour is fitted: 24 items have it and something else, 40 are needed", DataWarning),
        ("text 'low?': this model never saw '?'", DataWarning),
        ("text 'hi!': this model never saw '!'", DataWarning),
    ]
    assert {warning.filename for warning in found} == {__file__}
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    calls = [lines[warning.lineno - 1].strip().partition("(")[0].rpartition(" ")[2] for warning in found]
    assert calls == 3 * ["mmseqvae.prepare"] + 2 * ["mmseqvae.fit"] + ["trained.generate", "trained.embed"]


@pytest.mark.filterwarnings("default::mmseqvae.DataWarning")
def test_a_command_prints_each_as_one_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        for _ in range(2):
            warn("a column\n  is unused")
            warnings.warn("of another library", RuntimeWarning, stacklevel=1)
            with warnings.catch_warnings():  # after which Python forgets what it showed
                warnings.simplefilter("ignore")

    before = warnings.showwarning, warnings.filters[:]
    run(command, [], "mmseqvae")
    assert capsys.readouterr().err.splitlines() == ["warning: a column is unused", "warning: of another library"]
    assert (warnings.showwarning, warnings.filters[:]) == before


def test_of_several_processes_the_first_alone_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "here")
    run(lambda: warn("a column is unused"), [], "mmseqvae")
    assert not capsys.readouterr().err


def test_python_can_make_errors_of_them(tmp_path: Path) -> None:
    words = ["-W", "error::UserWarning", "-m", "mmseqvae", "train", str(table(tmp_path)), "--skip-bad",
             "--out", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache")]  # fmt: skip
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "mmseqvae: error: skipped: 1 bad rows"
    assert not (tmp_path / "run").exists()
