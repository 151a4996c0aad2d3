"""Finished runs are kept line by line, found again and never half written."""

import json
import multiprocessing

import pytest

from benchmarks.ledger import Ledger


def test_a_run_is_found_by_its_settings_and_the_last_record_counts(tmp_path):
    ledger = Ledger(tmp_path / "new" / "runs.jsonl")
    assert ledger.records() == []
    assert ledger.find({"model": "a"}) is None
    ledger.append({"run": {"model": "a", "sizes": (1, 2)}, "score": 1.5})
    ledger.append({"run": {"model": "é"}, "score": 2})
    ledger.append({"run": {"sizes": (1, 2), "model": "a"}, "score": 3})
    assert ledger.find({"model": "a", "sizes": (1, 2)}) == {"run": {"model": "a", "sizes": [1, 2]}, "score": 3}
    assert ledger.find({"model": "é"}) == {"run": {"model": "é"}, "score": 2}
    assert ledger.find({"model": "a"}) is None
    assert [json.loads(line)["score"] for line in ledger.path.read_text(encoding="utf-8").splitlines()] == [1.5, 2, 3]


def _append(path, name):
    for number in range(50):
        Ledger(path).append({"run": {"process": name, "number": number}, "filling": name * 5000})


def test_runs_without_a_record_are_left_in_their_order(tmp_path):
    ledger = Ledger(tmp_path / "results.jsonl")
    runs = [{"seed": seed, "sizes": (1, 2)} for seed in range(4)]
    assert ledger.left(runs) == runs
    for run in (runs[2], runs[0]):
        ledger.append({"run": run})
    assert ledger.left(runs) == [runs[1], runs[3]]
    assert [record["run"]["seed"] for record in ledger.finished(runs)] == [0, 2]


def test_processes_that_append_at_once_keep_every_line_whole(tmp_path):
    path = tmp_path / "runs.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append, args=(path, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = Ledger(path).records()
    assert len(found) == 100
    assert all(record["filling"] == record["run"]["process"] * 5000 for record in found)


@pytest.mark.parametrize("line", ['{"run": {"model"', '["run"]', '{"score": 1}'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"run": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 2 .*delete the line"):
        Ledger(path).find({"model": "a"})


def test_what_cannot_be_read_again_is_not_written(tmp_path):
    ledger = Ledger(tmp_path / "runs.jsonl")
    with pytest.raises(ValueError, match="names no 'run'"):
        ledger.append({"score": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        ledger.append({"run": 1, "score": float("nan")})
    assert not ledger.path.exists()
