"""Where the recordings, judges and models of a benchmark on spoken digits are, for processes of their own to find."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

from mmseqvae.data import Corpus, prepare
from mmseqvae.evaluation.judges.speech_judges import SpeechJudges
from recipes import spoken_digits as recipe


@dataclass(frozen=True)
class Place:
    """manifest: of the corpus; split: what is measured on; cache_dir: features and judges; out: trained models."""

    manifest: Path
    split: str
    cache_dir: Path
    out: Path

    @classmethod
    def prepare(cls, data_dir: Path | None, holdout: bool, split: str, cache_dir: Path, out: Path) -> Place:
        """Features and judges are made here, before several processes would make them at once."""
        place = cls(recipe.prepare_fsdd(cache_dir, data_dir, holdout), split, cache_dir, out)
        _ = place.corpus, place.judges
        return place

    @property
    def corpus(self) -> Corpus:
        return _corpus(self.manifest, self.cache_dir)

    @property
    def judges(self) -> SpeechJudges:
        """Who learnt from the training recordings of the manifest alone."""
        return _judges(self)


@functools.cache
def _corpus(manifest: Path, cache_dir: Path) -> Corpus:
    return prepare(manifest, audio=recipe.AUDIO, cache_dir=cache_dir)


@functools.cache
def _judges(place: Place) -> SpeechJudges:
    return recipe.judged(place.corpus, place.split, place.cache_dir)


def unwatched(corpus: Corpus) -> Corpus:
    """The same corpus whose validation items go by another name, so that training spends no time on them."""
    names = {"valid": "held out"}
    return replace(corpus, datasets={names.get(split, split): dataset for split, dataset in corpus.datasets.items()})
