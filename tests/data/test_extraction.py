import fcntl
import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from mmseqvae.config import LogMelConfig
from mmseqvae.data.store import extraction
from mmseqvae.data.store import work_sharing as shares
from mmseqvae.data.store.atomic_folder import SEAL, UNFINISHED
from mmseqvae.data.store.extraction import DIGESTS, compute, front_end_from_dict
from mmseqvae.data.store.feature_store import INDEX, VALUES, Store
from mmseqvae.features.arrays import FrameArrays
from mmseqvae.features.log_mel import LogMel, write_audio
from mmseqvae.tokenizers.characters import Tokenizer

CONFIG = LogMelConfig(sample_rate=8000, n_fft=256, hop_length=100, n_mels=40)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    for i in range(5):
        write_audio(tmp_path / f"{i}.wav", 0.1 * rng.standard_normal(300 * (i + 1)), 8000)
    return [str(tmp_path / f"{i}.wav") for i in range(5)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were computed rather than taken from a store."""
    calls: list[str] = []
    plain = extraction._clip

    def spy(front_end: extraction.FileFrontEnd, path: str) -> np.ndarray | str:
        calls.append(Path(path).name)
        return plain(front_end, path)

    monkeypatch.setattr(extraction, "_clip", spy)
    return calls


def get(files: list[str], cache: Path, config: LogMelConfig = CONFIG, workers: int = 0) -> Store:
    return compute(LogMel(config), extraction.digests(files, "audio", cache), "audio", cache, workers)


def digest(file: str | Path) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def assert_right(store: Store, files: list[str]) -> None:
    for file in files:
        np.testing.assert_array_equal(store.clip(digest(file)), LogMel(CONFIG).read(file).numpy())


def test_store_holds_exactly_the_features_and_no_pickle(files: list[str], tmp_path: Path) -> None:
    assert_right(get(files, tmp_path / "cache"), files)
    found = extraction.digests(files, "audio", tmp_path / "cache")
    assert found == {file: digest(file) for file in files}
    names = {file.name for file in tmp_path.glob("cache/**/*") if file.is_file()}
    assert names == {DIGESTS, INDEX, SEAL, VALUES}


def test_workers_compute_the_same_shards(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "FILES", 2)
    here, there = get(files, tmp_path / "a"), get(files, tmp_path / "b", workers=2)
    np.testing.assert_array_equal(here.values, there.values)
    assert [folder.name for folder in here.folders] == [folder.name for folder in there.folders]
    assert [here.span(digest(file)) for file in files] == [there.span(digest(file)) for file in files]


def test_second_call_computes_nothing_whatever_names_and_order(
    files: list[str], tmp_path: Path, reads: list[str]
) -> None:
    get(files, tmp_path / "cache")
    assert len(reads) == 5
    Path(files[0]).rename(tmp_path / "renamed.wav")
    get([*files[:0:-1], str(tmp_path / "renamed.wav")], tmp_path / "cache")
    assert len(reads) == 5


def test_only_what_is_new_is_computed(files: list[str], tmp_path: Path, reads: list[str]) -> None:
    get(files[:3], tmp_path / "cache")
    write_audio(files[1], np.ones(100), 8000)
    store = get(files, tmp_path / "cache")
    assert reads == ["0.wav", "1.wav", "2.wav", "1.wav", "3.wav", "4.wav"]
    assert_right(store, files)


def test_other_settings_are_another_store(files: list[str], tmp_path: Path, reads: list[str]) -> None:
    get(files, tmp_path / "cache")
    other = get(files, tmp_path / "cache", LogMelConfig(sample_rate=8000, n_fft=256, hop_length=50, n_mels=40))
    assert len(reads) == 10
    assert len(other.values) > len(get(files, tmp_path / "cache").values)
    assert len(reads) == 10


def test_hashes_are_kept_by_time_of_change(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    plain = extraction._digest
    monkeypatch.setattr(extraction, "_digest", lambda path: hashed.append(path) or plain(path))
    monkeypatch.setattr(extraction, "HASHED", 2)
    first = extraction.digests(files, "audio", tmp_path / "cache")
    assert sorted(hashed) == files
    Path(files[4]).write_bytes(Path(files[4]).read_bytes()[::-1])
    second = extraction.digests(files, "audio", tmp_path / "cache")
    assert hashed[5:] == [files[4]]
    assert {file for file in files if first[file] != second[file]} == {files[4]}


def test_shards_end_by_files_by_bytes_and_by_their_number(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clips: dict[str, extraction.Clip] = {str(i): file for i, file in enumerate(files)}
    sizes = [Path(file).stat().st_size for file in files]
    groups = {
        "FILES": [["0", "1"], ["2", "3"], ["4"]],
        "BYTES": [["0", "1", "2"], ["3"], ["4"]],
        "SHARDS": [[*"01234"]],
    }
    for name, value in {"FILES": 2, "BYTES": sizes[3], "SHARDS": 1}.items():
        with monkeypatch.context() as patch:
            patch.setattr(extraction, name, value)
            if name == "SHARDS":
                patch.setattr(extraction, "FILES", 2)
            assert list(extraction._groups(clips)) == groups[name]


def test_many_shards_are_one_array(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 7 channels, so that rows do not end where pages do."""
    config = LogMelConfig(sample_rate=8000, n_fft=256, hop_length=100, n_mels=7)
    whole = get(files, tmp_path / "one", config)
    monkeypatch.setattr(extraction, "FILES", 1)
    store = get(files, tmp_path / "many", config)
    assert (len(whole.folders), len(store.folders)) == (1, 5)
    assert not store.values.flags.writeable
    for file in files:
        start, length = store.span(digest(file))
        np.testing.assert_array_equal(store.values[start : start + length], whole.clip(digest(file)))
    assert store.span(digest(files[4]))[0] + store.span(digest(files[4]))[1] == len(store.values)
    assert len(get([], tmp_path / "none").values) == 0


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda shard: (shard / VALUES).write_bytes((shard / VALUES).read_bytes()[:-4]),
    "longer": lambda shard: (shard / VALUES).write_bytes((shard / VALUES).read_bytes() + b"0000"),
    "altered": lambda shard: (shard / VALUES).write_bytes((shard / VALUES).read_bytes()[::-1]),
    "no values": lambda shard: (shard / VALUES).unlink(),
    "altered index": lambda shard: (shard / INDEX).write_text((shard / INDEX).read_text().replace("[4", "[7")),
    "no seal": lambda shard: (shard / SEAL).unlink(),
    "half a seal": lambda shard: (shard / SEAL).write_text((shard / SEAL).read_text()[:-10]),
    "altered seal": lambda shard: (shard / SEAL).write_text((shard / SEAL).read_text().replace("1", "2")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shards_are_told_and_computed_anew(
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reads: list[str],
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    monkeypatch.setattr(extraction, "FILES", 2)
    store = get(files, tmp_path / "cache")
    (shard,) = (folder for folder in store.folders if '"lengths": [4' in (folder / INDEX).read_text())
    del reads[:], store
    DAMAGES[damage](shard)
    assert_right(get(files, tmp_path / "cache"), files)
    assert reads == ["0.wav", "1.wav"]
    assert f"{shard}: is damaged" in caplog.text


def test_a_copied_store_is_compared_once_and_used(files: list[str], tmp_path: Path, reads: list[str]) -> None:
    (shard,) = get(files, tmp_path / "cache").folders
    os.utime(shard / VALUES, ns=(1, 1))
    seal = (shard / SEAL).read_text()
    assert_right(get(files, tmp_path / "cache"), files)
    assert len(reads) == 5
    assert (shard / SEAL).read_text() != seal  # the new time is noted


def in_processes(*todo: Callable[[], object]) -> list[int | None]:
    """Each in a copy of this process, all at once; how they ended."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=target) for target in todo]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


@pytest.fixture
def twelve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Twelve recordings, a shard each, whose reading takes a moment and is noted in the file "log" with the process."""
    rng = np.random.default_rng(1)
    for i in range(12):
        write_audio(tmp_path / f"{i}.wav", 0.1 * rng.standard_normal(400), 8000)
    plain = extraction._clip

    def slow(front_end: extraction.FileFrontEnd, path: str) -> np.ndarray | str:
        with (tmp_path / "log").open("a") as log:
            log.write(f"{os.getpid()} {path}\n")
        time.sleep(0.02)
        return plain(front_end, path)

    monkeypatch.setattr(extraction, "_clip", slow)
    monkeypatch.setattr(extraction, "FILES", 1)
    return [str(tmp_path / f"{i}.wav") for i in range(12)]


def read_by(folder: Path) -> tuple[list[str], set[str]]:
    """What was read, in order of names, and by which processes."""
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    return sorted((path for _, path in lines), key=lambda path: int(Path(path).stem)), {process for process, _ in lines}


def test_a_killed_run_goes_on_from_its_whole_shards(
    twelve: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "FILES", 2)
    slow = extraction._clip

    def deadly(front_end: extraction.FileFrontEnd, path: str) -> np.ndarray | str:
        clip = slow(front_end, path)
        if len((tmp_path / "log").read_text().splitlines()) == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return clip

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "_clip", deadly)
        assert in_processes(lambda: get(twelve, tmp_path / "cache")) == [-signal.SIGKILL]
    (family,) = (tmp_path / "cache" / "features").iterdir()
    (left,) = family.glob(f"{UNFINISHED}*")
    assert len(list(family.iterdir())) == 1 + 3
    first = [line.split()[1] for line in (tmp_path / "log").read_text().splitlines()]
    (tmp_path / "log").unlink()
    os.utime(left, (1, 1))
    assert_right(get(twelve, tmp_path / "cache"), twelve)
    assert sorted(read_by(tmp_path)[0]) == sorted(set(twelve) - set(first[:6]))
    assert not left.exists()


def hold(path: Path) -> None:
    """Lock a file until this process ends."""
    file = path.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    HELD.append(file)


HELD: list[IO[str]] = []


def test_workers_end_with_the_process_that_was_killed(tmp_path: Path) -> None:
    def run() -> None:
        begin = (LogMel(CONFIG).to_dict(), {})
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), extraction._begin, begin)
        pool.submit(hold, tmp_path / "lock").result()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_processes(run) == [-signal.SIGKILL]
    with (tmp_path / "lock").open() as file:
        for _ in range(300):
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
    pytest.fail("the worker is still there")


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = extraction.own_cores()
    for ranks in (2, 1000):
        told = {"TORCHELASTIC_RUN_ID": "test", "RANK": 0, "WORLD_SIZE": 2 * ranks, "LOCAL_RANK": 0}
        for name, value in (told | {"LOCAL_WORLD_SIZE": ranks}).items():
            monkeypatch.setenv(name, str(value))
        assert extraction.own_cores() == max(1, alone // ranks)


def test_an_interrupted_run_leaves_only_whole_shards(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    plain = extraction._clip

    def stop(front_end: extraction.FileFrontEnd, path: str) -> np.ndarray | str:
        if path == files[3]:
            raise KeyboardInterrupt
        return plain(front_end, path)

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "_clip", stop)
        with pytest.raises(KeyboardInterrupt):
            get(files, tmp_path / "cache")
    assert list(tmp_path.glob("cache/features/*/*")) == []
    assert len(get(files, tmp_path / "cache")) == 5


def test_two_processes_at_once_share_the_work(twelve: list[str], tmp_path: Path) -> None:
    assert in_processes(*2 * [lambda: get(twelve, tmp_path / "cache")]) == [0, 0]
    paths, processes = read_by(tmp_path)
    assert sorted(set(paths)) == sorted(twelve)
    assert len(processes) == 2
    assert len(paths) < 24
    assert_right(get(twelve, tmp_path / "cache"), twelve)
    assert len(read_by(tmp_path)[0]) == len(paths)
    assert len(list(tmp_path.glob("cache/features/*/*"))) == 12


def test_ranks_compute_and_hash_their_share_and_wait_for_the_others(
    twelve: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "HASHED", 1)
    plain = extraction._digest

    def noted(path: str) -> str:
        (tmp_path / f"{os.environ['RANK']}-hashed-{Path(path).stem}").touch(exist_ok=False)
        return plain(path)

    monkeypatch.setattr(extraction, "_digest", noted)

    def rank(number: int) -> None:
        os.environ |= {"RANK": str(number), "WORLD_SIZE": "2"}
        assert_right(get(twelve, tmp_path / "cache"), twelve)

    assert in_processes(lambda: rank(0), lambda: rank(1)) == [0, 0]
    assert read_by(tmp_path)[0] == twelve
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    by = {Path(path).stem: process for process, path in lines}
    assert by["0"] != by["1"]
    assert all(by[str(i)] == by[str(i % 2)] for i in range(12))
    assert sorted(path.name[0] for path in tmp_path.glob("*-hashed-*")) == [*6 * "0", *6 * "1"]


def test_a_rank_that_comes_late_does_its_share_and_no_more(twelve: list[str], tmp_path: Path) -> None:
    found: dict[extraction.Clip, str] = {file: digest(file) for file in twelve}

    def rank(number: int) -> None:
        os.environ |= {"RANK": str(number), "WORLD_SIZE": "2"}
        while number and len(list(tmp_path.glob(f"cache/features/*/*/{SEAL}"))) < 6:
            time.sleep(0.05)
        assert_right(compute(LogMel(CONFIG), found, "audio", tmp_path / "cache", 0), twelve)

    assert in_processes(lambda: rank(0), lambda: rank(1)) == [0, 0]
    assert read_by(tmp_path)[0] == twelve


def test_the_share_of_a_lost_rank_is_taken_over(
    twelve: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "PATIENCE", 0.3)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_right(get(twelve, tmp_path / "cache"), twelve)


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("-1", "2"), ("one", "2"), ("0", "")])
def test_ranks_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch, rank: str, world: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(ValueError, match=f"RANK={rank} and WORLD_SIZE={world} must be"):
        shares.rank_of()


def test_bad_files_are_problems_without_paths_and_are_remembered(
    files: list[str], tmp_path: Path, reads: list[str]
) -> None:
    Path(files[2]).write_bytes(Path(files[2]).read_bytes()[:-100])
    for _ in range(2):
        store = get(files, tmp_path / "cache")
        assert list(store.problems) == [digest(files[2])]
        assert store.problems[digest(files[2])].startswith("is truncated")
        assert digest(files[2]) not in store
        assert digest(files[3]) in store
    assert len(reads) == 5


def test_equal_files_are_computed_once(files: list[str], tmp_path: Path, reads: list[str]) -> None:
    twin = tmp_path / "twin.wav"
    twin.write_bytes(Path(files[1]).read_bytes())
    store = get([files[1], str(twin)], tmp_path / "cache")
    assert reads == ["1.wav"]
    assert len(store) == 1


def test_every_front_end_comes_back_from_its_plain_data() -> None:
    arrays = FrameArrays(2)
    arrays.fit([np.eye(2)])
    for front_end in (Tokenizer.train(["ab"]), LogMel(CONFIG), arrays):
        restored = front_end_from_dict(front_end.to_dict())
        assert type(restored) is type(front_end)
        assert restored.to_dict() == front_end.to_dict()
    with pytest.raises(ValueError, match="kind 'odour'"):
        front_end_from_dict({"kind": "odour"})
