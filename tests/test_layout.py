"""The shape of the library: imports point upwards only, encoders come alone, each kind of arithmetic has one place."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmseqvae

ROOT = Path(str(mmseqvae.__file__)).parent

# Every file imports only from files above it. __init__.py, whose imports are lazy, is exempt.
ORDER = [
    "config",
    "files",
    "memory",
    "distributed",
    "sampling",
    "sequence",
    "gaussian",
    "cells",
    "fused",
    "packed",
    "recurrent",
    "likelihoods",
    "fusion",
    "priors",
    "flows",
    "conditionals",
    "encoders",
    "conditioned",
    "free_running",
    "captured",
    "decoders",
    "modalities",
    "estimates",
    "forecast",
    "model",
    "objectives.terms",
    "objectives.bounds",
    "objectives.conditional",
    "objectives.mixtures",
    "objectives.coordination",
    "objectives.private",
    "gaps",
    "schedules",
    "measures",
    "backtest",
    "text",
    "units",
    "labels",
    "frames",
    "griffin_lim",
    "audio",
    "synth",
    "data.download",
    "data.pieces",
    "data.manifest",
    "data.cuts",
    "data.hub",
    "data.sources",
    "data.sealed",
    "data.shares",
    "data.store",
    "data.features",
    "data.gather",
    "data.strings",
    "data.batches",
    "data.weights",
    "data.windows",
    "data.augment",
    "data.sampler",
    "data.prepared",
    "data.making",
    "data.corpus",
    "pretrained",
    "completion",
    "totals",
    "callbacks",
    "steps",
    "training",
    "evaluation",
    "language_model",
    "text_figures",
    "coherence",
    "runs",
    "pictures",
    "report",
    "recipe",
    "classification",
    "tables",
    "arguments",
    "cli_tasks",
    "cli",
    "__main__",
]

PACKAGES = {"data": "data.corpus", "objectives": "objectives.private"}  # the lowest file of each


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py")) if path.name != "__init__.py"}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """The library's own modules that a file imports, at its head or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            found = [node.module or ""]
            if node.module in ("mmseqvae", "mmseqvae.data", "mmseqvae.objectives"):  # `from mmseqvae import model`
                found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in found:
            own = module.removeprefix("mmseqvae.")
            package = own.partition(".")[0]
            if package in PACKAGES and own not in FILES:
                yield PACKAGES[package], node.lineno  # a name that its __init__.py gathers from the files beside it
            elif own != module:
                yield own, node.lineno


def test_every_file_has_its_place_in_the_order() -> None:
    unplaced = sorted(set(FILES) - set(ORDER))
    assert not unplaced, f"add {unplaced} to ORDER, below what they import and above what imports them"
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("name", FILES)
def test_imports_point_upwards(name: str) -> None:
    for module, line in imports(FILES[name]):
        assert ORDER.index(module) < ORDER.index(name), f"{name}.py:{line} imports {module}, which stands below it"


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_encoders_come_without_training_data_or_command_line() -> None:
    loaded = loaded_by("from mmseqvae.encoders import TokenEncoder, FrameEncoder")
    own = {module.removeprefix("mmseqvae.") for module in loaded if module.startswith("mmseqvae.")}
    assert own <= set(ORDER[: ORDER.index("encoders") + 1])
    heavy = {"lightning", "sklearn", "jsonargparse", "librosa", "torchaudio", "torchdata", "tensorboard", "matplotlib"}
    heavy |= {"tokenizers", "soundfile", "soxr", "torchmetrics"}
    assert not heavy & loaded


def test_settings_come_without_torch() -> None:
    """So that a command line can show its help at once."""
    assert "torch" not in loaded_by("import mmseqvae.config, mmseqvae.sampling")


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def mentions(node: ast.AST, word: str) -> bool:
    return any(word in str(getattr(part, "id", getattr(part, "attr", ""))) for part in ast.walk(node))


def step_masks(path: Path) -> list[int]:
    """Lines that compare something made by `arange` with lengths, at once or through a variable of the function."""
    lines = []
    for function in functions(path):
        if not mentions(function, "arange"):
            continue
        ranges = {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and mentions(node.value, "arange")
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Compare) and mentions(node, "lengths"):
                names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
                if mentions(node, "arange") or names & ranges:
                    lines.append(node.lineno)
    return lines


def half_logvars(path: Path) -> list[int]:
    """Lines where a log-variance is halved or exponentiated: the arithmetic of Gaussians."""
    lines = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.BinOp) and mentions(node, "logvar"):
            constants = [s.value for s in (node.left, node.right) if isinstance(s, ast.Constant)]
            halved = isinstance(node.op, ast.Mult) and any(c in (0.5, -0.5) for c in constants)
            if halved or (isinstance(node.op, ast.Div) and 2 in constants):
                lines.append(node.lineno)
        if isinstance(node, ast.Attribute) and node.attr == "exp" and mentions(node.value, "logvar"):
            lines.append(node.lineno)
    return lines


def test_the_searches_find_what_they_look_for() -> None:
    assert step_masks(FILES["sequence"])
    assert half_logvars(FILES["gaussian"])


@pytest.mark.parametrize("name", sorted(set(FILES) - {"sequence"}))
def test_only_sequence_builds_step_masks(name: str) -> None:
    assert not step_masks(FILES[name])


@pytest.mark.parametrize("name", sorted(set(FILES) - {"gaussian"}))
def test_only_gaussian_halves_log_variances(name: str) -> None:
    assert not half_logvars(FILES[name])
