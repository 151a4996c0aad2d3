"""All benchmarks of single parts, one after the other, on one page.

    python -m benchmarks.speed.bench [--data-dir DIR]

Each runs in a process of its own with the settings below, which keep it short; alone it takes its own defaults.
Writes benchmarks/results/bench.md, and nothing else in that folder.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.page_heading import heading
from mmseqvae.files import write_text

RESULTS = Path(__file__).parents[1] / "results"
PARTS: dict[str, list[str]] = {
    "recurrent": ["--steps", "50", "200", "--repeats", "3"],
    "features": ["--repeats", "3"],
    "loading": ["--repeats", "5", "--steps", "5"],
    "sampling": ["--repeats", "3"],
    "training": ["--only", "spoken digits", "--batches", "1", "--repeats", "2"],
}
READERS = ("features", "loading", "training")  # that take --data-dir


def main(data_dir: Path | None = None, only: list[str] | None = None, results: Path = RESULTS, seed: int = 0) -> None:
    """Run the benchmarks and write the page.

    Args:
        data_dir: folder with the recordings of spoken digits; without it, made ones.
        only: names of the benchmarks to run, all of them by default.
        results: folder for the page.
        seed: of all of them.
    """
    if strange := sorted(set(only or ()) - set(PARTS)):
        raise ValueError(f"--only names {strange}; there are {list(PARTS)}")
    if data_dir is not None and not data_dir.is_dir():
        raise FileNotFoundError(f"--data-dir {data_dir}: no such folder")
    command = "python -m benchmarks.speed.bench" + (" --data-dir DIR" if data_dir else "")
    command += f" --only {' '.join(only)}" if only else ""
    pages, began = [], time.monotonic()
    for name in only or PARTS:
        started = time.monotonic()
        pages.append(page_of(name, data_dir, seed))
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    took = f"{(time.monotonic() - began) / 60:.1f} minutes in all; processor time of one thread everywhere below."
    page = "\n".join([*heading("Benchmarks", command, seed)[:-2], took, "", *pages])
    print(page)
    write_text(results / "bench.md", page)


def page_of(name: str, data_dir: Path | None, seed: int) -> str:
    """What the benchmark writes, its heading one level lower. Raises ChildProcessError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            f"benchmarks.speed.{name}",
            *PARTS[name],
            "--results",
            folder,
            "--seed",
            str(seed),
        ]
        command += ["--data-dir", str(data_dir)] if data_dir is not None and name in READERS else []
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
        if ended:
            raise ChildProcessError(f"benchmarks.speed.{name} ended with exit code {ended}; its message stands above")
        return "#" + (Path(folder) / f"{name}.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.speed.bench")
