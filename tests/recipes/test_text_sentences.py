"""The recipe of sentences: what it reads of a file, and which sentences train, validate and test."""

import csv
from collections import defaultdict
from pathlib import Path

import pytest

from recipes import text_sentences as sentences
from tests.made_texts import poems


def splits(manifest: Path) -> dict[str, list[str]]:
    found = defaultdict(list)
    with manifest.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found[row["split"]].append(row["text"])
    return found


def test_titles_colours_and_separators_of_fortune_files_are_no_sentences(tmp_path: Path) -> None:
    found = sentences.read(poems(tmp_path / "poems"))
    assert len(found) == 24
    assert set(found) == {"春眠不觉晓，", "处处闻啼鸟。", "夜来风雨声，", "花落知多少。"}


def test_a_single_file_is_divided_and_nothing_is_lost_or_shared(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"sentence {i}\n" for i in range(50)), encoding="utf-8")
    found = splits(sentences.prepare_manifest(tmp_path, text))
    assert {split: len(part) for split, part in found.items()} == {"train": 40, "valid": 5, "test": 5}
    together = [sentence for part in found.values() for sentence in part]
    assert sorted(together) == sorted(f"sentence {i}" for i in range(50))
    assert found == splits(sentences.prepare_manifest(tmp_path / "again", text))


def test_three_files_are_three_splits(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("train.txt", "valid.txt", "test.txt")]
    for file in files:
        file.write_text(f" {file.stem} one \n\n{file.stem} two\n{file.stem} three", encoding="utf-8")
    found = splits(sentences.prepare_manifest(tmp_path, *files))
    assert {split: sorted(part) for split, part in found.items()} == {
        split: [f"{split} one", f"{split} three", f"{split} two"] for split in ("train", "valid", "test")
    }


def test_files_without_sentences_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        sentences.read(tmp_path / "nowhere")
    (tmp_path / "empty").write_text("%\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="empty holds no sentence"):
        sentences.read(tmp_path / "empty")
    (tmp_path / "latin").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match="latin is not UTF-8"):
        sentences.read(tmp_path / "latin")
    (tmp_path / "few").write_text("one\ntwo\n", encoding="utf-8")
    with pytest.raises(ValueError, match="too few"):
        sentences.prepare_manifest(tmp_path, tmp_path / "few")
