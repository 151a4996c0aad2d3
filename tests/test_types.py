"""What a user's type checker sees of the library, from a file outside of it: types, and names that there are not."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# As mypy treats installed packages: types are read, what it has to say of their code is not told.
SETTINGS = f"[mypy]\nstrict = True\nmypy_path = {ROOT}\n[mypy-mmseqvae.*]\nfollow_imports = silent\n"

USER = """
from pathlib import Path

import torch
from torch import nn

import mmseqvae
from mmseqvae import Gaussian, Modality, ModelConfig, MultimodalVAE, Sequence, TrainingConfig
from mmseqvae.encoders import FrameEncoder


class Middle(nn.Module):
    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.layer = nn.Linear(channels, 2 * latent)

    def forward(self, x: Sequence) -> Gaussian:
        mean, logvar = self.layer(x.values.mean(1)).chunk(2, -1)
        return Gaussian(mean, logvar)


corpus = mmseqvae.prepare("m.csv", frames=["motion"], labels=["speaker"], cache_dir=Path("cache"))
trained = mmseqvae.fit(corpus, "runs/mine", model=ModelConfig(latent=8), training=TrainingConfig(epochs=2))
digits = mmseqvae.load("runs/mine")
made = digits.generate(text="seven", want="audio")
codes = digits.embed([{"text": "one"}])
draws = digits.forecast([{"motion": made["audio"][0]}], 5)
encoder = FrameEncoder(channels=80, latent=32)
frames = Sequence(torch.randn(4, 100, 80), torch.tensor([100, 80, 35, 0]))
expert = encoder(frames)
model = MultimodalVAE({"motion": Modality(Middle(80, 8))})
bound = mmseqvae.elbo(model, {"motion": frames})
posterior = model.posterior({"motion": frames})
"""
TYPES = {
    "mmseqvae.fit": r"def \(corpus: mmseqvae\.data\.corpus\.Corpus, .*\) -> mmseqvae\.pipeline\.trained_model\.Trained",
    "corpus": r"mmseqvae\.data\.corpus\.Corpus",
    "trained": r"mmseqvae\.pipeline\.trained_model\.Trained",
    "digits": r"mmseqvae\.pipeline\.trained_model\.Trained",
    "made": r"dict\[str, list\[Any\]\]",
    "codes": r"numpy\.ndarray\[.*\]",
    "draws": r"dict\[str, mmseqvae\.inference\.forecasting\.Draws\]",
    "expert": r"mmseqvae\.distributions\.gaussian\.Gaussian",
    "expert.mean": r"torch\._tensor\.Tensor",
    "frames.lengths": r"torch\._tensor\.Tensor",
    "model": r"mmseqvae\.model\.MultimodalVAE",
    "bound.elbo": r"torch\._tensor\.Tensor",
    "posterior": r"mmseqvae\.distributions\.gaussian\.Distribution",
    "posterior.mean": r"torch\._tensor\.Tensor",
}
ABSENT = ("mmseqvae.fitt", "mmseqvae.data.nothing", "mmseqvae.training.nothing")


def imports() -> list[str]:
    """Those of the library that the pages show in Python."""
    blocks = [code for page in PAGES for code in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]
    nodes = [node for code in blocks for node in ast.walk(ast.parse(code))]
    found = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    return sorted({text for text in map(ast.unparse, found) if "mmseqvae" in text})


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """The lines of the user's file, and what mypy says of each."""
    folder = tmp_path_factory.mktemp("user")
    lines = [*USER.splitlines(), *imports(), "import mmseqvae.data, mmseqvae.training"]
    lines += [f"reveal_type({what})" for what in TYPES] + [*ABSENT]
    (folder / "user.py").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "mypy.ini").write_text(SETTINGS, "utf-8")
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(ROOT / ".mypy_cache" / "user"), "user.py"]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout
    assert "checked 1 source file" in told, told
    return [(lines[int(line.split(":")[1]) - 1], line) for line in told.splitlines() if line.startswith("user.py:")]


def test_what_is_documented_has_no_errors(said: list[tuple[str, str]]) -> None:
    assert "from mmseqvae.model import Batch, MultimodalVAE" in imports()
    assert [told for line, told in said if ": error: " in told and line not in ABSENT] == []


def test_types_are_real(said: list[tuple[str, str]]) -> None:
    revealed = {line: told.partition('Revealed type is "')[2][:-1] for line, told in said if "Revealed" in told}
    assert revealed.keys() == {f"reveal_type({what})" for what in TYPES}
    for what, expected in TYPES.items():
        assert re.fullmatch(expected, revealed[f"reveal_type({what})"])


def test_names_that_there_are_not_are_errors(said: list[tuple[str, str]]) -> None:
    assert [line for line, told in said if "[attr-defined]" in told] == [*ABSENT]


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "mmseqvae" / "py.typed").exists()  # which a wheel takes along, as all of the folder
