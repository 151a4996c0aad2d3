"""The synthesiser: repeatable to the byte, different where it should be, and clear about what it cannot do."""

import importlib.util
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmseqvae.features import espeak as synth
from mmseqvae.features.espeak import Utterance, synthesise

needs_espeak = pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="needs the synth extra")
JOBS = {
    "plain": Utterance("seven", "en-us"),
    "variant": Utterance("seven", "en-us+f2"),
    "accent": Utterance("seven", "en-GB-scotland"),
    "fast": Utterance("seven", "en-us", speed=300),
    "high": Utterance("seven", "en-us", pitch=90),
    "other": Utterance("两", "cmn"),
}


def contents(paths: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


@needs_espeak
def test_the_same_jobs_give_the_same_bytes_however_many_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synth, "SHARD", 4)
    one = synthesise(JOBS, tmp_path / "one", processes=1)
    time.sleep(1)  # left to itself, espeak-ng seeds its noise with the second of the day
    two = synthesise(JOBS, tmp_path / "two", processes=2)
    assert [path.stem for path in one] == list(JOBS)
    assert contents(one) == contents(two)
    assert len(set(contents(one))) == len(JOBS)
    assert sorted(tmp_path.glob("one/*")) == sorted(one)  # nothing temporary is left


@needs_espeak
def test_a_recording_has_the_promised_format_level_and_margins(tmp_path: Path) -> None:
    paths = dict(zip(JOBS, synthesise(JOBS, tmp_path, rate=16_000), strict=True))
    lengths = {}
    for name, path in paths.items():
        assert soundfile.info(path).subtype == "PCM_16"
        wave, rate = soundfile.read(path)
        assert (rate, wave.ndim) == (16_000, 1)
        assert np.abs(wave).max() == pytest.approx(synth.PEAK, abs=5 * synth.FLOOR)
        margin = round(synth.MARGIN * rate)
        # Only the floor of noise in the margins (the filter rings a little into them), and speech right beside them.
        for edge in (wave, wave[::-1]):
            assert np.abs(edge[: margin // 2]).max() < 6 * synth.FLOOR
            assert np.abs(edge[margin : margin + rate // 100]).max() > 0.9 * synth.SILENCE * synth.PEAK
        lengths[name] = len(wave) / rate
    assert 0.2 < lengths["fast"] < 0.75 * lengths["plain"] < 0.9
    assert spectral_peak(paths["high"]) > 1.1 * spectral_peak(paths["plain"])


def spectral_peak(path: Path) -> float:
    """Frequency in Hz of the strongest harmonic below 300 Hz, that is the fundamental, of the vowels' energy."""
    wave, rate = soundfile.read(path)
    power = np.abs(np.fft.rfft(wave, 1 << 15)) ** 2
    hertz = np.fft.rfftfreq(1 << 15, 1 / rate)
    low = (hertz > 60) & (hertz < 300)
    return float((power[low] * hertz[low]).sum() / power[low].sum())


def test_trim_keeps_the_same_margin_wherever_the_sound_lies() -> None:
    rate = 8000
    sound = np.sin(np.arange(800)).astype(np.float32)
    whole = synth.trim(np.pad(sound, (1600, 2400)), rate)
    assert len(whole) == 800 + 2 * round(synth.MARGIN * rate)
    np.testing.assert_array_equal(whole, synth.trim(sound, rate))
    np.testing.assert_array_equal(whole[160:-160], sound)
    quiet = np.pad(sound, (1600, 2400)) + 0.005  # below -40 dB of the peak
    assert len(synth.trim(quiet, rate)) == len(whole)


def test_no_sound_is_an_error() -> None:
    for silence in (np.zeros(0, np.float32), np.zeros(800, np.float32)):
        with pytest.raises(ValueError, match="no sound"):
            synth.trim(silence, 8000)


@needs_espeak
@pytest.mark.parametrize(
    ("voice", "message"), [("en-us+nobody", "no variant 'nobody'"), ("en-gb", "no language 'en-gb'")]
)
def test_an_unknown_voice_is_named_before_anything_is_spoken(tmp_path: Path, voice: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthesise({"a": Utterance("one", "en"), "b": Utterance("one", voice)}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@needs_espeak
def test_a_text_without_speech_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"full-stop: espeak-ng made no sound for .*'text': '\.'"):
        synthesise({"one": Utterance("one", "en"), "full-stop": Utterance(".", "en")}, tmp_path)


@pytest.mark.parametrize("wrong", [{"text": " "}, {"speed": 79}, {"speed": 451}, {"pitch": -1}, {"pitch": 100}])
def test_an_utterance_out_of_range_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"needs a text|must lie in"):
        Utterance(**{"text": "one", "voice": "en", **wrong})


def test_a_missing_extra_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mmseqvae\[synth\]'"):
        synthesise(JOBS, tmp_path)
