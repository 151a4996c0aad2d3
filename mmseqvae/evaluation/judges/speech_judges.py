"""The judges of a corpus of spoken words: trained once on its training recordings, kept, and themselves measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmseqvae.data import Corpus, SequenceDataset, encode_items
from mmseqvae.evaluation.judges import log_mel_classifier
from mmseqvae.evaluation.judges.log_mel_classifier import Judge, train_judge
from mmseqvae.evaluation.summary import destandardised, heard_again, share_to_dict
from mmseqvae.features.log_mel import LogMel
from mmseqvae.metrics import kept
from mmseqvae.pipeline.trained_model import Trained
from mmseqvae.sequence import Sequence
from mmseqvae.tokenizers.characters import Tokenizer

HELD_OUT = 6  # one training recording in six, where the voices of the split are not those of the training


@dataclass(frozen=True)
class SpeechJudges:
    """word, speaker: the judges. accuracy: {judge: {"log_mel", "wav": share, "on": which recordings}}, of real ones."""

    word: Judge
    speaker: Judge
    accuracy: dict[str, Any]


def speech_judges(
    corpus: Corpus, speakers: Mapping[str, str], split: str, cache_dir: Path, progress: bool = True
) -> SpeechJudges:
    """Judges of the words and the voices of a corpus of text and audio, from `cache_dir` or newly trained.

    speakers: item id -> voice. Both learn from the split "train" alone and are measured on `split`, as log-mels and
    once more from the waveforms of Griffin-Lim. Where `split` has voices that training has not, the judge of voices
    learns from five sixths of the training recordings and is measured on the others.
    """
    front_end, tokenizer = corpus.front_ends["audio"], corpus.front_ends["text"]
    assert isinstance(front_end, LogMel)
    assert isinstance(tokenizer, Tokenizer)
    train, test = corpus.datasets["train"], corpus.datasets[split]
    mels, real = (destandardised(front_end, _all(dataset, "audio")) for dataset in (train, test))
    words, real_words = ([tokenizer.decode(i) for i in _all(dataset, "text").items()] for dataset in (train, test))
    voices, real_voices = ([speakers[id] for id in dataset.ids] for dataset in (train, test))

    word = _judge("word", mels, words, cache_dir, progress)
    accuracy = {"word": _measured(word, front_end, real, real_words, f"{len(real)} recordings of {split}")}
    if set(real_voices) <= set(voices):
        speaker = _judge("speaker", mels, voices, cache_dir, progress)
        accuracy["speaker"] = _measured(speaker, front_end, real, real_voices, f"{len(real)} recordings of {split}")
        return SpeechJudges(word, speaker, accuracy)
    order = np.random.default_rng(0).permutation(len(voices))
    held, used = np.array_split(order, [max(1, len(order) // HELD_OUT)])
    speaker = _judge("speaker", mels[torch.from_numpy(used)], [voices[i] for i in used], cache_dir, progress)
    where = f"{len(held)} recordings of training voices that it did not learn from"
    held_voices = [voices[i] for i in held]
    accuracy["speaker"] = _measured(speaker, front_end, mels[torch.from_numpy(held)], held_voices, where)
    return SpeechJudges(word, speaker, accuracy)


def _judge(name: str, mels: Sequence, labels: list[str], cache_dir: Path, progress: bool) -> Judge:
    """The judge that learnt from exactly these recordings by exactly this code, from the cache where it is there."""
    content = hashlib.sha256(Path(log_mel_classifier.__file__).read_bytes())
    for item, label in zip(mels.items(), labels, strict=True):
        content.update(item.numpy().tobytes() + label.encode())
    folder = cache_dir / "judges" / f"{name}-{content.hexdigest()[:16]}"
    if (folder / "judge.json").exists():  # written last
        return Judge.load(folder)
    judge = train_judge(mels, labels, progress=f"judge of the {name}" if progress else None)
    judge.save(folder)
    return judge


def _measured(judge: Judge, front_end: LogMel, mels: Sequence, labels: list[str], where: str) -> dict[str, Any]:
    return {
        "log_mel": share_to_dict(kept(labels, judge.labels(mels))),
        "wav": share_to_dict(kept(labels, judge.labels(heard_again(front_end, mels)))),
        "on": where,
    }


def _all(dataset: SequenceDataset, name: str) -> Sequence:
    return dataset.__getitems__(range(len(dataset)))[name]


def words_heard(
    trained: Trained, corpus: Corpus, split: str, cache_dir: Path, draws: int, learn_from: int, seed: int
) -> dict[str, Any]:
    """Are typed words said? A judge of words learns from at most `learn_from` training recordings of each.

    Every word of `split` is said `draws` times, frame noise 0.5, log-mels; the judge's own share on the recordings of
    `split` stands beside it.
    """
    front_end, tokenizer = trained.front_ends["audio"], trained.front_ends["text"]
    assert isinstance(front_end, LogMel)
    assert isinstance(tokenizer, Tokenizer)
    train, test = corpus.datasets["train"], corpus.datasets[split]
    some: dict[str | None, list[int]] = {}
    for row in np.random.default_rng(0).permutation(len(train)).tolist():
        some.setdefault(train.labels[row], []).append(row)
    chosen = [row for rows in some.values() for row in rows[:learn_from]]
    recorded = train.__getitems__(chosen)
    judge = _judge(
        "word", destandardised(front_end, recorded["audio"]), [tokenizer.decode(i) for i in recorded["text"].items()],
        cache_dir, True,
    )  # fmt: skip
    real = [tokenizer.decode(item) for item in _all(test, "text").items()]
    words = sorted(set(real))
    given = encode_items(trained.front_ends, [{"text": word} for word in words])
    made = trained.model.generate({"text": given["text"]}, ["audio"], ["text"], draws, None,
                                  trained.model.generator(seed))["audio"]  # fmt: skip
    asked = [word for word in words for _ in range(draws)]
    return {
        "text_to_audio": share_to_dict(kept(asked, judge.labels(destandardised(front_end, made)))),
        "judge": share_to_dict(kept(real, judge.labels(destandardised(front_end, _all(test, "audio"))))),
    }
