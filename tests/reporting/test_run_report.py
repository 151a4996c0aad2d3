"""Pictures and sounds: written, readable, of the words asked, and the same again for the same seed."""

import csv
import hashlib
import warnings
from pathlib import Path

import pytest
import soundfile
import torch

from mmseqvae.config import ModelConfig
from mmseqvae.data import SequenceDataset
from mmseqvae.data.dataset import Column
from mmseqvae.features.arrays import FrameArrays, Standard
from mmseqvae.pipeline.build import build
from mmseqvae.pipeline.trained_model import Trained
from mmseqvae.reporting.figure_to_png import save_png
from mmseqvae.reporting.run_report import report
from tests.evaluation.test_summary import LOG_MEL, SMALL, WORDS, corpus


def test_a_speaking_model_leaves_sounds_and_pictures(tmp_path: Path) -> None:
    trained, dataset = corpus(6)
    written = report(trained, dataset, tmp_path, samples=2)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path).as_posix() for path in written} <= found
    assert not [name for name in found if "/." in name]  # no temporary file is left
    for name in ("words", "pairs", "latent"):
        picture = (tmp_path / "pictures" / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 5000
    said = sorted((tmp_path / "samples" / "said").iterdir())
    assert [path.name for path in said] == [f"{i}-{word}-{s}.wav" for i, word in enumerate(WORDS) for s in (0, 1)]
    wave, rate = soundfile.read(said[0])
    assert rate == LOG_MEL.sample_rate
    assert 0 < len(wave) <= trained.longest["audio"] * LOG_MEL.hop_length
    with open(tmp_path / "samples" / "heard.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[:2] for row in rows] == [["id", "spoken"], ["0", "ab"], ["1", "ba"]]
    with open(tmp_path / "samples" / "pairs" / "texts.csv", newline="") as file:
        assert all((tmp_path / "samples" / "pairs" / row["sound"]).exists() for row in csv.DictReader(file))

    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in said]
    report(trained, dataset, tmp_path, samples=2)  # over what is there
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in said] == sums


@pytest.mark.parametrize("text", ["a/b", "../x", "", "ſ" * 90])
def test_texts_make_safe_file_names(tmp_path: Path, text: str) -> None:
    trained, dataset = corpus(2)
    tokenizer = trained.front_ends["text"]
    columns = dict(dataset.columns)
    columns["text"] = Column.of([torch.tensor([1, 0]), torch.tensor([1, 1, 0])], torch.zeros(0, dtype=torch.long))
    tokenizer._symbols[1] = text  # type: ignore[union-attr]
    report(trained, SequenceDataset(dataset.ids, dataset.labels, columns), tmp_path, samples=1)
    names = list((tmp_path / "samples").rglob("*.wav"))
    assert all(path.parent.name in ("said", "pairs") and len(path.name) < 60 for path in names)
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "samples"}


def test_a_model_without_sound_gets_its_latent_space(tmp_path: Path) -> None:
    front_end = FrameArrays(2, Standard(torch.zeros(2), torch.ones(2)))
    trained = Trained(build({"sensor": front_end}, {"sensor": 9}, SMALL), {"sensor": front_end}, {"sensor": 9}, SMALL)
    dataset = SequenceDataset(
        ["a", "b"], [None, None], {"sensor": Column.of([torch.randn(4, 2)] * 2, torch.zeros(0, 2))}
    )
    assert report(trained, dataset, tmp_path) == [tmp_path / "pictures" / "latent.png"]
    one = SequenceDataset(["a"], [None], {"sensor": Column.of([torch.randn(4, 2)], torch.zeros(0, 2))})
    assert report(trained, one, tmp_path / "one") == [tmp_path / "one" / "pictures" / "latent.png"]
    assert ModelConfig().latent != SMALL.latent


def test_symbols_that_no_font_has_are_told_once(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    for name, text, told in (("plain", "seven", 0), ("strange", "\U0001fbfa\U0001fbfb", 1)):  # not assigned before 2020
        figure = Figure()
        figure.subplots().set_title(text)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            assert save_png(figure, tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ["no font here has" in str(warning.message) for warning in found] == [True] * told
        assert {warning.filename for warning in found} <= {__file__}
