"""A speech recogniser and a quality model made by others, as judges of waveforms. Needs the extra `judge`.

    heard = Recogniser().recognise(waves, 8000)     # one word a clip, "" where it hears none
    control = Recogniser().noise_control(200)       # what it hears in white noise: its bias
    dnsmos(waves, 8000)                             # {"overall": 2.9, "signal": ..., "background": ..., "p808": ...}

pocketsphinx (CMU, its US English model at 16 kHz) is told by a grammar that each clip is exactly one of the words,
hence it answers to noise too: no figure of it should stand without its noise control and its accuracy on real
recordings (0.85 on the 300 test recordings of the Free Spoken Digit Dataset, 0.84 after log-mel and Griffin-Lim).
Its filters reach to 6.8 kHz: of 200 espeak-ng digits it hears 0.92 at 16 kHz but 0.73 when they are given at 8 kHz.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
import soxr

from mmseqvae.metrics import histogram

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SAMPLE_RATE = 16000  # Hz, of both models
PEAK = 0.5
NOISE = 0.002  # standard deviation; digital silence ruins the recogniser's features
MARGIN = 0.15  # s of (noisy) silence on both sides: clips cut at the first sound lose it otherwise


class Recogniser:
    """pocketsphinx with a grammar of words. What it hears in a clip does not depend on the clips before it.

    words: what can be heard, in the spelling of the CMU dictionary. phrase: what a clip holds, in JSGF, where <word> is
    any of the words: "<word>+" one or more of them. seed: of the noise under every clip.
    Raises ModuleNotFoundError without the extra `judge`, ValueError where a word is not in the dictionary.
    """

    def __init__(self, words: Iterable[str] = DIGITS, seed: int = 0, phrase: str = "<word>") -> None:
        self.words = tuple(words)
        self.seed = seed
        # The second search, through the lattice (`bestpath`), leaves one clip in twenty without a word: 0.77, not 0.85.
        self.decoder = _extra("pocketsphinx").Decoder(samprate=SAMPLE_RATE, lm=None, bestpath=False, loglevel="FATAL")
        if strangers := [word for word in self.words if self.decoder.lookup_word(word) is None]:
            raise ValueError(f"the recogniser's dictionary lacks {strangers}: take the CMU dictionary's spelling")
        rules = f"public <phrase> = {phrase}; <word> = {' | '.join(self.words)};"
        self.decoder.add_jsgf_string("words", f"#JSGF V1.0; grammar words; {rules}")
        self.decoder.activate_search("words")

    def recognise(self, waves: Iterable[np.ndarray], sample_rate: int) -> list[str]:
        """The word or phrase heard in each clip [N] at `sample_rate` Hz, "" where none or the clip is empty.

        10 ms a word.
        """
        return [self._hear(_levelled(wave, sample_rate, row)) for row, wave in enumerate(waves)]

    def noise_control(self, n: int, seconds: float = 0.5) -> dict[str, int]:
        """How often each word is heard in `n` clips of white noise: the bias of a judge that must answer."""
        clips = np.random.default_rng(self.seed + 1).standard_normal((n, round(seconds * SAMPLE_RATE)))
        return histogram(self.recognise(clips, SAMPLE_RATE), self.words)

    def _hear(self, wave: np.ndarray) -> str:
        if not wave.size:
            return ""
        padded = np.pad(wave, round(MARGIN * SAMPLE_RATE))
        padded = padded + NOISE * np.random.default_rng(self.seed).standard_normal(len(padded))
        self.decoder.reinit_feat()  # forget the running means of the clip before
        self.decoder.start_utt()
        self.decoder.process_raw((padded * 32767).clip(-32768, 32767).astype(np.int16).tobytes(), full_utt=True)
        self.decoder.end_utt()
        heard = self.decoder.hyp()
        return "" if heard is None else heard.hypstr


def dnsmos(waves: Iterable[np.ndarray], sample_rate: int) -> dict[str, float]:
    """Mean predicted opinion scores, 1 (bad) to 5 (excellent), of clips [N] at `sample_rate` Hz; 0.6 s a clip.

    DNSMOS P.835 (Reddy et al. 2022): overall, signal and background quality; p808: DNSMOS of 2021. Clips are repeated
    to 9 s, as its authors do. It was made for 16 kHz: narrow-band recordings score low, so give the real ones beside.
    Raises ModuleNotFoundError without the extra `judge`, ValueError where a clip is empty or there is none.
    """
    model = _extra("speechmos.dnsmos")
    levelled = [_levelled(wave, sample_rate, row) for row, wave in enumerate(waves)]
    if empty := [row for row, wave in enumerate(levelled) if not wave.size]:
        raise ValueError(f"clip {empty[0]} is empty and has no quality")
    if not levelled:
        raise ValueError("a mean quality needs at least one clip")
    scores: list[dict[str, Any]] = [model.run(wave, sr=SAMPLE_RATE) for wave in levelled]
    names = {"overall": "ovrl_mos", "signal": "sig_mos", "background": "bak_mos", "p808": "p808_mos"}
    return {name: float(np.mean([score[key] for score in scores])) for name, key in names.items()}


def _levelled(wave: np.ndarray, sample_rate: int, row: int) -> np.ndarray:
    """[N] at `sample_rate` Hz -> [N'] at 16 kHz with the peak at 0.5; silence stays silence."""
    wave = np.asarray(wave, np.float64)
    if wave.ndim != 1 or not np.isfinite(wave).all():
        raise ValueError(f"clip {row} must be [N] finite samples, got shape {wave.shape}")
    wave = soxr.resample(wave, sample_rate, SAMPLE_RATE) if wave.size else wave
    peak = np.abs(wave).max(initial=0)
    return wave * (PEAK / peak) if peak else wave


def _extra(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is missing: pip install 'mmseqvae[judge]'", name=error.name) from error
