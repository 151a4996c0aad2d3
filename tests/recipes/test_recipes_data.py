"""What the recipes of series, video and chorales make, read and refuse."""

import json
from pathlib import Path

import numpy as np
import pytest

from recipes import chorales, series, video


def test_spirals_are_the_papers() -> None:
    clean, noisy = series.spirals(0)
    assert clean.shape == noisy.shape == (1000, 100, 2)
    assert (noisy - clean).std() == pytest.approx(0.1, rel=0.01)
    turning = clean[:, :-1, 0] * clean[:, 1:, 1] - clean[:, :-1, 1] * clean[:, 1:, 0]  # of the angle, in sign
    assert (np.sign(turning).mean(1) == np.where(np.arange(1000) % 2, 1, -1)).all()
    y = np.abs(clean[:, :, 1])
    assert 2 < y.max() <= 2.75
    width = np.linalg.norm(clean[:, -1] * [1, 0], axis=1).max()
    assert 4 < width <= 5.5


def test_holes_are_frames_of_nan_in_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "SPIRALS", 30)
    monkeypatch.setattr(series, "TRAIN", 24)
    manifest = series.prepare_spirals(tmp_path, 0, 0.3, holdout=True)
    rows = [line.split(",") for line in manifest.read_text().splitlines()]
    assert rows[0] == ["id", "split", "x", "y"]
    assert [row[1] for row in rows[1:]] == 20 * ["train"] + 4 * ["valid"] + 6 * ["test"]
    holes = np.stack([np.isnan(np.load(manifest.parent / row[2])) for row in rows[1:]])
    assert holes[:24].mean() == pytest.approx(0.3, abs=0.05)
    assert not holes[24:].any()


def table(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(["time,a,b", *lines]))
    return path


def test_a_csv_is_cut_into_windows_and_its_end_is_the_test(tmp_path: Path) -> None:
    file = table(tmp_path / "t.csv", [f"{t},{t / 10},{'' if t % 7 == 0 else -t}" for t in range(53)])
    manifest = series.prepare_csv(tmp_path / "cache", file, ["a", "b"], 5)
    rows = [line.split(",") for line in manifest.read_text().splitlines()][1:]
    assert [row[1] for row in rows] == 8 * ["train"] + 2 * ["test"]
    a, b = (np.concatenate([np.load(manifest.parent / row[c]) for row in rows])[:, 0] for c in (2, 3))
    np.testing.assert_allclose(a, np.arange(3, 53) / 10, rtol=1e-6)
    assert (np.isnan(b) == (np.arange(3, 53) % 7 == 0)).all()


@pytest.mark.parametrize(
    ("lines", "columns", "message"),
    [
        (["0,1,2", "1,x,3"], ["a"], r"t\.csv: line 3: a is 'x'"),
        (["0,1,2"], ["c"], r"has no column \['c'\]"),
        (["0,1,2"], ["a"], "1 rows are 1 windows of 1"),
    ],
)
def test_what_is_wrong_with_a_csv(tmp_path: Path, lines: list[str], columns: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        series.prepare_csv(tmp_path, table(tmp_path / "t.csv", lines), columns, 1)


def test_digits_are_split_once_and_for_all(tmp_path: Path) -> None:
    _, numbers, splits = video.digits()
    assert (splits.count("train"), splits.count("test")) == (1437, 360)
    assert min(np.bincount(numbers[np.array(splits) == "test"])) > 20
    manifest = video.prepare_digits(tmp_path, holdout=True, items=50)
    rows = [line.split(",") for line in manifest.read_text().splitlines()][1:]
    assert {row[3] for row in rows} == {"train", "valid", "test"}
    assert all(video.WORDS[int(row[4])] == row[2] for row in rows)
    assert np.load(manifest.parent / rows[0][1]).shape == (8, 8)


def test_a_folder_of_frames_and_texts(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    np.save(tmp_path / "data" / "deep" / "a.npy", np.zeros((3, 2)))
    (tmp_path / "data" / "deep" / "a.txt").write_text("hello\n")
    (tmp_path / "data" / "b.txt").write_text("no frames")
    np.save(tmp_path / "data" / "c.npy", np.zeros((3, 2)))
    rows = video.prepare_folder(tmp_path, tmp_path / "data").read_text().splitlines()
    c, a = tmp_path / "data" / "c.npy", tmp_path / "data" / "deep" / "a.npy"
    assert rows == ["id,video,text", "b,,no frames", f"c,{c},", f"deep/a,{a},hello"]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        video.prepare_folder(tmp_path, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.npy file"):
        video.prepare_folder(tmp_path, tmp_path / "empty")


def test_an_image_that_ended_early_is_empty_below() -> None:
    assert video.cropped(np.ones((5, 8))).sum(1).tolist() == [8, 8, 8, 8, 8, 0, 0, 0]
    assert video.cropped(np.ones((10, 8))).shape == (8, 8)


def test_a_roll_has_the_keys_that_are_down() -> None:
    roll = chorales.roll_of([[21, 60], [], [-1, 108]])
    assert [np.flatnonzero(step).tolist() for step in roll] == [[0, 39], [], [87]]


def test_made_chorales_have_four_parts_in_the_layout_of_the_json(tmp_path: Path) -> None:
    made = chorales.made(0, 40)
    assert {split: len(some) for split, some in made.items()} == {"train": 30, "valid": 5, "test": 5}
    sizes = [len(step) for some in made.values() for chorale in some for step in chorale]
    assert max(sizes) == 4
    assert np.mean(sizes) > 3.5
    (tmp_path / "c.json").write_text(json.dumps(made))
    assert chorales.read_chorales(tmp_path / "c.json") == made


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "is no JSON object"),
        ('{"train": []}', "'valid'"),
        ('{"train": [[[60], [130]]], "valid": [], "test": []}', "chorale 0 of train: step 1 has the pitch 130"),
        ('{"train": [], "valid": [[]], "test": []}', "chorale 0 of valid: has no steps"),
    ],
)
def test_what_is_wrong_with_a_json(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        chorales.read_chorales(tmp_path / "c.json")


def test_a_download_must_stay_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(url: str, path: Path) -> Path:
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return path

    monkeypatch.setattr(chorales, "download", touched)
    file = chorales.fetched(tmp_path / "jsb")
    assert chorales.fetched(tmp_path / "jsb") == file
    file.write_text("changed")
    with pytest.raises(ValueError, match="not the file that was downloaded first"):
        chorales.fetched(tmp_path / "jsb")
    with pytest.raises(FileNotFoundError, match="holds no"):
        chorales.fetched(tmp_path, tmp_path)


def test_nats_without_a_model_are_entropies_of_what_is_counted() -> None:
    """A key that is down half of the time, in turns: ln 2 by itself, almost nothing by its last state."""
    turns = 500 * [[60], []]
    found = chorales.baselines({"train": [turns], "valid": [], "test": [turns]})
    others = 87 * -np.log1p(-0.5 / 1001)
    assert found["each key by itself"] == pytest.approx(np.log(2) + others, rel=1e-3)
    assert found["each key by its last state"] < 0.3
