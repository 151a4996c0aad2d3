"""Pictures and sounds of a run: what it says for a word beside a recording, pairs it invents, its latent space."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmseqvae.data import SequenceDataset, decode_items, encode_items
from mmseqvae.data.dataset import to_device
from mmseqvae.evaluation.summary import destandardised
from mmseqvae.features.log_mel import LogMel, write_audio
from mmseqvae.files import write_csv
from mmseqvae.pipeline.dataset_posteriors import posteriors
from mmseqvae.pipeline.trained_model import Trained
from mmseqvae.reporting.figure_to_png import save_png
from mmseqvae.sequence import Sequence
from mmseqvae.tokenizers.characters import Tokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORDS = 10  # distinct texts that are said and drawn
PAIRS = 8
SHOWN = 20  # characters of a text in a picture


@torch.no_grad()
def report(
    trained: Trained, dataset: SequenceDataset, out: str | Path, seed: int = 0, samples: int = 3, progress: bool = True
) -> list[Path]:
    """Write `out`/pictures (PNG) and `out`/samples (WAV files and tables of texts); return the paths.

    Made for every pair of a token modality and an audio modality: words.png (each of the first ten distinct texts said
    beside a recording of it), pairs.png (matching draws from the prior), and `samples` sounds of each. For any model:
    latent.png, the joint posterior means of `dataset` on their first two principal axes.
    """
    trained.model.eval()
    out = Path(out)
    texts = [name for name, front_end in trained.front_ends.items() if isinstance(front_end, Tokenizer)]
    sounds = [name for name, front_end in trained.front_ends.items() if isinstance(front_end, LogMel)]
    several = len(texts) * len(sounds) > 1
    parts: list[Callable[[], list[Path]]] = [lambda: [_latent(trained, dataset, out / "pictures" / "latent.png")]]
    for text, audio in product(texts, sounds):
        where = f"-{text}-{audio}" if several else ""
        parts += [
            partial(_said, trained, dataset, text, audio, out, where, samples, seed),
            partial(_invented, trained, text, audio, out, where, seed),
            partial(_heard, trained, dataset, text, audio, out, where, seed),
        ]
    written: list[Path] = []
    for part in tqdm(parts, desc="pictures and sounds", unit="part", leave=False, disable=not progress):
        written += part()
    return written


def _said(
    trained: Trained,
    dataset: SequenceDataset,
    text: str,
    audio: str,
    out: Path,
    where: str,
    samples: int,
    seed: int,
) -> list[Path]:
    """words.png, and samples/said/<number>-<word>-<draw>.wav."""
    front_end = _log_mel(trained, audio)
    rows = _first_of_each(trained, dataset, text, audio)
    if not rows:
        return []
    words, real = list(rows), _items(dataset, list(rows.values()), audio)
    model = trained.model
    given = to_device(encode_items(trained.front_ends, [{text: word} for word in words]), model.device)
    made = model.generate({text: given[text]}, [audio], [text], samples, None, model.generator(seed))[audio]
    real_mels, mels = (destandardised(front_end, frames).items() for frames in (real, made))

    paths = []
    for row, mel in enumerate(mels):
        name = f"{row // samples}-{_file_name(words[row // samples])}-{row % samples}.wav"
        paths.append(out / "samples" / f"said{where}" / name)
        write_audio(paths[-1], front_end.invert(mel), front_end.config.sample_rate)

    figure, axes = _figure(len(words), 1 + min(2, samples), 2.6, 1.15)
    for row, word in enumerate(words):
        shown = [real_mels[row], *mels[row * samples : row * samples + axes.shape[1] - 1]]
        longest = max(len(mel) for mel in shown)
        for column, mel in enumerate(shown):
            _spectrogram(axes[row, column], mel, front_end, longest)
        axes[row, 0].set_ylabel(word[:SHOWN], rotation=0, ha="right", va="center")
    for column in range(axes.shape[1]):
        axes[0, column].set_title("recording" if column == 0 else f"generated {column}", fontsize=9)
    return [*paths, save_png(figure, out / "pictures" / f"words{where}.png", 110)]


def _invented(trained: Trained, text: str, audio: str, out: Path, where: str, seed: int) -> list[Path]:
    """pairs.png, and samples/pairs/<number>.wav with texts.csv."""
    front_end = _log_mel(trained, audio)
    made = trained.model.sample(PAIRS, [text, audio], generator=trained.model.generator(seed))
    texts = decode_items(trained.front_ends, {text: made[text]})[text]
    mels = destandardised(front_end, made[audio]).items()
    folder = out / "samples" / f"pairs{where}"
    table = [("sound", "text")]
    for row, mel in enumerate(mels):
        table.append((f"{row}.wav", texts[row]))
        write_audio(folder / f"{row}.wav", front_end.invert(mel), front_end.config.sample_rate)
    figure, axes = _figure(2, PAIRS // 2, 2.4, 1.7)
    for row, mel in enumerate(mels):
        axis = axes.flat[row]
        _spectrogram(axis, mel, front_end, max(map(len, mels)))
        axis.set_title(repr(texts[row][:SHOWN]), fontsize=9)
    return [write_csv(folder / "texts.csv", table), save_png(figure, out / "pictures" / f"pairs{where}.png", 110)]


def _heard(
    trained: Trained, dataset: SequenceDataset, text: str, audio: str, out: Path, where: str, seed: int
) -> list[Path]:
    """samples/heard.csv: what the model writes down for one recording of each word."""
    rows = _first_of_each(trained, dataset, text, audio)
    if not rows:
        return []
    given = to_device({audio: _items(dataset, list(rows.values()), audio)}, trained.model.device)
    made = trained.model.generate(given, [text], [audio], generator=trained.model.generator(seed))
    texts = decode_items(trained.front_ends, made)[text]
    table = [("id", "spoken", "written")]
    table += [(dataset.ids[row], word, got) for (word, row), got in zip(rows.items(), texts, strict=True)]
    return [write_csv(out / "samples" / f"heard{where}.csv", table)]


def _latent(trained: Trained, dataset: SequenceDataset, path: Path) -> Path:
    """Joint posterior means on their first two principal axes, coloured by text (or label) where there are few."""
    from matplotlib import colormaps

    mean = posteriors(trained.model, dataset).mean
    centred = (mean - mean.mean(0)).double().cpu()
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    points = (centred @ axes[:2].T).numpy()
    points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))  # a single item, or dimension, has one axis
    share = (spread.square() / spread.square().sum().clamp_min(1e-12)).tolist()
    names = _names(trained, dataset)
    figure, grid = _figure(1, 1, 5.5, 4.5)
    axis = grid[0, 0]
    colours = colormaps["tab10" if len(set(names)) <= 10 else "tab20"]
    axis.set_prop_cycle(color=[colours(number) for number in range(colours.N)])
    for name in sorted(set(names)):
        chosen = np.array([other == name for other in names])
        axis.scatter(*points[chosen].T, s=9, label=name[:SHOWN] or None)
    axis.set_xlabel(f"first principal axis ({share[0]:.0%} of the variance)")
    axis.set_ylabel(f"second ({share[1]:.0%})" if len(share) > 1 else "")
    axis.set_title("posterior means of the joint observation", fontsize=10)
    if any(names):
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return save_png(figure, path, 110)


# --- helpers -------------------------------------------------------------------------------------------------------


def _names(trained: Trained, dataset: SequenceDataset) -> list[str]:
    """What colours the points: the label, else the first token modality, where it has at most 20 values; else none."""
    choices = [[label or "" for label in dataset.labels]]
    for name, front_end in trained.front_ends.items():
        if isinstance(front_end, Tokenizer):
            batch = dataset.__getitems__(range(len(dataset)))
            choices.insert(0, [front_end.decode(item) for item in batch[name].items()])
    return next((names for names in choices if 1 < len(set(names)) <= 20), [""] * len(dataset))


def _first_of_each(trained: Trained, dataset: SequenceDataset, text: str, audio: str) -> dict[str, int]:
    """Text -> the first item with that text and a recording, for the first `WORDS` distinct texts."""
    tokenizer = trained.front_ends[text]
    assert isinstance(tokenizer, Tokenizer)
    rows: dict[str, int] = {}
    both = np.flatnonzero((dataset.lengths(audio) > 0) & (dataset.lengths(text) > 0)).tolist()
    for row in both:
        rows.setdefault(tokenizer.decode(dataset[row][text].values[0]), row)
        if len(rows) == WORDS:
            break
    return rows


def _items(dataset: SequenceDataset, rows: list[int], name: str) -> Sequence:
    return dataset.__getitems__(rows)[name]


def _log_mel(trained: Trained, name: str) -> LogMel:
    front_end = trained.front_ends[name]
    assert isinstance(front_end, LogMel)
    return front_end


def _file_name(text: str) -> str:
    """At most 40 characters that every file system takes."""
    return "".join(letter if letter.isalnum() else "_" for letter in text)[:40] or "empty"


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure without a screen, and its axes [rows, columns]; inches an axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _spectrogram(axis: Axes, mel: Tensor, front_end: LogMel, longest: int) -> None:
    """Log-mel [T, C] over time in seconds; the colours span 60 dB below its loudest value."""
    per_second = front_end.config.frames_per_second
    loudest = float(mel.max())
    sixty = 60 / 10 * np.log(10)  # dB -> nats of power
    axis.imshow(
        mel.T.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=loudest - sixty, vmax=loudest,
        extent=(0, len(mel) / per_second, 0, mel.shape[1]),
    )  # fmt: skip
    axis.set_xlim(0, longest / per_second)
    axis.set_yticks([])
    axis.tick_params(labelsize=6)
