"""Sound files to log-mel frames and back to a waveform. Waveforms are [N] float32, full scale +-1."""

from __future__ import annotations

import struct
import zlib
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmseqvae.config import LogMelConfig
from mmseqvae.features.arrays import FrontEnd, Standard
from mmseqvae.features.griffin_lim import griffin_lim
from mmseqvae.files import replacing

LEAST_STEP = 2.0**-15  # one step of 16-bit audio
LARGEST_OGG_PAGE = 27 + 255 + 255 * 255  # bytes: header, table of segments, segments
STREAMED = 0x7FFF0000  # sizes from here on are what programs write into a header before they know the true one


class AudioError(ValueError):
    """A recording that cannot be used; the message names the file and what is wrong with it."""


def read_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """A sound file (wav, flac, ogg, mp3, ...) -> [N] float32 at `sample_rate` Hz, channels averaged.

    Raises AudioError for a file that is missing, no sound file, of length zero, truncated or not finite.
    """
    import soundfile

    if not Path(path).is_file():
        raise AudioError(f"{path}: file is missing")
    if not Path(path).stat().st_size:
        raise AudioError(f"{path}: file is empty")
    try:
        with soundfile.SoundFile(path) as file:
            announced, rate = file.frames, file.samplerate
            wave = file.read(dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise AudioError(f"{path}: cannot be read as sound, perhaps truncated ({error})") from error
    if len(wave) < announced or _cut_short(Path(path)):
        raise AudioError(f"{path}: is truncated, it holds less sound than its header announces")
    if not len(wave):
        raise AudioError(f"{path}: holds no samples")
    return resampled(wave.mean(1), rate, sample_rate, str(path))


def resampled(wave: np.ndarray, rate: float, wanted: int, name: str) -> np.ndarray:
    """[N] samples at `rate` Hz -> [N'] float32 at `wanted` Hz, by soxr.

    Raises AudioError, which begins with `name`, for a NaN or infinity and where nothing would be left.
    """
    import soxr

    if not np.isfinite(wave).all():
        raise AudioError(f"{name}: holds a NaN or infinity")
    if rate != wanted:
        wave = soxr.resample(wave, rate, wanted)
    if not len(wave):
        raise AudioError(f"{name}: is shorter than one sample at {wanted} Hz")
    return np.asarray(wave, np.float32)


def _cut_short(path: Path) -> bool:
    """Whether a RIFF (wav), AIFF or Ogg file ends before its sound does; other formats fail, or read short, themselves.

    libsndfile hides it: it believes the size of the file and shortens the header's count without a word.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        name = file.read(4)
        if name == b"OggS":
            file.seek(max(0, size - LARGEST_OGG_PAGE))
            return not _ends_a_stream(file.read())
        order = {b"RIFF": "<", b"FORM": ">"}.get(name)
        start = 12  # chunks are: name (4 bytes), length (4 bytes), content, padded to an even length
        while order and start + 8 <= size:
            file.seek(start)
            name, length = struct.unpack(f"{order}4sI", file.read(8))
            if name in (b"data", b"SSND"):
                return length < STREAMED and start + 8 + length > size
            start += 8 + length + length % 2
    return order is not None


def _ends_a_stream(tail: bytes) -> bool:
    """Whether the last bytes of an Ogg file are a whole page that is marked as the last (RFC 3533, section 6)."""
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) < start + 27:
        return False
    flags, segments = tail[start + 5], tail[start + 26]
    return bool(flags & 4) and start + 27 + segments + sum(tail[start + 27 :][:segments]) <= len(tail)


def write_audio(path: str | Path, wave: np.ndarray | Tensor, sample_rate: int) -> None:
    """Write [N] samples as a 16-bit file of the suffix's format (.wav, .flac); what exceeds full scale is clipped."""
    import soundfile

    path = Path(path)
    samples = np.asarray(wave, np.float32)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise AudioError(f"{path}: [N] finite samples are needed, got shape {samples.shape}")
    steps = np.rint(np.clip(samples, -1, 1 - LEAST_STEP) / LEAST_STEP).astype(np.int16)  # libsndfile cuts
    with replacing(path) as part:
        soundfile.write(part, steps, sample_rate, subtype="PCM_16")


class LogMel(FrontEnd):
    """Log-mel frames: ln of mel power, so differences are nats of power (4.34 dB each); [T, n_mels], T = 1 + N // hop.

    Frame t is centred on sample t * hop_length; before and after the recording there is silence. A dither seeded by
    the samples is added first: the same recording always gives the same frames, two silences never do.
    """

    kind = "log-mel"

    def __init__(self, config: LogMelConfig, standard: Standard | None = None) -> None:
        self.config = config
        self.channels = config.n_mels
        self.standard = standard

    @cached_property
    def basis(self) -> Tensor:
        """[n_fft / 2 + 1, n_mels]: power spectrum to mel power. Raises ValueError where a channel is empty.

        Triangles of unit area on Slaney's scale (Slaney 1998, Auditory Toolbox 2), from librosa.
        """
        import warnings

        from librosa.filters import mel

        config = self.config
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Empty filters", UserWarning)  # told below, with what to do about it
            rows = mel(
                sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.n_mels, fmin=config.fmin, fmax=config.highest
            )
        empty = np.flatnonzero(rows.max(1) == 0).tolist()
        if empty:
            raise ValueError(
                f"log-mel channels {empty} fall between two bins of the spectrum ({config.sample_rate} Hz / n_fft "
                f"{config.n_fft}) and would always be empty: raise n_fft, or lower n_mels ({config.n_mels})"
            )
        return torch.from_numpy(rows).float().T.contiguous()

    @cached_property
    def _basis_of_parts(self) -> Tensor:
        """[n_fft + 2, n_mels]: squares of real and imaginary parts, in turns, to mel power; the product adds them."""
        return self.basis.repeat_interleave(2, 0)

    @cached_property
    def _inverse(self) -> Tensor:
        """[n_mels, n_fft / 2 + 1], the pseudo-inverse of the basis."""
        return torch.linalg.pinv(self.basis)

    @cached_property
    def window(self) -> Tensor:
        return torch.hann_window(self.config.n_fft)

    def features(self, wave: np.ndarray | Tensor) -> Tensor:
        """[N] samples at config.sample_rate -> [1 + N // hop_length, n_mels] ln of mel power, not standardised.

        Raises AudioError where there are no samples, or some that are not finite or so large that their power is not,
        or more than one channel.
        """
        samples = np.asarray(wave, np.float32)
        if samples.ndim != 1 or not samples.size or not np.isfinite(samples).all():
            raise AudioError(f"a waveform must be [N >= 1] finite samples, got shape {samples.shape}")
        frames = self.padded(samples).unfold(0, self.config.n_fft, self.config.hop_length)
        parts = torch.view_as_real(torch.fft.rfft(frames * self.window))  # [T, n_fft / 2 + 1, 2]
        log_mels = (parts.square_().flatten(1) @ self._basis_of_parts).clamp_min_(self.config.floor).log_()
        if not log_mels.isfinite().all():
            raise AudioError(f"samples of up to {np.abs(samples).max():.3g} are too large: full scale is 1")
        return log_mels

    def padded(self, samples: np.ndarray) -> Tensor:
        """[N] -> [N + n_fft]: half a window of silence on both sides, then the dither over everything."""
        edge = self.config.n_fft // 2
        padded = np.zeros(len(samples) + 2 * edge, np.float32)
        if self.config.dither:
            seed = zlib.crc32(np.ascontiguousarray(samples).data)
            np.random.default_rng(seed).standard_normal(dtype=np.float32, out=padded)
            padded *= np.float32(self.config.dither * LEAST_STEP)
        padded[edge : edge + len(samples)] += samples
        return torch.from_numpy(padded)

    def invert(self, log_mels: Tensor, iterations: int = 32) -> np.ndarray:
        """[T, n_mels] ln of mel power (not standardised) -> [T * hop_length - hop_length / 2] samples, T frames again.

        The spectrum is the non-negative one whose mel power is nearest, the phase that of fast Griffin-Lim (Perraudin,
        Balazs & Sondergaard 2013), begun at zero and hence deterministic.
        """
        log_mels = log_mels.detach().float().cpu()
        if log_mels.ndim != 2 or log_mels.shape[1] != self.channels or not log_mels.isfinite().all():
            raise ValueError(f"finite log-mels [T, {self.channels}] are needed, got {tuple(log_mels.shape)}")
        if not len(log_mels):
            return np.zeros(0, np.float32)
        config = self.config
        tail = (config.hop_length + 1) // 2
        samples = len(log_mels) * config.hop_length - tail
        frames = max(len(log_mels), config.n_fft // config.hop_length)  # mirroring needs more than half a window
        magnitude = torch.nn.functional.pad(self.magnitude(log_mels), (0, 0, 0, frames - len(log_mels)))
        length = frames * config.hop_length - tail
        wave = griffin_lim(magnitude, self.window, config.hop_length, length, iterations, momentum=0.99)
        return wave[:samples].numpy()

    def magnitude(self, log_mels: Tensor, updates: int = 50) -> Tensor:
        """[T, n_mels] -> [T, n_fft / 2 + 1], the non-negative spectrum whose mel power comes nearest.

        From the clamped pseudo-inverse on by the multiplicative updates of Lee & Seung 2001, equation 4: they take two
        fifths off the error in the log-mels that the pseudo-inverse alone leaves.
        """
        mels = log_mels.exp()
        spread = mels @ (self.basis / self.basis.sum(0)).T
        power = torch.maximum(mels @ self._inverse, 1e-3 * spread)  # > 0, or an update keeps it at 0
        numerator, gram = mels @ self.basis.T, self.basis @ self.basis.T
        for _ in range(updates):
            power = power * numerator / (power @ gram).clamp_min(1e-30)
        return power.sqrt()

    def read(self, source: np.ndarray | Tensor | str | Path) -> Tensor:
        """A sound file, or samples at config.sample_rate -> [T, n_mels], not standardised."""
        return self.features(
            read_audio(source, self.config.sample_rate) if isinstance(source, str | Path) else np.asarray(source)
        )

    def encode(self, source: np.ndarray | Tensor | str | Path) -> Tensor:
        """A sound file, or samples at config.sample_rate -> standardised [T, n_mels]."""
        return self.standardise(self.read(source))

    def decode(self, frames: Tensor) -> np.ndarray:
        """Standardised [T, n_mels] -> samples at config.sample_rate."""
        return self.invert(self.destandardise(frames.detach().float().cpu()))

    def describe(self) -> dict[str, Any]:
        """What the raw features depend on, besides the file."""
        return {"kind": self.kind, **asdict(self.config)}

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads."""
        return {"kind": self.kind, "config": asdict(self.config), "standard": self.standard and self.standard.to_dict()}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> LogMel:
        return cls(LogMelConfig(**state["config"]), state["standard"] and Standard.from_dict(state["standard"]))
