"""The code that pages show is run, block after block, as a reader would."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = ["own_parts"]  # pages whose blocks are run in the names of those before; `folder` is a folder of the reader's


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", RUN)
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"folder": tmp_path, "__name__": "docs"}
    found = blocks(page)
    assert found
    for block in found:
        exec(compile(block, f"docs/{page}.md", "exec"), names)


def test_an_own_encoder_takes_thirty_lines() -> None:
    encoder = blocks("own_parts")[0].strip().splitlines()
    assert len([line for line in encoder if line.strip()]) <= 30


def test_fine_tuning_is_shown_as_it_is_called() -> None:
    """docs/training.md shows paths that the reader has: its calls are run in tests/training/test_continuing.py."""
    (shown,) = blocks("training")
    for call in ("prepare(", "start=old.front_ends", "fit(", "start=old"):
        assert call in shown
