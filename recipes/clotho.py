"""Sounds and what they are called: audio captions, or any folder of labelled sounds.

    python -m recipes.clotho                       # Clotho 2.1, 6.5 GB; captions and sounds have licences of their own
    python -m recipes.clotho --data-dir DIR        # clotho_captions_*.csv beside the folders development, ...
    python -m recipes.clotho --data-dir DIR        # or a folder a label with sounds in it: dog/1.wav, rain/2.flac

Clotho has 6,974 sounds of 15 to 30 s with five captions each: development trains, validation validates, evaluation
tests. Every caption is an item of its own, so that q(z | sound) must allow for several. Captions are read by words. In
a folder of labelled sounds the label is the caption; of every ten sounds of a label the tenth tests, the fifth
validates.

Captions written for test sounds are held against all of a sound's own ones (BLEU, torchmetrics), beside what captions
drawn from the training, which have not heard the sound, reach. Sounds are matched with captions by the distance of
their posterior means: the share whose own caption is among the ten nearest of the test captions.

No figures: the corpus could not be had where this was written. It was tested on made sounds in both layouts
(tests/speech.py), which show that it runs and not how well it listens.
"""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmseqvae.config import CACHE_DIR, LogMelConfig, ModelConfig, ObjectiveConfig, TextConfig, TrainingConfig
from mmseqvae.data.download import download, extract
from mmseqvae.distributed import by_first
from mmseqvae.files import SOUNDS

if TYPE_CHECKING:
    from mmseqvae.data import Corpus
    from mmseqvae.pipeline.trained_model import Trained

# Version 2.1 (doi 10.5281/zenodo.4783391). The MD5 sums are those that Zenodo publishes beside the files.
URL = "https://zenodo.org/record/4783391/files/{}?download=1"
PARTS = {"development": "train", "validation": "valid", "evaluation": "test"}
MD5 = {
    "clotho_audio_development.7z": "c8b05bc7acdb13895bb3c6a29608667e",
    "clotho_audio_validation.7z": "7dba730be08bada48bd15dc4e668df59",
    "clotho_audio_evaluation.7z": "4569624ccadf96223f19cb59fe4f849f",
    "clotho_captions_development.csv": "d4090b39ce9f2491908eebf4d5b09bae",
    "clotho_captions_validation.csv": "5879e023032b22a2c930aaa0528bead4",
    "clotho_captions_evaluation.csv": "1b16b9e57cf7bdb7f13a13802aeb57e2",
}
CAPTIONS = 5

# -------------------------------------------------------------------------------------------------------- data


def prepare_sounds(folder: Path, data_dir: Path | None = None) -> Path:
    """List the sounds in `data_dir`, in either layout, or download Clotho; return the manifest's path.

    Raises FileNotFoundError where a folder, a table or a sound is missing, ValueError for a table in another layout.
    """
    from mmseqvae.recipe import write_table

    folder = folder / "clotho"
    if data_dir is None:
        data_dir = fetch(folder / "2.1")
    if not data_dir.is_dir():
        raise FileNotFoundError(f"--data-dir {data_dir}: no such folder")
    captioned = any((data_dir / f"clotho_captions_{part}.csv").exists() for part in PARTS)
    return write_table(folder / "manifest.csv", (captions if captioned else labelled)(data_dir))


def fetch(folder: Path) -> Path:
    """Download and unpack what is not there yet: captions beside folders of sounds, as `captions` reads them."""
    for name, md5 in MD5.items():
        part = name.split("_")[2].partition(".")[0]
        if name.endswith(".csv"):
            download(URL.format(name), folder / name, md5=md5)
        elif not (folder / part).exists():
            archive = download(URL.format(name), folder / name, md5=md5)
            unpacked = extract(archive, folder / f"{part}.7z.unpacked")
            inner = unpacked / part  # the archive holds one folder of that name
            (inner if inner.is_dir() else unpacked).rename(folder / part)
            shutil.rmtree(unpacked, ignore_errors=True)
            archive.unlink()
    return folder


def captions(data_dir: Path) -> list[dict[str, Any]]:
    """An item for every caption in clotho_captions_*.csv: file_name, caption_1, ..., caption_5."""
    rows = []
    for part, split in PARTS.items():
        table = data_dir / f"clotho_captions_{part}.csv"
        with table.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns = ["file_name", *(f"caption_{k}" for k in range(1, CAPTIONS + 1))]
            if missing := sorted(set(columns) - set(reader.fieldnames or [])):
                raise ValueError(f"{table} lacks the columns {missing}")
            for line in reader:
                audio = (data_dir / part / line["file_name"]).resolve()
                if not audio.is_file():
                    raise FileNotFoundError(f"{table}, line {reader.line_num}: {audio} is missing")
                rows += [
                    {"id": f"{part}/{audio.stem}/{k}", "audio": audio, "text": plain(line[f"caption_{k}"]),
                     "split": split, "label": f"{part}/{audio.stem}"}
                    for k in range(1, CAPTIONS + 1)
                ]  # fmt: skip
    return rows


def labelled(data_dir: Path) -> list[dict[str, Any]]:
    """An item for every sound in a folder that is named by its label."""
    found = [path for path in sorted(data_dir.glob("*/*")) if path.suffix.lower() in SOUNDS]
    if not found:
        raise FileNotFoundError(f"{data_dir} holds neither clotho_captions_*.csv nor folders of labelled sounds")
    labels = Counter(path.parent for path in found)
    if max(labels.values()) < 10:
        raise ValueError(
            f"{data_dir} has at most {max(labels.values())} sounds of a label; 10 are needed to test on one"
        )
    places = [place for label in labels for place in range(labels[label])]  # in the order of `found`, which is sorted
    splits = {4: "valid", 9: "test"}
    return [
        {"id": path.relative_to(data_dir).as_posix(), "audio": path.resolve(), "text": path.parent.name,
         "split": splits.get(place % 10, "train"), "label": path.relative_to(data_dir).as_posix()}
        for path, place in zip(found, places, strict=True)
    ]  # fmt: skip


def plain(caption: str) -> str:
    """Small letters and no punctuation, as captions are usually scored."""
    return " ".join("".join(c if c.isalnum() or c in "'-" else " " for c in caption.lower()).split())


# ------------------------------------------------------------------------------------ model, training, evaluation

AUDIO = LogMelConfig(sample_rate=16000, n_fft=2048, hop_length=1024, n_mels=40)  # 16 frames a second
MODEL = ModelConfig(
    latent=64,
    token_embedding=96,
    token_encoder=96,
    token_decoder=192,
    frame_encoder=128,
    frame_decoder=256,
    reduction=8,
)
OBJECTIVE = ObjectiveConfig()
TRAINING = TrainingConfig(epochs=15)
NEAREST = 10


def main(
    data_dir: Path | None = None,
    out: Path = Path("runs/clotho"),
    cache_dir: Path = Path(CACHE_DIR),
    seed: int | None = None,
    model: ModelConfig = MODEL,
    objective: ObjectiveConfig = OBJECTIVE,
    training: TrainingConfig = TRAINING,
) -> None:
    """Train a model of sounds and captions and measure it on the test sounds. What is there already is kept.

    Args:
        data_dir: folder of Clotho, or of folders of labelled sounds; without it Clotho is downloaded.
        out: the run directory.
        cache_dir: where archives and features are kept.
        seed: of everything random, the same as --training.seed.
        model: the networks.
        objective: what is maximised.
        training: how long and how fast.
    """
    manifest = by_first(prepare_sounds, cache_dir, data_dir)
    training = training if seed is None else replace(training, seed=seed)

    from mmseqvae.data import prepare
    from mmseqvae.recipe import train_and_measure

    corpus = prepare(manifest, audio=AUDIO, text=TextConfig(units="words", least=2), cache_dir=cache_dir)
    train_and_measure(
        "clotho", corpus, manifest, out, (model, objective, training), "test",
        lambda trained: measure(trained, corpus, training.seed), summary,
    )  # fmt: skip


def measure(trained: Trained, corpus: Corpus, seed: int) -> dict[str, Any]:
    """Captions of test sounds against their own, and sounds matched with captions, each beside chance."""
    import torch
    from torchmetrics.functional.text import bleu_score

    from mmseqvae.evaluation.summary import likelihood, share_to_dict
    from mmseqvae.metrics import Share
    from mmseqvae.pipeline.dataset_posteriors import posteriors
    from mmseqvae.tokenizers.characters import Tokenizer

    test, model, tokenizer = corpus.datasets["test"], trained.model, trained.front_ends["text"]
    assert isinstance(tokenizer, Tokenizer)
    texts = {row.id: str(row.cells["text"]) for row in corpus.manifest.rows}
    own: dict[str, list[str]] = {}  # captions of each test sound, which is its label
    first: list[int] = []  # an item of each
    for row, (id, label) in enumerate(zip(test.ids, test.labels, strict=True)):
        if str(label) not in own:
            first.append(row)
        own.setdefault(str(label), []).append(texts[id])
    sounds = {"audio": test.__getitems__(first)["audio"]}
    made = model.generate(sounds, ["text"], ["audio"], generator=model.generator(seed))["text"]
    written = [str(tokenizer.decode(item)) for item in made.items()]
    train = corpus.datasets["train"].ids
    drawn = [texts[train[i]] for i in np.random.default_rng(seed).integers(len(train), size=len(first))]

    def bleu(candidates: list[str]) -> dict[str, float]:
        return {f"bleu_{n}": float(bleu_score(candidates, list(own.values()), n_gram=n)) for n in (1, 4)}

    heard = posteriors(model, test, ["audio"]).mean[first]
    read = posteriors(model, test, ["text"]).mean
    nearest = torch.cdist(heard, read).topk(min(NEAREST, len(read)), largest=False).indices.tolist()
    names = [str(label) for label in test.labels]
    hits = sum(any(names[k] == sound for k in some) for sound, some in zip(own, nearest, strict=True))
    return {
        "sounds": len(own),
        "captions": {"written": bleu(written), "drawn from training": bleu(drawn)},
        "retrieval": share_to_dict(Share(hits, len(own))) | {"nearest": NEAREST, "among": len(read)},
        "likelihood": likelihood(trained, test, 20, seed),
    }


def summary(metrics: dict[str, Any]) -> list[str]:
    """What the run reached, in a few lines."""
    rows = {
        f"captions {name}": f"BLEU-1 {found['bleu_1']:.3f}, BLEU-4 {found['bleu_4']:.3f}"
        for name, found in metrics["captions"].items()
    }
    found = metrics["retrieval"]
    rows[f"own caption among the {found['nearest']} nearest of {found['among']}"] = (
        f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    )
    return [f"measured on {metrics['sounds']} sounds of test:"] + [
        f"  {name:<44}{found}" for name, found in rows.items()
    ]


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m recipes.clotho")
