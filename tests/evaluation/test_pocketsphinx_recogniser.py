"""The outside judges: what they hear depends on the clip alone, and their absence is explained."""

import sys

import numpy as np
import pytest

from mmseqvae.evaluation.judges.pocketsphinx_recogniser import DIGITS, Recogniser, dnsmos
from mmseqvae.metrics import kept

RATE = 16000  # Hz; half of it would take the hiss of s and f from the recogniser


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    pytest.importorskip("pocketsphinx")
    return Recogniser()


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> list[np.ndarray]:
    pytest.importorskip("espeakng_loader")
    from mmseqvae.features.espeak import Utterance, synthesise
    from mmseqvae.features.log_mel import read_audio

    jobs = {f"{word}-{voice}": Utterance(word, voice=voice) for voice in ("en-us", "en-gb-x-rp") for word in DIGITS}
    paths = synthesise(jobs, tmp_path_factory.mktemp("speech"), rate=RATE, processes=1)
    return [read_audio(path, RATE) for path in paths]


def test_speech_is_recognised(recogniser, speech):
    assert kept(DIGITS * 2, recogniser.recognise(speech, RATE)).value >= 0.8


def test_a_clip_is_heard_alike_whatever_came_before_and_however_loud(recogniser, speech):
    heard = recogniser.recognise(speech, RATE)
    assert recogniser.recognise(speech[::-1], RATE) == heard[::-1]
    assert [recogniser.recognise([clip], RATE)[0] for clip in speech] == heard
    assert recogniser.recognise([clip / 64 for clip in speech], RATE) == heard


def test_noise_control_counts_every_clip(recogniser):
    control = recogniser.noise_control(20, seconds=0.3)
    assert list(control)[:10] == list(DIGITS)
    assert sum(control.values()) == 20
    assert max(control.values()) > 5  # it is not chance: noise has its favourites
    assert recogniser.noise_control(20, seconds=0.3) == control


def test_empty_silent_and_broken_clips(recogniser):
    assert recogniser.recognise([], 8000) == []
    assert recogniser.recognise([np.zeros(0)], 8000) == [""]
    assert recogniser.recognise([np.zeros(4000)], 8000)[0] in ("", *DIGITS)
    with pytest.raises(ValueError, match="clip 1 must be"):
        recogniser.recognise([np.zeros(9), np.array([0.0, np.nan])], 8000)
    with pytest.raises(ValueError, match=r"lacks \['sevn'\]"):
        Recogniser(["seven", "sevn"])


def test_quality_falls_with_noise(speech):
    pytest.importorskip("speechmos")
    noise = np.random.default_rng(0)
    clean = dnsmos(speech[:1], RATE)
    noisy = dnsmos([clip + 0.1 * noise.standard_normal(len(clip)) for clip in speech[:1]], RATE)
    assert set(clean) == {"overall", "signal", "background", "p808"}
    assert all(1 <= score <= 5 for score in clean.values())
    assert noisy["background"] < clean["background"]
    with pytest.raises(ValueError, match="clip 1 is empty"):
        dnsmos([speech[0], np.zeros(0)], 8000)
    with pytest.raises(ValueError, match="at least one clip"):
        dnsmos([], 8000)


@pytest.mark.parametrize("use", [lambda: Recogniser(), lambda: dnsmos([np.ones(9)], 8000)])
def test_a_missing_extra_is_named(monkeypatch, use):
    for module in ("pocketsphinx", "speechmos", "speechmos.dnsmos"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mmseqvae\[judge\]'"):
        use()
