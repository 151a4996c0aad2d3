"""Judges' figures of what any model wrote, ours or a peer's: one set of measures, those of mmseqvae/metrics.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.fixed_length import silence
from mmseqvae.evaluation.judges.speech_judges import SpeechJudges
from mmseqvae.evaluation.summary import destandardised, share_to_dict
from mmseqvae.features.log_mel import LogMel
from mmseqvae.metrics import diversity, effective_classes, exact_match, group, joint_coherence, kept
from mmseqvae.sequence import Sequence


@dataclass(frozen=True)
class Drawn:
    """What a model wrote. Frames are standardised log-mels, on the CPU, as loud and noisy as the model says them.

    said: recordings from the typed words `asked`. plain: the same without frame noise, if that is another thing.
    written: words from the recordings of the split, in their order. repeated: recordings from them.
    pairs: {prior: (words, recordings)} from latents of that prior.
    """

    asked: list[str]
    said: Sequence
    written: list[str]
    repeated: Sequence
    pairs: Mapping[str, tuple[list[str], Sequence]]
    plain: Sequence | None = None


def verdict(
    drawn: Drawn, front_end: LogMel, recordings: Sequence, texts: list[str], judges: SpeechJudges
) -> dict[str, Any]:
    """Every share with its interval; `recordings` (standardised) and `texts` are the split's own.

    Raises ValueError where the model wrote fewer or more items than it was asked for.
    """
    words = sorted(set(texts))

    def heard(frames: Sequence) -> list[str]:
        return judges.word.labels(destandardised(front_end, frames))

    def voices(frames: Sequence) -> list[str]:
        return judges.speaker.labels(destandardised(front_end, frames))

    plain = drawn.said if drawn.plain is None else drawn.plain
    varied = group(plain, drawn.asked, heard(plain))
    return {
        "text_to_audio": share_to_dict(kept(drawn.asked, heard(drawn.said))),
        "diversity": diversity(varied, group(recordings, texts), silence(front_end)),
        "audio_to_text": share_to_dict(exact_match(texts, drawn.written)),
        "audio_to_audio": share_to_dict(kept(heard(recordings), heard(drawn.repeated))),
        "speaker_kept": share_to_dict(kept(voices(recordings), voices(drawn.repeated))),
        "joint": {
            prior: {
                "coherence": share_to_dict(joint_coherence(written, heard(frames), words)),
                "effective_words": effective(written, words),
            }
            for prior, (written, frames) in drawn.pairs.items()
        },
    }


def effective(written: Iterable[str], words: Iterable[str]) -> float:
    """exp of the entropy of those texts that are words; 0 where none is."""
    known = set(words)
    whole = [word for word in written if word in known]
    return effective_classes(whole) if whole else 0.0
