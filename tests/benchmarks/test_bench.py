"""The page of all benchmarks of single parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.speed import bench

TINY = ["--steps", "6", "--batch", "3", "--hidden", "4", "--channels", "3", "--repeats", "1"]


def test_one_page_of_all_that_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PARTS", {"recurrent": TINY})
    bench.main(results=tmp_path, seed=3)
    page = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert page.startswith("# Benchmarks\n\n`python -m benchmarks.speed.bench`\n")
    assert "minutes in all" in page
    assert "\n## A recurrent layer\n" in page
    assert "seed 3" in page
    assert "| 2 to 6 | float32 |" in page
    assert "| 3 | 4 | " in page
    assert "| 5 to 6 | float32 |" in page
    assert [file.name for file in tmp_path.iterdir()] == ["bench.md"]


def test_a_part_that_fails_is_told_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PARTS", {"recurrent": ["--kind", "none"]})
    with pytest.raises(ChildProcessError, match=r"benchmarks\.speed\.recurrent ended with exit code [1-9]"):
        bench.main(results=tmp_path)
    assert not list(tmp_path.iterdir())


def test_mistakes_are_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--only names .*'nothing'"):
        bench.main(only=["nothing"], results=tmp_path)
    with pytest.raises(FileNotFoundError, match="--data-dir"):
        bench.main(data_dir=tmp_path / "none", results=tmp_path)
