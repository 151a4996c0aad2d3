"""A corpus that is kept: opened without reading its manifest, and made anew where anything it was made of changed."""

import csv
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmseqvae.config import LogMelConfig, TextConfig
from mmseqvae.data import Corpus, ManifestError, corpus_from_manifest, front_end_from_dict, make_loader, prepare
from mmseqvae.data import corpus as prepared
from mmseqvae.data import preparation as corpus_module
from mmseqvae.data.store import extraction
from mmseqvae.data.store.feature_store import VALUES
from mmseqvae.features.log_mel import LogMel, write_audio

CONFIG = LogMelConfig(sample_rate=8000, n_fft=256, hop_length=100, n_mels=40)
WORDS = ["zero", "one", "two", "three", "four", "五", "six"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven recordings and arrays; one row lacks its text, one its recording, one has a label; the last is a test."""
    rng = np.random.default_rng(0)
    rows = []
    for i, word in enumerate(WORDS):
        write_audio(tmp_path / f"{i}.wav", 0.1 * rng.standard_normal(500 * (i + 1)), 8000)
        np.save(tmp_path / f"{i}.npy", rng.normal(i, 2, (i + 1, 3)))
        rows.append({
            "id": f"n{i}", "audio": "" if i == 1 else f"{i}.wav", "text": "" if i == 2 else word, "a/b": f"{i}.npy",
            "label": "odd" if i == 3 else "", "room": "xy"[i % 2], "other": i, "split": "test" if i == 6 else "train",
        })  # fmt: skip
    with (tmp_path / "m.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path


def get(folder: Path, **options: Any) -> Corpus:
    settings = {"audio": CONFIG, "cache_dir": folder / "cache", "frames": ["a/b"], "covariates": ["room"], "workers": 0}
    return prepare(folder / "m.csv", **settings | options)


def contents(corpus: Corpus) -> dict[str, Any]:
    """All that a corpus tells but the rows of its manifest."""
    datasets = {
        split: (
            list(dataset.ids), list(dataset.labels), dataset.steps.tolist(),
            [[item.tolist() for item in sequence.items()]
             for batch in make_loader(dataset, 2, shuffle=False) for sequence in batch.values()],
        )
        for split, dataset in corpus.datasets.items()
    }  # fmt: skip
    ends = {name: front_end.to_dict() for name, front_end in corpus.front_ends.items()}
    table = corpus.manifest
    return {
        "datasets": datasets, "ends": list(ends.items()), "skipped": corpus.skipped, "unknown": corpus.unknown,
        "manifest": (table.path, table.columns, table.unused, table.problems, table.unit), "told": corpus.summary(),
    }  # fmt: skip


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done that opening need not do."""
    done: list[str] = []

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: done.append(name) or function(*given, **named)

    monkeypatch.setattr(corpus_module, "read_source", noting("read", corpus_module.read_source))
    monkeypatch.setattr(corpus_from_manifest, "digests", noting("hashed", corpus_from_manifest.digests))
    monkeypatch.setattr(extraction, "_clip", noting("computed", extraction._clip))
    return done


def test_the_second_time_nothing_is_read_hashed_or_computed(folder: Path, made: list[str]) -> None:
    first = get(folder)
    assert set(made) == {"read", "hashed", "computed"}
    del made[:]
    second = get(folder)
    assert made == []
    assert contents(second) == contents(first)
    assert second.datasets["train"].labels[2:4] == [None, "odd"]
    assert [row.cells.get("text") for row in second.manifest.rows] == [w if w != "two" else None for w in WORDS]
    assert second.manifest.rows[1:3] == second.manifest.rows[:3][1:]
    assert made == ["read"]  # once, when somebody asked for rows


def test_it_is_what_is_made_in_memory(folder: Path) -> None:
    """A list of the same rows is not kept, but the same in all else."""
    with (folder / "m.csv").open(encoding="utf-8") as file:
        rows = [{name: cell or None for name, cell in row.items()} for row in csv.DictReader(file)]
    for row in rows:
        row |= {name: row[name] and str(folder / str(row[name])) for name in ("audio", "a/b")}
    memory = prepare(rows, audio=CONFIG, cache_dir=folder / "other", frames=["a/b"], covariates=["room"])
    assert not (folder / "other" / "corpora").exists()
    kept = contents(get(folder))
    assert {**contents(memory), "manifest": 0} == {**kept, "manifest": 0}


def test_arrays_are_mapped_and_tokens_are_small(folder: Path) -> None:
    columns = get(folder).datasets["train"].columns
    assert columns["text"].flat.dtype == np.uint16
    for column in columns.values():
        assert not any(array.flags.writeable for array in (column.flat, column.starts, column.lengths))
    assert columns["text"].batch(np.array([0])).values.dtype == torch.long


@pytest.mark.parametrize(
    "options",
    [
        {"audio": LogMelConfig(sample_rate=8000, n_fft=256, hop_length=50, n_mels=40)},
        {"text": TextConfig(units="words")},
        {"frames": []},
        {"covariates": []},
        {"labels": ["other"]},
    ],
)
def test_other_settings_are_another_corpus(folder: Path, made: list[str], options: dict[str, Any]) -> None:
    first = contents(get(folder))
    del made[:]
    assert contents(get(folder, **options)) != first
    assert made.count("read") == 1


def test_front_ends_of_a_run_are_settings_too(folder: Path, made: list[str]) -> None:
    first = get(folder)
    ends = {name: front_end_from_dict(end.to_dict()) for name, end in first.front_ends.items()}
    again = prepare(folder / "m.csv", front_ends=ends, cache_dir=folder / "cache")
    assert contents(again)["datasets"] == contents(first)["datasets"]
    del made[:]
    prepare(folder / "m.csv", front_ends=ends, cache_dir=folder / "cache")
    prepare(folder / "m.csv", front_ends={name: ends[name] for name in ("text", "audio")}, cache_dir=folder / "cache")
    assert made == ["read", "hashed"]


CHANGES: dict[str, Callable[[Path], object]] = {
    "manifest": lambda folder: (folder / "m.csv").write_text((folder / "m.csv").read_text().replace("zero", "nine")),
    "recording": lambda folder: write_audio(folder / "3.wav", np.full(900, 0.1), 8000),
    "array": lambda folder: np.save(folder / "3.npy", np.ones((4, 3))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_noticed(folder: Path, made: list[str], change: str) -> None:
    first = contents(get(folder))
    CHANGES[change](folder)
    del made[:]
    second = contents(get(folder))
    assert made.count("computed") == (change != "manifest")
    assert second["datasets"] != first["datasets"]
    del made[:]
    assert contents(get(folder)) == second
    assert made == []


def test_a_file_that_is_gone_is_told(folder: Path) -> None:
    get(folder)
    (folder / "3.wav").unlink()
    with pytest.raises(ManifestError, match=r"line 5 \(id n3\): audio .*3\.wav: file is missing"):
        get(folder)


def test_of_many_files_some_are_looked_at(folder: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = prepared.Stamps.of(str(folder / f"{i}.wav") for i in range(7))
    looked: list[str] = []
    plain = prepared._state
    monkeypatch.setattr(prepared, "_state", lambda file: looked.append(Path(file).stem) or plain(file))
    assert all(stamps.hold(check) for check in (10, 7, 3, 1, 0))
    assert sorted(looked) == sorted([*"0123456", *"0123456", *"036", *"0"])
    write_audio(folder / "1.wav", np.zeros(10), 8000)
    assert [stamps.hold(check) for check in (7, 3)] == [False, True]


def test_a_folder_is_told_by_its_files(tmp_path: Path, made: list[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    options = {"cache_dir": data / "cache", "workers": 0}  # which is not part of the data
    for name in ("train/a", "train/b"):
        (data / name).parent.mkdir(exist_ok=True)
        (data / f"{name}.txt").write_text(name)
    assert prepare(data, **options).datasets["train"].ids == ["train/a", "train/b"]
    prepare(data, **options)
    assert made == ["read"]
    (data / "train" / "c.txt").write_text("c")
    assert prepare(data, **options).datasets["train"].ids == ["train/a", "train/b", "train/c"]
    assert made == ["read", "read"]


def corpus_folder(folder: Path) -> Path:
    (found,) = (folder / "cache" / "corpora").iterdir()
    return found


def shard(folder: Path) -> Path:
    return next(path for path in sorted((folder / "cache" / "features").glob(f"{LogMel.kind}-*/*")))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "array gone": lambda folder: (corpus_folder(folder) / "train-ids-letters.npy").unlink(),
    "array altered": lambda folder: (corpus_folder(folder) / "train-0-lengths.npy").write_bytes(
        (corpus_folder(folder) / "train-0-lengths.npy").read_bytes()[::-1]
    ),
    "words altered": lambda folder: (corpus_folder(folder) / prepared.TOLD).write_text("{}"),
    "shard gone": lambda folder: (shard(folder) / VALUES).unlink(),
    "shard truncated": lambda folder: (shard(folder) / VALUES).write_bytes((shard(folder) / VALUES).read_bytes()[:-1]),
    "shard altered": lambda folder: (shard(folder) / VALUES).write_bytes((shard(folder) / VALUES).read_bytes()[::-1]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_anew(
    folder: Path, made: list[str], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(extraction, "FILES", 2)
    first = contents(get(folder))
    DAMAGES[damage](folder)
    del made[:]
    assert contents(get(folder)) == first
    assert made.count("read") == 1
    assert made.count("computed") == (2 if damage.startswith("shard") else 0)


def test_skipped_rows_and_their_problems_are_kept(folder: Path, made: list[str]) -> None:
    (folder / "4.wav").write_text("no sound")
    first = get(folder, skip_bad=True)
    assert [problem.id for problem in first.skipped] == ["n4"]
    del made[:]
    assert contents(get(folder, skip_bad=True)) == contents(first)
    assert made == []
    with pytest.raises(ManifestError, match="line 6"):
        get(folder)


def test_ranks_prepare_one_corpus_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "FILES", 1)
    fit, expected = corpus_from_manifest.corpus_of, contents(get(folder, cache_dir=folder / "alone"))
    monkeypatch.setattr(
        corpus_from_manifest, "corpus_of", lambda *given: (folder / os.environ["RANK"]).touch() or fit(*given)
    )

    def rank(number: int) -> None:
        os.environ |= {"RANK": str(number), "WORLD_SIZE": "2"}
        assert contents(get(folder)) == expected

    processes = [multiprocessing.get_context("fork").Process(target=rank, args=(number,)) for number in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [(folder / str(number)).exists() for number in (0, 1)] == [True, False]  # who fitted
