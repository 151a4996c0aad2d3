"""Two processes on the CPU: the numbers of one, items once an epoch, resumption to the bit; and who starts them."""

from __future__ import annotations

import json
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmseqvae.distributed import Processes, by_first, gathered, processes, total, wait
from mmseqvae.pipeline.trained_model import load
from tests.made_texts import requests_as_published
from tests.two_processes import TRAIN, exact, launch, make, read, said
from tests.two_steps import second_of_two

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_JOB_NAME", "SLURM_NNODES")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trained on two processes, which were then killed after eight steps of another training, and went on."""
    folder = tmp_path_factory.mktemp("two")
    make(folder)
    codes = launch(folder, "train")
    assert codes == [7, 7], said(folder, "train")
    last = torch.load(folder / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 6  # five steps an epoch: this is within the second, and two steps are lost
    codes = launch(folder, "resume")
    assert codes == [0, 0], said(folder, "resume")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def logged(out: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_two_processes_train_as_one_on_their_batches_together(folder: Path) -> None:
    """Weights after ten steps of Adam in float64, the last of each epoch of a single item; clipped and penalised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact(folder, "exact-1", 8)
    one, two = weights(folder / "exact-1"), weights(folder / "exact-2")
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-9, atol=1e-10, msg=name)


def test_what_is_logged_is_of_all_items_of_all_processes(folder: Path) -> None:
    """Words are missing in some items, and one process has an item more than the other."""
    if not (folder / "exact-1").exists():
        exact(folder, "exact-1", 8)
    one, two = logged(folder / "exact-1"), logged(folder / "exact-2")
    assert one.keys() == two.keys()
    assert {"train/elbo", "valid/elbo", "train/kl/text", "valid/active_units/joint"} <= one.keys()
    for name, values in one.items():
        assert two[name] == pytest.approx(values, rel=1e-6), name


def test_every_item_comes_once_an_epoch_and_noise_is_each_rank_s_own(folder: Path) -> None:
    ranks = [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(2)]
    items = [
        round(float(x.sum()), 4) for x in read(folder).datasets["train"].__getitems__(range(TRAIN))["move"].items()
    ]
    for epoch in range(2):
        came = [item for seen in ranks for at, moves, _ in seen for item in moves if at == epoch]
        assert sorted(came) == sorted(items)
    assert len(ranks[0]) == len(ranks[1]) == 10
    assert {len(moves) for seen in ranks for _, moves, _ in seen} == {4, 1, 0}
    draws = [draw for seen in ranks for _, _, draw in seen]
    assert len(set(draws)) == len(draws)


def test_two_processes_that_were_killed_go_on_as_if_nothing_had_happened(folder: Path) -> None:
    """In the middle of an epoch, to the last bit, with dropout and noise of each process."""
    whole, cut = weights(folder / "whole"), weights(folder / "cut")
    assert whole.keys() == cut.keys()
    for name, weight in whole.items():
        assert torch.equal(cut[name], weight), name
    one, two = load(folder / "whole").model.state_dict(), load(folder / "cut").model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    for name, values in logged(folder / "whole").items():
        assert logged(folder / "cut")[name] == values, name
    notes = json.loads((folder / "cut" / "training.json").read_text())
    assert notes["processes"] == 2


def test_another_number_of_processes_does_not_go_on(folder: Path) -> None:
    from tests.two_processes import TRAINING, noisy

    with pytest.raises(ValueError, match=r"2 process\(es\), which cannot go on with 1"):
        noisy(folder, "cut", checkpoint_steps=3, epochs=TRAINING.epochs + 1)
    before = (folder / "cut" / "model.safetensors").read_bytes()
    noisy(folder, "cut", checkpoint_steps=3)  # there is nothing left to go on with: it is loaded
    assert (folder / "cut" / "model.safetensors").read_bytes() == before


def test_processes_without_an_item_do_not_wait_forever(tmp_path: Path) -> None:
    """One item to validate with, so that one of two processes has none."""
    make(tmp_path, train=3, valid=1)
    assert launch(tmp_path, "few", timeout=300) == [0, 0], said(tmp_path, "few")
    curves = logged(tmp_path / "few")
    assert len(curves["valid/elbo"]) == 2
    assert all(value == value for value in curves["valid/elbo"])


def test_a_recipe_downloads_once_and_leaves_one_run(tmp_path: Path) -> None:
    published = requests_as_published(tmp_path / "published")
    with tarfile.open(tmp_path / "requests.tar.gz", "w:gz") as tar:
        tar.add(published, "nlu-benchmark-master/2017-06-custom-intent-engines")
    assert launch(tmp_path, "recipe") == [0, 0], said(tmp_path, "recipe")
    assert len((tmp_path / "fetched").read_text().splitlines()) == 1
    assert {path.name for path in (tmp_path / "cache" / "requests").iterdir()} == {
        "manifest.csv", "source", "unverified.sha256"
    }  # fmt: skip
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["run"]["recipe"] == "requests"
    assert not list((tmp_path / "run").rglob(".*"))
    assert said(tmp_path, "recipe").count("measured on the split test") == 1


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("there", [True, False])
def test_the_first_process_works_for_all_and_where_it_fails_the_others_end_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, there: bool
) -> None:
    """One side at a time, the other one's being what is broadcast."""
    sent: list[object] = []

    def broadcast(told: list[object], src: int, group: object) -> None:
        if rank == src:
            sent.extend(told)
        else:
            told[:] = [True, "sent"] if there else [False, None]

    second_of_two(monkeypatch)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)
    file = tmp_path / "file"
    if there:
        file.write_text("read")
        assert by_first(file.read_text, encoding="utf-8") == ("sent" if rank else "read")
    else:
        with pytest.raises(SystemExit if rank else FileNotFoundError) as ended:
            by_first(file.read_text)
        assert rank == 0 or ended.value.code is None
    assert sent == ([] if rank else [there, "read" if there else None])


# ------------------------------------------------------------------------------------------------- one process


def test_one_process_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    assert processes() == Processes(0, 1, 0, 1)
    wait()
    values = by_first(torch.tensor, [1.0, 2.0])
    assert total(values) is values
    assert gathered(values) == [values]
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"},
         Processes(9, 16, 1, 2, "torchrun")),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
         Processes()),
        ({"SLURM_NTASKS": "32", "SLURM_PROCID": "17", "SLURM_LOCALID": "1", "SLURM_NNODES": "4"},
         Processes(17, 32, 1, 4, "srun")),
        ({"SLURM_NTASKS": "32", "SLURM_JOB_NAME": "interactive"}, Processes()),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "0", "SLURM_NNODES": "4",  # torchrun on each node
          "TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
         Processes(5, 8, 1, 4, "torchrun")),
    ],
)  # fmt: skip
def test_the_environment_says_how_many_there_are(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], found: Processes
) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes() == found
    assert found.a_node * found.nodes == found.ranks


def test_nodes_with_unlike_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("SLURM_JOB_NAME", raising=False)
    for name, value in {"NTASKS": "5", "PROCID": "0", "LOCALID": "0", "NNODES": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(ValueError, match="5 processes on 2 nodes"):
        processes()
