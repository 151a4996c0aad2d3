"""The recipe of requests: both layouts of its data say the same, validation is set apart, the skew is as asked."""

import csv
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from mmseqvae.data.download import file_sha256
from recipes import typed_requests as requests
from tests.made_texts import requests_as_published


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return requests_as_published(tmp_path / "source")


def rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_both_layouts_give_the_same_manifest(published: Path, tmp_path: Path) -> None:
    found = requests.read(published)
    assert ("PlayMusic", "play 1999 on spotify") in found["train"]  # pieces joined, spaces as between words
    assert ("PlayMusic", "play café please") in found["train"]  # though its file is Latin-1
    table = tmp_path / "table"
    table.mkdir()
    for part, name in (("train", "train.tsv"), ("test", "valid.tsv")):
        (table / name).write_text("".join(f"{a}\t{b}\n" for a, b in found[part]), encoding="utf-8")
    assert requests.read(table) == found
    (tmp_path / "archive").mkdir()
    published.rename(tmp_path / "archive" / requests.SOURCE)
    assert requests.read(tmp_path / "archive") == found  # the repository's own folder, too
    first = requests.prepare_manifest(tmp_path / "a", table).read_bytes()
    assert first == requests.prepare_manifest(tmp_path / "b", tmp_path / "archive").read_bytes()


def test_what_is_downloaded_is_unpacked_noted_as_unverified_and_kept(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "nlu-benchmark-master.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(published, f"nlu-benchmark-master/{requests.SOURCE}")
    monkeypatch.setattr(requests, "URL", archive.as_uri())
    manifest = requests.prepare_manifest(tmp_path / "cache").read_bytes()
    assert manifest == requests.prepare_manifest(tmp_path / "other", published).read_bytes()
    noted = (tmp_path / "cache" / "requests" / "unverified.sha256").read_text()
    assert noted.split() == [file_sha256(archive), "nlu-benchmark.tar.gz"]
    archive.unlink()
    assert requests.prepare_manifest(tmp_path / "cache").read_bytes() == manifest
    shutil.rmtree(tmp_path / "cache" / "requests" / "source")
    archive.write_bytes(b"another")
    with pytest.raises(ValueError, match="not the file that was downloaded first: delete it to fetch it anew, and"):
        requests.prepare_manifest(tmp_path / "cache")


def test_validation_comes_from_training_alone_and_is_the_same_when_skewed(published: Path, tmp_path: Path) -> None:
    plain = rows(requests.prepare_manifest(tmp_path, published))
    skewed = rows(requests.prepare_manifest(tmp_path, published, skewed=True))
    assert len({row["id"] for row in plain}) == len(plain) == 2 * (36 + 6)
    for split in ("valid", "test"):
        assert [row for row in plain if row["split"] == split] == [row for row in skewed if row["split"] == split]
    count = Counter(row["intent"] for row in plain if row["split"] == "train")
    assert count == {"PlayMusic": 24, "RateBook": 24}
    count = Counter(row["intent"] for row in skewed if row["split"] == "train")
    assert count == {"PlayMusic": 24, "RateBook": 12}


def test_what_is_no_request_is_named(published: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--data-dir"):
        requests.read(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"train\.tsv"):
        requests.read(tmp_path)
    (tmp_path / "train.tsv").write_text("PlayMusic\tplay\nno tab\n")
    with pytest.raises(ValueError, match=r"train\.tsv, line 2"):
        requests.read(tmp_path)
    (published / "RateBook" / "validate_RateBook.json").write_text(json.dumps({"RateBook": [{"text": "rate"}]}))
    with pytest.raises(ValueError, match=r"validate_RateBook\.json"):
        requests.read(published)
