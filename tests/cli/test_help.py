"""What --help shows: every setting with its own line of the source, and at first only what is needed most."""

import ast
import inspect
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import pytest

import mmseqvae
from mmseqvae import config as configurations
from mmseqvae.cli.commands import main, train
from mmseqvae.cli.parser import ESSENTIAL, run
from mmseqvae.config import ModalityConfig
from mmseqvae.decoding import FrameSampling, TokenSampling
from recipes import chorales

CONFIGS = [value for value in vars(configurations).values() if is_dataclass(value)] + [TokenSampling, FrameSampling]
PARTS = {name: kind for name, kind in get_type_hints(train).items() if is_dataclass(kind)}


def lines_of(config: Any) -> dict[str, str]:
    """{field: the literal under it} in the source of a configuration."""
    (node,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for field, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(after.value.value).split())
    return found


def options_of(part: str, config: Any) -> Mapping[str, str]:
    """{option: what is said of it}, of a configuration and of those in it."""
    told, found = lines_of(config), {}
    for field, kind in get_type_hints(config).items():
        option = f"{part}.{field}"
        found |= options_of(option, kind) if is_dataclass(kind) else {f"--{option.replace('_', '-')}": told[field]}
    return found


def shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code in (0, None)
    return " ".join(capsys.readouterr().out.split())


def options_in(page: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*[a-z0-9]", page.partition("All options:")[0]))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_setting_has_a_line_of_its_own(config: Any) -> None:
    told = lines_of(config)
    assert told.keys() == {field.name for field in fields(config)}
    assert all(re.fullmatch(r"[A-Z\"].{9,}\.", line) for line in told.values()), told


def test_the_whole_help_shows_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    page = shown(["train", "--help", "all"], capsys)
    for part, config in PARTS.items():
        for option, told in options_of(part, config).items():
            assert re.search(rf"{option}( \S+)? {re.escape(told)}", page), option
    page = shown(["train", "--model.modalities.help"], capsys)
    for field, told in lines_of(ModalityConfig).items():
        assert re.search(rf"--model.modalities.{field.replace('_', '-')} \S+ {re.escape(told)}", page), field


def test_the_first_help_shows_what_is_needed_most_and_says_where_the_rest_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = shown(["train", "--help"], capsys)
    plain = {f"--{name.replace('_', '-')}" for name in inspect.signature(train).parameters} - {"--manifest"}
    asked = plain - {f"--{part}" for part in PARTS} | {f"--{option}" for option in ESSENTIAL}
    assert options_in(page) - {"--training.seed", "--from"} == asked | {
        "--help",
        "--config",
    }  # --seed speaks of that one
    kinds = " | ".join(PARTS)
    assert page.endswith(f"All options: --help all. Those of one kind: --help {kinds}.")
    assert page.startswith("usage: mmseqvae train MANIFEST [options] Train a model")


@pytest.mark.parametrize("part", PARTS)
def test_the_help_of_one_kind_shows_that_alone(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = options_in(shown(["train", "--help", part], capsys))
    assert {*options_of(part, PARTS[part])} <= found
    assert {option.split(".")[0] for option in found} == {f"--{part}"}


def test_recipes_have_the_same_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words, there, away in (
        (["--help"], {"--source", "--draws", "--training.epochs"}, "--training.l1"),
        (["--help", "training"], {"--training.l1", "--training.augment.noise"}, "--source"),
        (["--help=all"], {"--training.l1", "--model.scale", "--source"}, "--audio.fmin"),
    ):
        with pytest.raises(SystemExit):
            run(chorales.main, words, "python -m recipes.chorales")
        found = options_in(" ".join(capsys.readouterr().out.split()))
        assert there <= found
        assert away not in found


def test_a_command_without_settings_sends_nobody_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    page = shown(["embed", "--help"], capsys)
    assert page.startswith("usage: mmseqvae embed RUN MANIFEST --out OUT [options]")
    assert "--help all" not in page


def test_the_command_alone_shows_its_commands_and_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    page = shown([], capsys)
    assert page == shown(["--help"], capsys)
    assert all(f" {name} " in page for name in ("train", "generate", "evaluate", "embed", "forecast", "classify"))
    assert shown(["--version"], capsys) == f"mmseqvae {mmseqvae.__version__}"
