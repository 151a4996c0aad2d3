"""How many threads a training takes: what the user said, else one; and none of it is left behind."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from mmseqvae.training import threads
from mmseqvae.training.threads import threads_restored, use_threads


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has chosen, and torch takes 3 threads of its own accord."""
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_of_torch", lambda: {3, 6})
    with threads_restored():
        torch.set_num_threads(3)
        yield


def test_one_where_nobody_chose_and_it_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert use_threads() == torch.get_num_threads() == 1
        assert use_threads() == 1
    assert [record.message.partition(",")[0] for record in caplog.records] == [
        "torch computes on 1 thread instead of 3"
    ]


@pytest.mark.parametrize("variable", threads.VARIABLES)
def test_as_many_as_the_environment_says(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "3")  # which torch has read when it was imported
    assert use_threads() == torch.get_num_threads() == 3


def test_as_many_as_set_num_threads_said(caplog: pytest.LogCaptureFixture) -> None:
    torch.set_num_threads(2)
    with caplog.at_level(logging.INFO):
        assert use_threads() == torch.get_num_threads() == 2
    assert not caplog.records


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_as_many_as_the_configuration_says(
    wanted: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with caplog.at_level(logging.INFO):
        assert use_threads(wanted) == torch.get_num_threads() == wanted
    assert not caplog.records


def test_what_was_there_comes_back_after_an_error_too() -> None:
    @threads_restored()
    def work() -> None:
        assert use_threads(2) == torch.get_num_threads()
        raise KeyError

    with pytest.raises(KeyError):
        work()
    assert torch.get_num_threads() == 3


def test_what_torch_chooses_is_known() -> None:
    code = (
        "import torch, mmseqvae.training.threads as t; print(torch.get_num_threads() in t._of_torch(), t.use_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name not in threads.VARIABLES}
    made = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert made.split() == ["True", "1"]
