"""The shape of the library: imports point upwards only, encoders come alone, each kind of arithmetic has one place."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mmseqvae

ROOT = Path(str(mmseqvae.__file__)).parent

# Every file imports only from its own package and from those above it. __init__.py, whose imports are lazy, is exempt.
ORDER = [
    "config", "sequence", "decoding", "files", "distributed", "metrics",  # the ground: what everything may use
    "distributions", "fusion", "priors", "rnn", "encoders", "decoders", "modality", "inference", "model",  # the model
    "objectives", "testing", "features", "tokenizers", "data", "pipeline", "training", "evaluation", "reporting",
    "cli", "recipe", "__main__",
]  # fmt: skip
ENTRIES, LINES = 30, 330  # most files and packages in mmseqvae/, most lines of a file


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py")) if path.name != "__init__.py"}
REPOSITORY = ROOT.parent
EVERY = {str(path.relative_to(REPOSITORY)): path for part in ("mmseqvae", "recipes", "benchmarks")
         for path in sorted((REPOSITORY / part).rglob("*.py"))}  # fmt: skip


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """What a file imports, at its head or inside a function: ("mmseqvae.data.corpus", line)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def own(path: Path) -> Iterator[tuple[str, int]]:
    """The entries of the library that a file imports: ("data", line)."""
    for module, line in imports(path):
        if module.startswith("mmseqvae."):
            entry = module.split(".")[1]
            yield mmseqvae._HOME.get(entry, entry).partition(".")[0], line


def test_every_entry_has_its_place_in_the_order() -> None:
    entries = {name.partition(".")[0] for name in FILES}
    assert sorted(entries) == sorted(ORDER), "an entry of mmseqvae/ stands below what it imports in ORDER"
    assert len(list(ROOT.glob("[!.]*"))) - (ROOT / "__pycache__").exists() <= ENTRIES


@pytest.mark.parametrize("name", FILES)
def test_imports_point_upwards(name: str) -> None:
    here = name.partition(".")[0]
    for entry, line in own(FILES[name]):
        if entry != "lazy":
            assert ORDER.index(entry) <= ORDER.index(here), f"{name}.py:{line} imports {entry}, which stands below it"


def test_no_files_import_each_other() -> None:
    """Within a package, too: every file can be read after those that it imports."""
    graph = {}
    for name, path in FILES.items():
        wanted = [module.removeprefix("mmseqvae.") for module, _ in imports(path)]
        graph[name] = {part for m in wanted for part in (m, m.rpartition(".")[0]) if part in FILES and part != name}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the files


@pytest.mark.parametrize("name", EVERY)
def test_no_file_is_long(name: str) -> None:
    assert len(EVERY[name].read_text(encoding="utf-8").splitlines()) <= LINES


@pytest.mark.parametrize("name", [name for name in EVERY if not name.startswith("benchmarks")])
def test_only_benchmarks_import_benchmarks(name: str) -> None:
    assert not [line for module, line in imports(EVERY[name]) if module.startswith("benchmarks")]


@pytest.mark.parametrize("name", [name for name in EVERY if name.startswith("recipes")])
def test_recipes_import_the_library_alone(name: str) -> None:
    assert not [line for module, line in imports(EVERY[name]) if module.startswith(("recipes", "tests"))]


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_encoders_come_without_training_data_or_command_line() -> None:
    loaded = loaded_by("from mmseqvae.encoders import TokenEncoder, FrameEncoder")
    entries = {module.split(".")[1] for module in loaded if module.startswith("mmseqvae.")}
    assert entries <= set(ORDER[: ORDER.index("encoders") + 1])
    heavy = {"lightning", "sklearn", "jsonargparse", "librosa", "torchaudio", "torchdata", "tensorboard", "matplotlib"}
    heavy |= {"tokenizers", "soundfile", "soxr", "torchmetrics"}
    assert not heavy & loaded


def test_settings_come_without_torch() -> None:
    """So that a command line can show its help at once."""
    assert "torch" not in loaded_by("import mmseqvae.config, mmseqvae.decoding")


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
    assert half_logvars(FILES["distributions.gaussian"])


@pytest.mark.parametrize("name", sorted(set(FILES) - {"sequence"}))
def test_only_sequence_builds_step_masks(name: str) -> None:
    assert not step_masks(FILES[name])


@pytest.mark.parametrize("name", sorted(set(FILES) - {"distributions.gaussian"}))
def test_only_gaussian_halves_log_variances(name: str) -> None:
    assert not half_logvars(FILES[name])
