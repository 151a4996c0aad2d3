import hashlib
from pathlib import Path

import numpy as np
import pytest

from mmseqvae.audio import LogMel, write_audio
from mmseqvae.config import LogMelConfig
from mmseqvae.data import features
from mmseqvae.data.features import compute, digests, front_end_from_dict
from mmseqvae.data.store import HEADER, VALUES, Store
from mmseqvae.frames import FrameArrays
from mmseqvae.text import Tokenizer

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
    plain = features._clip

    def spy(front_end: features.FileFrontEnd, path: str) -> np.ndarray | str:
        calls.append(Path(path).name)
        return plain(front_end, path)

    monkeypatch.setattr(features, "_clip", spy)
    return calls


def get(files: list[str], cache: Path, config: LogMelConfig = CONFIG, workers: int = 0) -> Store:
    return compute(LogMel(config), digests(files, "audio"), "audio", cache, workers)


def test_store_holds_exactly_the_features_and_no_pickle(files: list[str], tmp_path: Path) -> None:
    store = get(files, tmp_path / "cache")
    assert isinstance(store.values, np.memmap)
    for path, digest in digests(files, "audio").items():
        assert digest == hashlib.sha256(Path(path).read_bytes()).hexdigest()
        np.testing.assert_array_equal(store.clip(digest), LogMel(CONFIG).read(path).numpy())
    assert sorted(file.name for file in tmp_path.glob("cache/**/*") if file.is_file()) == [HEADER, VALUES]


def test_workers_compute_the_same(files: list[str], tmp_path: Path) -> None:
    here, there = get(files, tmp_path / "a"), get(files, tmp_path / "b", workers=2)
    np.testing.assert_array_equal(here.values, there.values)
    np.testing.assert_array_equal(here.offsets, there.offsets)


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
    for path, digest in digests(files, "audio").items():
        np.testing.assert_array_equal(store.clip(digest), LogMel(CONFIG).read(path).numpy())


def test_other_settings_are_another_store(files: list[str], tmp_path: Path, reads: list[str]) -> None:
    get(files, tmp_path / "cache")
    other = get(files, tmp_path / "cache", LogMelConfig(sample_rate=8000, n_fft=256, hop_length=50, n_mels=40))
    assert len(reads) == 10
    assert len(other.values) > len(get(files, tmp_path / "cache").values)
    assert len(reads) == 10


@pytest.mark.parametrize("damage", ["short", "long", "header", "no header", "no values", "not json", "other format"])
def test_damaged_stores_are_computed_anew(files: list[str], tmp_path: Path, damage: str) -> None:
    expected = np.array(get(files, tmp_path / "cache").values)
    (values,) = (tmp_path / "cache").glob(f"**/{VALUES}")
    header = values.with_name(HEADER)
    text = header.read_text()
    if damage == "short":
        values.write_bytes(values.read_bytes()[:-4])
    elif damage == "long":
        values.write_bytes(values.read_bytes() + b"0000")
    elif damage == "header":
        header.write_text(text.replace('"lengths": [4, 7', '"lengths": [7, 4'))
        assert header.read_text() != text
    elif damage == "other format":
        header.write_text(text.replace('"format": 1', '"format": 2'))
        assert header.read_text() != text
    elif damage == "not json":
        header.write_text(text[:-10])
    else:
        (header if damage == "no header" else values).unlink()
    assert Store.open_or_none(values.parent) is None
    np.testing.assert_array_equal(get(files, tmp_path / "cache").values, expected)


def test_an_interrupted_run_leaves_nothing(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(front_end: features.FileFrontEnd, path: str) -> np.ndarray | str:
        if path == files[3]:
            raise KeyboardInterrupt
        return np.zeros((1, 40), np.float32)

    with monkeypatch.context() as patch:
        patch.setattr(features, "_clip", stop)
        with pytest.raises(KeyboardInterrupt):
            get(files, tmp_path / "cache")
    assert list(tmp_path.glob("cache/features/*/*")) == []
    assert len(get(files, tmp_path / "cache").offsets) == 6


def test_bad_files_are_problems_without_paths_and_are_remembered(
    files: list[str], tmp_path: Path, reads: list[str]
) -> None:
    Path(files[2]).write_bytes(Path(files[2]).read_bytes()[:-100])
    for _ in range(2):
        store = get(files, tmp_path / "cache")
        found = digests(files, "audio")
        assert list(store.problems) == [found[files[2]]]
        assert store.problems[found[files[2]]].startswith("is truncated")
        assert found[files[2]] not in store
        assert found[files[3]] in store
    assert len(reads) == 5


def test_equal_files_are_computed_once(files: list[str], tmp_path: Path, reads: list[str]) -> None:
    twin = tmp_path / "twin.wav"
    twin.write_bytes(Path(files[1]).read_bytes())
    store = get([files[1], str(twin)], tmp_path / "cache")
    assert reads == ["1.wav"]
    assert len(store.offsets) == 2


def test_every_front_end_comes_back_from_its_plain_data() -> None:
    arrays = FrameArrays(2)
    arrays.fit([np.eye(2)])
    for front_end in (Tokenizer.train(["ab"]), LogMel(CONFIG), arrays):
        restored = front_end_from_dict(front_end.to_dict())
        assert type(restored) is type(front_end)
        assert restored.to_dict() == front_end.to_dict()
    with pytest.raises(ValueError, match="kind 'odour'"):
        front_end_from_dict({"kind": "odour"})
