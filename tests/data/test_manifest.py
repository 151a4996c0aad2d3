import json
from collections import Counter
from pathlib import Path

import pytest

from mmseqvae.data.manifest import KNOWN, ManifestError, hashed_split, read_manifest


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"sound")
    (tmp_path / "empty.wav").touch()
    return tmp_path


ROWS = [
    {"id": "1", "audio": "a.wav", "text": 'eins, zwei\n"drei"', "split": "train", "label": "x", "mood": "good"},
    {"id": "2", "audio": "", "text": "中文 العربية", "split": "valid", "label": "", "mood": ""},
    {"id": "3", "audio": "b.wav", "text": "", "split": "test", "label": "y", "mood": "bad"},
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_three_formats_say_the_same(folder: Path, suffix: str, encoding: str) -> None:
    if suffix == ".jsonl":
        text = "\n".join(json.dumps({k: v or None for k, v in row.items()}, ensure_ascii=False) for row in ROWS)
    else:
        quoted = [["id", "audio", "text", "split", "label", "mood"]]
        quoted += [['"' + cell.replace('"', '""') + '"' for cell in row.values()] for row in ROWS]
        text = "\r\n".join(("," if suffix == ".csv" else "\t").join(row) for row in quoted) + "\r\n\r\n"
    manifest = read_manifest(write(folder / f"m{suffix}", text, encoding))
    assert manifest.problems == []
    assert manifest.columns == {"text": "tokens", "audio": "audio"}
    assert manifest.unused == ["mood"]
    assert [(row.id, row.split, row.label) for row in manifest.rows] == [
        ("1", "train", "x"),
        ("2", "valid", None),
        ("3", "test", "y"),
    ]
    assert manifest.rows[0].cells == {"text": 'eins, zwei\n"drei"', "audio": str(folder / "a.wav")}
    assert manifest.rows[1].cells == {"text": "中文 العربية"}
    assert manifest.rows[2].cells == {"audio": str(folder / "b.wav")}


def test_paths_start_at_the_manifest_or_are_absolute(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "m.csv").write_text(f"audio\n a.wav \n{folder / 'b.wav'}\n")
    manifest = read_manifest(folder / "m.csv")
    assert [row.cells["audio"] for row in manifest.rows] == [str(folder / "a.wav"), str(folder / "b.wav")]
    manifest = read_manifest(write(elsewhere / "m.csv", f"audio\na.wav\n{folder / 'b.wav'}\n"))
    assert [problem.row for problem in manifest.problems] == [2]


def test_without_ids_rows_are_numbered(folder: Path) -> None:
    manifest = read_manifest(write(folder / "m.csv", "text\na\n\nb\n"))
    assert [row.id for row in manifest.rows] == ["1", "2"]
    assert [row.row for row in manifest.rows] == [2, 4]


def test_hashed_split_is_fixed_and_in_proportion() -> None:
    counts = Counter(hashed_split(f"item-{i}") for i in range(10_000))
    assert abs(counts["train"] - 9000) < 120
    assert abs(counts["valid"] - 500) < 90
    # written down once: another choice would move items between the splits of a set that somebody trained on
    assert [i for i in range(60) if hashed_split(str(i)) == "valid"] == [5, 6, 31]
    assert [i for i in range(60) if hashed_split(str(i)) == "test"] == [20]


def test_every_bad_row_is_listed_with_line_id_and_file(folder: Path) -> None:
    lines = [
        "id,audio,text,split",
        "ok,a.wav,seven,train",
        "gone,no.wav,seven,train",
        "empty,empty.wav,,train",
        "folder,.,,train",
        "nothing,,,train",
        "ok,b.wav,,train",
        "split,a.wav,,dev",
        ",a.wav,,train",
        "short,a.wav",
        "long,a.wav,b,train,more",
        "blank,,\u3000 ,train",
    ]
    manifest = read_manifest(write(folder / "m.csv", "\n".join(lines)))
    assert [row.id for row in manifest.rows] == ["ok"]
    found = {problem.row: (problem.id, problem.problem) for problem in manifest.problems}
    expected = {
        3: ("gone", f"audio {folder / 'no.wav'}: file is missing"),
        4: ("empty", f"audio {folder / 'empty.wav'}: file is empty"),
        5: ("folder", f"audio {folder}: is a folder, not a file"),
        6: ("nothing", "has no modality at all (text, audio are empty)"),
        7: ("ok", "the id is taken by line 2"),
        8: ("split", "split is 'dev', must be one of train, valid, test"),
        9: ("8", "the id is empty"),
        10: ("unknown", "has 2 cells, the header has 4"),
        11: ("unknown", "has 5 cells, the header has 4"),
        12: ("blank", "has no modality at all (text, audio are empty)"),
    }
    assert found == expected


def test_bad_json_rows_are_listed(folder: Path) -> None:
    lines = [
        '{"id": 1, "text": "ok", "label": 7}',
        '{"id": 2, "text": ',
        '["text"]',
        '{"id": 4, "text": 4}',
        '{"id": 5, "audio": ["a.wav"]}',
        '{"id": 6.5, "text": "a"}',
        '{"id": 7, "text": "\\ud800"}',
        '{"id": 8, "audio": "a\\u0000.wav"}',
        '{"id": 9, "text": "a", "split": true}',
    ]
    manifest = read_manifest(write(folder / "m.jsonl", "\n".join(lines)))
    assert [(row.id, row.label) for row in manifest.rows] == [("1", "7")]
    found = {problem.row: problem.problem for problem in manifest.problems}
    assert list(found) == list(range(2, 10))
    assert "is not JSON" in found[2]
    assert found[3] == "must be a JSON object, is list"
    assert found[4] == "text must be a string, is int"
    assert found[5] == "audio must be a string, is list"
    assert found[6] == "id must be a string or a whole number, is float"
    assert "lone surrogate" in found[7]
    assert "split must be a string" in found[9]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.xlsx", b"", "ends in .csv, .tsv, .jsonl"),
        ("m.csv", b"", "file is empty"),
        ("m.csv", b"id,text\n", "holds no rows"),
        ("m.jsonl", b"\n\n", "holds no rows"),
        (
            "m.csv",
            "text\nan\nän\n".encode("latin-1"),
            r"line 3 is not UTF-8 text \(byte 1 of it is 0xe4\): save the table",
        ),
        ("m.jsonl", (9000 * '{"text": "a"}\n' + '"ä"').encode("latin-1"), r"line 9001 is not UTF-8 text"),
        ("m.csv", "text,audio\na,b\n".encode("utf-16"), r"line 1 is not UTF-8 text \(byte 1 of it is 0xff\)"),
        ("m.csv", b"name,sound\n1,2\n", r"none of the modalities \['text', 'audio'\] .* \['name', 'sound'\]"),
        ("m.csv", b"text,text\n1,2\n", "must differ"),
        ("m.csv", b"text,\n1,2\n", "not be empty"),
        ("m.csv", b'text\n"open\n', "malformed"),
        ("m.csv", b'text,label\na,1\n"b\nc",2\n"open,3\nd,4\n', "row that begins at line 5 is malformed"),
        ("m.tsv", b'text\tlabel\n"hello" she said\t1\n', "row that begins at line 2 is malformed"),
        ("m.csv", b"text;audio\na;b\n", r"\['text;audio'\]: .* cells stand between commas"),
        ("m.csv", b"text,wav\na,b.WAV\n", r"'wav' names sound files, such as b\.WAV, .* call it audio"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=message) as error:
        read_manifest(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_columns_of_sounds_may_go_unused_where_there_is_audio_or_none_is_wanted(folder: Path) -> None:
    manifest = write(folder / "m.csv", "text,audio,path\nseven,a.wav,b.wav\n")
    assert read_manifest(manifest).unused == ["path"]
    manifest = write(folder / "m.csv", "text,path\nseven,b.wav\n")
    assert read_manifest(manifest, {"text": "tokens"}).unused == ["path"]


def test_missing_files_come_with_where_paths_start(folder: Path) -> None:
    manifest = read_manifest(write(folder / "m.csv", f"audio\n{folder.name}/a.wav\n"))
    assert f"Relative paths start at the folder of the table, {folder}." in manifest.complaint(manifest.problems)
    manifest = read_manifest(write(folder / "m.csv", "audio,split\na.wav,dev\n"))
    assert "Relative" not in manifest.complaint(manifest.problems)


def test_missing_manifest_and_missing_column_are_named(tmp_path: Path) -> None:
    for name in ("no.csv", "no"):  # the second may be meant as a folder
        with pytest.raises(ManifestError, match=rf"{name}: there is no such manifest"):
            read_manifest(tmp_path / name)
    manifest = write(tmp_path / "m.csv", "id,text\n1,a\n")
    with pytest.raises(ManifestError, match=r"no column 'phones'; its columns are \['id', 'text'\]"):
        read_manifest(manifest, {**KNOWN, "phones": "tokens"}, ["phones"])


def test_long_lists_of_problems_are_cut(tmp_path: Path) -> None:
    rows = "\n".join(f"{i},no-{i}.wav" for i in range(25))
    manifest = read_manifest(write(tmp_path / "m.csv", f"id,audio\n{rows}\n"))
    message = manifest.complaint(manifest.problems)
    assert "25 row(s)" in message
    assert "line 2 (id 0): audio" in message
    assert "no-9.wav" in message
    assert "no-10.wav" not in message
    assert "15 more" in message
    assert "--skip-bad" in message


def test_weights_are_numbers_and_bad_ones_are_told(tmp_path: Path) -> None:
    """An empty cell is 1; a column named as a modality is no weight."""
    path = tmp_path / "table.csv"
    path.write_text("id,text,weight\na,one,2.5\nb,two,\nc,three,0\nd,four,-1\ne,five,much\nf,six,inf\n")
    table = read_manifest(path)
    assert [(row.id, row.weight) for row in table.rows] == [("a", 2.5), ("b", 1.0), ("c", 0.0)]
    assert [(problem.row, problem.problem) for problem in table.problems] == [
        (5, "weight must be a number >= 0, is '-1'"),
        (6, "weight must be a number >= 0, is 'much'"),
        (7, "weight must be a number >= 0, is 'inf'"),
    ]
    assert table.unused == []
    named = read_manifest(path, {"text": "tokens", "weight": "labels"})
    assert [row.weight for row in named.rows] == 6 * [None]
    (tmp_path / "rows.jsonl").write_text('{"text": "one", "weight": 0.5}\n{"text": "two"}\n')
    assert [row.weight for row in read_manifest(tmp_path / "rows.jsonl").rows] == [0.5, None]
