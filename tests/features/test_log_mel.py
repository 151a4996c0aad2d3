import json
import math
import struct
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from mmseqvae.config import LogMelConfig
from mmseqvae.features.log_mel import AudioError, LogMel, read_audio, write_audio

WIDE = LogMelConfig()
DIGITS = LogMelConfig(sample_rate=8000, n_fft=256, hop_length=100, n_mels=40)


def tone(hertz: float = 440, seconds: float = 0.5, rate: int = 8000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def vowel(seconds: float = 0.4, rate: int = 8000) -> np.ndarray:
    """A gliding harmonic tone that fades in and out, with a little noise."""
    time = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * (120 * time + 40 * time**2)
    harmonics = sum(np.sin(k * phase) / k for k in range(1, 20))
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.2 * np.sin(np.pi * time / seconds) * harmonics + 1e-3 * noise).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_formats_rates_and_channels_come_out_as_one_signal(tmp_path: Path, suffix: str) -> None:
    left = tone(rate=16000)
    soundfile.write(tmp_path / f"a.{suffix}", np.stack([left, 0.5 * left], 1), 16000)
    wave = read_audio(tmp_path / f"a.{suffix}", 8000)
    assert wave.dtype == np.float32
    expected = 0.75 * tone(rate=8000)
    inner = slice(400, 3000)
    assert abs(len(wave) - len(expected)) <= 1
    assert np.abs(wave[inner] - expected[inner]).max() < (0.02 if suffix in ("ogg", "mp3") else 1e-3)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(40000)
    soundfile.write(tmp_path / f"a.{suffix}", noise, 8000)
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(AudioError, match=rf"cut\.{suffix}.*truncated"):
        read_audio(tmp_path / f"cut.{suffix}", 8000)


def test_wav_written_to_a_pipe_has_no_size_and_is_whole(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), 8000, subtype="PCM_16")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    at = content.index(b"data") + 4
    content[4:8] = content[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    (tmp_path / "a.wav").write_bytes(content)
    assert len(read_audio(tmp_path / "a.wav", 8000)) == len(tone())


def test_missing_empty_foreign_silent_and_not_finite_files_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("hello, this is no sound at all")
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), 8000)
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan, 0], np.float32), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "inf.wav", np.array([0, np.inf, 0], np.float32), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "silent.wav", np.zeros(9), 8000)
    reasons = {"no": "missing", "empty": "empty", "text": "cannot", "zero": "no samples", "nan": "NaN", "inf": "NaN"}
    for name, reason in reasons.items():
        with pytest.raises(AudioError, match=rf"{name}\.wav.*{reason}"):
            read_audio(tmp_path / f"{name}.wav", 16000)
    assert not read_audio(tmp_path / "silent.wav", 8000).any()


def test_written_sound_is_read_back_within_half_a_step_and_leaves_no_other_file(tmp_path: Path) -> None:
    write_audio(tmp_path / "new" / "a.wav", torch.from_numpy(tone()), 8000)
    assert np.abs(read_audio(tmp_path / "new" / "a.wav", 8000) - tone()).max() <= 0.51 * 2**-15
    write_audio(tmp_path / "new" / "a.wav", np.array([2.0, -2.0]), 8000)
    assert read_audio(tmp_path / "new" / "a.wav", 8000).tolist() == [1 - 2**-15, -1]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.wav"]
    with pytest.raises(AudioError, match="finite"):
        write_audio(tmp_path / "b.wav", np.array([np.nan]), 8000)
    assert not (tmp_path / "b.wav").exists()


@pytest.mark.parametrize("config", [WIDE, DIGITS, LogMelConfig(fmin=60, fmax=7000, dither=0)])
def test_features_equal_torchaudio(config: LogMelConfig) -> None:
    front_end = LogMel(config)
    wave = vowel(rate=config.sample_rate)
    reference = torchaudio.transforms.MelSpectrogram(
        config.sample_rate,
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        n_mels=config.n_mels,
        f_min=config.fmin,
        f_max=config.highest,
        center=False,
        norm="slaney",
        mel_scale="slaney",
    )
    expected = reference(front_end.padded(wave)).T.clamp_min(config.floor).log()
    features = front_end.features(wave)
    assert len(features) == 1 + len(wave) // config.hop_length
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("config", [WIDE, DIGITS, LogMelConfig(fmin=60, fmax=7000, dither=0)])
def test_features_equal_librosa(config: LogMelConfig) -> None:
    front_end = LogMel(config)
    wave = vowel(rate=config.sample_rate)
    expected = librosa.feature.melspectrogram(
        y=front_end.padded(wave).numpy(),
        sr=config.sample_rate,
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        center=False,
        n_mels=config.n_mels,
        fmin=config.fmin,
        fmax=config.highest,
    ).T
    expected = torch.from_numpy(expected).clamp_min(config.floor).log()
    torch.testing.assert_close(front_end.features(wave), expected, rtol=1e-3, atol=1e-3)


def test_units_are_nats_of_power_and_frames_are_centred() -> None:
    front_end = LogMel(DIGITS)
    quiet, loud = front_end.features(tone()), front_end.features(2 * tone())
    channel = int(quiet[20].argmax())
    assert loud[20, channel] - quiet[20, channel] == pytest.approx(2 * math.log(2), abs=1e-3)
    centres = librosa.mel_frequencies(DIGITS.n_mels + 2, fmin=0, fmax=4000)[1:-1]
    assert abs(centres - 440).argmin() == channel
    click = np.zeros(4000, np.float32)
    click[1700] = 1
    assert front_end.features(click).sum(1).argmax() == 1700 / DIGITS.hop_length


def test_dither_is_repeatable_bounded_and_never_the_same_for_two_recordings() -> None:
    front_end = LogMel(DIGITS)
    silence = np.zeros(4000, np.float32)
    features = front_end.features(silence)
    assert torch.equal(features, front_end.features(silence))
    assert features.min() > math.log(DIGITS.floor) + 0.1  # the floor is not reached
    # expected mel power of the dither: variance x energy of the window x weights of the channel
    power = 2.0**-30 * front_end.window.square().sum() * front_end.basis.sum(0)
    assert features.exp().mean(0).div(power).mean() == pytest.approx(1, abs=0.1)
    # a recording that is silent at first does not share its noise with another
    other = silence.copy()
    other[-1] = 0.5
    assert not torch.allclose(features[:30], front_end.features(other)[:30], atol=0.1)


@pytest.mark.parametrize("samples", [1, 2, 99, 100, 127, 255, 256])
def test_clips_shorter_than_a_window_work(samples: int) -> None:
    front_end = LogMel(DIGITS)
    features = front_end.features(tone()[:samples] + 0.1)
    assert features.shape == (1 + samples // 100, 40)
    assert features.isfinite().all()
    assert len(front_end.features(front_end.invert(features))) == len(features)


@pytest.mark.parametrize("wrong", [np.zeros(0), np.zeros((2, 100)), np.array([0, np.nan])])
def test_features_refuse_what_is_no_waveform(wrong: np.ndarray) -> None:
    with pytest.raises(AudioError, match="finite samples"):
        LogMel(DIGITS).features(wrong)


def test_samples_whose_power_is_no_number_are_refused() -> None:
    assert LogMel(DIGITS).features(vowel() * np.float32(1e15)).isfinite().all()
    with pytest.raises(AudioError, match=r"samples of up to \d(\.\d+)?e\+19 are too large: full scale is 1"):
        LogMel(DIGITS).features(vowel() / np.abs(vowel()).max() * np.float32(5e19))


def test_inverse_gives_back_the_log_mels() -> None:
    front_end = LogMel(DIGITS)
    log_mels = front_end.features(vowel())
    wave = front_end.invert(log_mels)
    assert wave.dtype == np.float32
    assert np.array_equal(wave, front_end.invert(log_mels))
    again = front_end.features(wave)
    inner = slice(2, -2)  # Griffin-Lim has no neighbours to lean on at the ends
    error = (again - log_mels)[inner].square().mean().sqrt()
    assert error < 0.5  # nats; the log-mels themselves vary by several
    one = (front_end.features(front_end.invert(log_mels, iterations=1)) - log_mels)[inner].square().mean().sqrt()
    assert error < one
    assert len(front_end.invert(log_mels[:0])) == 0


def test_spectrum_is_nearer_than_the_clamped_pseudo_inverse() -> None:
    front_end = LogMel(DIGITS)
    mels = front_end.features(vowel()).exp()

    def error(power: torch.Tensor) -> float:
        return float((power @ front_end.basis - mels).norm() / mels.norm())

    pseudo = (mels @ torch.linalg.pinv(front_end.basis)).clamp_min(0)
    power = front_end.magnitude(mels.log()).square()
    assert (power >= 0).all()
    assert error(power) < 0.5 * error(pseudo)


def test_empty_channels_are_refused_with_advice_and_digits_have_none() -> None:
    for config in (WIDE, DIGITS):
        assert (LogMel(config).basis.sum(0) > 0).all()
    with pytest.raises(ValueError, match=r"channels \[0, .*raise n_fft, or lower n_mels"):
        _ = LogMel(LogMelConfig(sample_rate=16000, n_fft=256, hop_length=100, n_mels=128)).basis


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_fft": 255}, "even"),
        ({"hop_length": 300}, "hop_length"),
        ({"fmax": 9000}, "fmax"),
        ({"fmin": 8000}, "fmin"),
        ({"dither": -1}, "dither"),
        ({"floor": 0}, "floor"),
        ({"n_mels": 0}, "n_mels"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogMelConfig(**settings)


def test_state_is_json_and_gives_the_same_frames(tmp_path: Path) -> None:
    front_end = LogMel(DIGITS)
    front_end.fit([front_end.features(vowel())])
    restored = LogMel.from_dict(json.loads(json.dumps(front_end.to_dict())))
    write_audio(tmp_path / "a.wav", vowel(), 8000)
    steps = front_end.encode(tmp_path / "a.wav")
    assert torch.equal(restored.encode(tmp_path / "a.wav"), steps)
    assert steps.mean(0).abs().max() < 0.1
    np.testing.assert_allclose(restored.decode(steps), front_end.invert(front_end.read(tmp_path / "a.wav")), atol=1e-2)
    assert restored.log_jacobian == -float(front_end.fitted.std.double().log().sum())
