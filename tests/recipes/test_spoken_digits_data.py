"""The spoken digits: who is heard where, how often, and that neither source accepts other recordings than its own."""

import csv
import hashlib
import importlib.util
import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes import spoken_digits as recipe


def rows(manifest: Path) -> list[dict[str, str]]:
    with open(manifest, newline="") as file:
        return list(csv.DictReader(file))


def variant(voice: str) -> str:
    return voice.partition("+")[2]


def test_no_test_voice_is_heard_in_training() -> None:
    assert len(set(recipe.TRAIN_VOICES)) == len(recipe.TRAIN_VOICES) == 45
    assert len(set(recipe.TEST_VOICES)) == len(recipe.TEST_VOICES) == 10
    assert not {variant(voice) for voice in recipe.TRAIN_VOICES} & {variant(voice) for voice in recipe.TEST_VOICES}
    for voices, high in ((recipe.TRAIN_VOICES, recipe.TRAIN_HIGH), (recipe.TEST_VOICES, recipe.TEST_HIGH)):
        assert 0.25 < sum(variant(voice) in high for voice in voices) / len(voices) < 0.5


def test_the_plan_is_balanced_and_follows_the_seed() -> None:
    plan = recipe.utterances(0)
    assert plan == recipe.utterances(0) != recipe.utterances(1)
    assert plan.keys() == recipe.utterances(1).keys()
    parts = Counter((utterance.voice in recipe.TEST_VOICES, utterance.text) for utterance in plan.values())
    assert parts == {(test, word): 30 if test else 270 for test in (False, True) for word in recipe.WORDS}
    assert len({(utterance.speed, utterance.pitch) for utterance in plan.values()}) > 1000


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "TRAIN_VOICES", recipe.TRAIN_VOICES[:3])
    monkeypatch.setattr(recipe, "TEST_VOICES", recipe.TEST_VOICES[:1])
    monkeypatch.setattr(recipe, "TRAIN_TAKES", 2)
    monkeypatch.setattr(recipe, "TEST_TAKES", 1)


needs_espeak = pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="needs the synth extra")


@needs_espeak
@pytest.mark.usefixtures("small")
def test_synth_makes_its_recordings_once(tmp_path: Path) -> None:
    manifest = recipe.prepare_synth(tmp_path)
    items = rows(manifest)
    assert Counter(item["split"] for item in items) == {"train": 60, "test": 10}
    speaker = recipe.TRAIN_VOICES[0]
    name = f"3_{speaker}_0"
    cells = [name, f"recordings/{name}.wav", "three", "train", "3", speaker]
    assert items[3] == dict(zip(["id", "audio", "text", "split", "label", "speaker"], cells, strict=True))
    waves = {item["id"]: soundfile.read(manifest.parent / item["audio"]) for item in items}
    assert all(rate == 8000 and 0.2 < len(wave) / rate < 1.2 for wave, rate in waves.values())
    assert all(np.abs(wave).max() < 0.6 for wave, _ in waves.values())

    written = {path: path.stat().st_mtime_ns for path in (manifest.parent / "recordings").iterdir()}
    held_out = recipe.prepare_synth(tmp_path, holdout=True)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    splits = Counter((item["split"], item["speaker"]) for item in rows(held_out))
    assert splits["valid", recipe.TRAIN_VOICES[0]] == splits["valid", recipe.TRAIN_VOICES[1]] == 10
    assert splits.total() == 70
    assert sum(count for (split, _), count in splits.items() if split == "valid") == 20

    next(iter(written)).unlink()  # one lost: all are made again, to the byte as before
    content = {path: path.read_bytes() for path in written if path.exists()}
    recipe.prepare_synth(tmp_path)
    assert all(path.exists() for path in written)
    assert all(path.read_bytes() == before for path, before in content.items())
    assert recipe.prepare_synth(tmp_path, seed=1).parent != manifest.parent


TAKES = [(digit, speaker, take) for digit in (0, 7) for speaker in ("ann", "bob") for take in range(12)]


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Made-up files by name, listed in the checksums that the recipe goes by."""
    files = {f"{digit}_{speaker}_{take}.wav": f"{digit}{speaker}{take}".encode() for digit, speaker, take in TAKES}
    sums = tmp_path / "sums"
    sums.write_text("".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()))
    monkeypatch.setattr(recipe, "FSDD_SUMS", sums)
    return files


@pytest.mark.parametrize("inner", ["", "recordings"])
def test_fsdd_reads_a_given_folder(tmp_path: Path, recordings: dict[str, bytes], inner: str) -> None:
    data = tmp_path / "given"
    (data / inner).mkdir(parents=True)
    for name, content in recordings.items():
        (data / inner / name).write_bytes(content)
    items = rows(recipe.prepare_fsdd(tmp_path / "cache", data))
    assert [item["id"] for item in items] == [Path(name).stem for name in recordings]
    assert Counter(item["split"] for item in items) == {"train": 28, "test": 20}
    assert all(Path(item["audio"]) == data.resolve() / inner / f"{item['id']}.wav" for item in items)
    last = items[-1]
    assert (last["text"], last["label"], last["speaker"]) == ("seven", "7", "bob")
    for item in rows(recipe.prepare_fsdd(tmp_path / "cache", data, holdout=True)):
        take = int(item["id"].rpartition("_")[2])
        assert item["split"] == ("test" if take <= 4 else "valid" if take <= 9 else "train")

    (data / inner / "0_ann_3.wav").write_bytes(b"other")
    (data / inner / "7_bob_11.wav").unlink()
    with pytest.raises(ValueError, match=r"2 of 48 files .*0_ann_3.wav \(changed\), 7_bob_11.wav \(missing\)"):
        recipe.prepare_fsdd(tmp_path / "cache", data)
    with pytest.raises(FileNotFoundError, match=r"--data-dir .*nowhere"):
        recipe.prepare_fsdd(tmp_path / "cache", tmp_path / "nowhere")


def test_fsdd_downloads_unpacks_and_checks(
    tmp_path: Path, recordings: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.tar.gz"
    with tarfile.open(source, "w:gz") as tar:
        for name, content in recordings.items():
            member = tarfile.TarInfo(f"free-spoken-digit-dataset-1.0.10/recordings/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(recipe, "FSDD_URL", source.as_uri())
    manifest = recipe.prepare_fsdd(tmp_path / "cache")
    source.unlink()
    assert recipe.prepare_fsdd(tmp_path / "cache") == manifest  # nothing is fetched twice
    for item in rows(manifest):
        assert not Path(item["audio"]).is_absolute()
        assert (manifest.parent / item["audio"]).read_bytes() == recordings[f"{item['id']}.wav"]
    assert sorted(path.name for path in manifest.parent.iterdir()) == ["manifest.csv", "v1.0.10"]


def test_the_published_checksums_are_those_of_a_whole_set() -> None:
    names = [line.split()[1] for line in recipe.FSDD_SUMS.read_text().splitlines()]
    speakers = {name.split("_")[1] for name in names}
    assert len(speakers) == 6
    assert set(names) == {f"{digit}_{who}_{take}.wav" for digit in range(10) for who in speakers for take in range(50)}


def test_a_folder_given_for_synthetic_voices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--data-dir is for --source fsdd"):
        recipe.main(data_dir=tmp_path)
