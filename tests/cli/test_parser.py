"""Every command that documentation and docstrings show is one that its parser takes."""

import ast
import importlib
import re
import shlex
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from mmseqvae.cli import commands as cli
from mmseqvae.cli.parser import run

ROOT = Path(__file__).parents[2]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")})
MODULES = sorted({*ROOT.glob("recipes/[a-z]*.py"), *ROOT.glob("benchmarks/*/[a-z]*.py")})
BEGINS = ("python -m ", "mmseqvae ", "torchrun ", "srun ")  # a line of code that is a command
COMMAND = re.compile(r"\b(recipes\.\w+|benchmarks\.\w+\.\w+|mmseqvae) +([^#]+)")


def texts() -> Iterator[str]:
    for page in PAGES:
        yield page.read_text(encoding="utf-8")
    for module in MODULES:
        yield ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""


def shown() -> list[tuple[str, str]]:
    """(module, arguments) of every command, optional ones included; DIR and the like are as good as any other word."""
    lines = (line.strip() for text in texts() for line in text.replace("\\\n", " ").splitlines())
    matches = (COMMAND.search(line) for line in lines if line.startswith(BEGINS) and "`" not in line)
    return sorted({(match[1], " ".join(re.sub(r"[][]", "", match[2]).split())) for match in matches if match})


def noting(function: Callable[..., Any], told: list[str]) -> Callable[..., Any]:
    @wraps(function)
    def note(*_: Any, **__: Any) -> None:
        told.append(function.__name__)

    return note


def test_what_is_shown_is_found() -> None:
    found = {module for module, _ in shown()}
    assert {"mmseqvae", "recipes.text_sentences", "recipes.typed_requests", "benchmarks.quality.objectives"} <= found


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of settings that pages show, where commands look for them."""
    for text in texts():
        for name, rest in re.findall(r"```yaml\n# (\w+\.yaml)(.*?)```", text, flags=re.DOTALL):
            (tmp_path / name).write_text(f"#{rest}", encoding="utf-8")
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("module", "arguments"), shown())
def test_its_parser_takes_it(module: str, arguments: str) -> None:
    told: list[str] = []
    words = shlex.split(arguments)
    commands: Any
    if module == "mmseqvae":
        commands, prog, name = {words[0]: noting(getattr(cli, words[0]), told)}, "mmseqvae", words[0]
    else:
        commands, prog, name = noting(importlib.import_module(module).main, told), f"python -m {module}", "main"
    if any(word.endswith(("--help", ".help")) for word in words):
        with pytest.raises(SystemExit) as end:
            run(commands, words, prog)
        assert not end.value.code
    else:
        run(commands, words, prog)
        assert told == [name]
