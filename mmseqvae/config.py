"""Configuration as plain dataclasses. No torch in here, so that the command line can show its help at once."""

from __future__ import annotations

from dataclasses import dataclass

CACHE_DIR = ".cache/mmseqvae"


@dataclass(frozen=True)
class LogMelConfig:
    """How a waveform becomes log-mel frames: `1 + samples // hop_length` of them, `n_mels` channels each.

    sample_rate: Hz; every recording is resampled to it.
    n_fft: samples in the Hann window, an even number.
    hop_length: samples between frames, at most n_fft / 2 so that the frames can be inverted.
    n_mels: channels, triangular on Slaney's mel scale with unit area.
    fmin, fmax: Hz, the lowest and highest frequency; fmax None means sample_rate / 2.
    dither: standard deviation of the noise added to every recording, in steps of 16-bit audio (2 ** -15 of full
        scale). Digital silence would otherwise have no variance, hence no bounded density.
    floor: smallest mel power before the logarithm. With dither it is all but never reached.

    Raises ValueError where the numbers do not fit together.
    """

    sample_rate: int = 16000
    n_fft: int = 512
    hop_length: int = 200
    n_mels: int = 80
    fmin: float = 0.0
    fmax: float | None = None
    dither: float = 1.0
    floor: float = 1e-10

    def __post_init__(self) -> None:
        if self.sample_rate < 1 or self.n_mels < 1:
            raise ValueError(f"sample_rate ({self.sample_rate}) and n_mels ({self.n_mels}) must be at least 1")
        if self.n_fft < 2 or self.n_fft % 2:
            raise ValueError(f"n_fft must be an even number of samples, got {self.n_fft}")
        if not 1 <= self.hop_length <= self.n_fft // 2:
            raise ValueError(f"hop_length must lie in 1..n_fft / 2 = {self.n_fft // 2}, got {self.hop_length}")
        if not 0 <= self.fmin < self.highest <= self.sample_rate / 2:
            raise ValueError(
                f"0 <= fmin < fmax <= sample_rate / 2 must hold, got fmin {self.fmin}, fmax {self.highest}, "
                f"sample_rate {self.sample_rate} Hz"
            )
        if self.dither < 0 or self.floor <= 0:
            raise ValueError(f"dither ({self.dither}) must be >= 0 and floor ({self.floor}) > 0")

    @property
    def highest(self) -> float:
        """Hz, the upper edge of the last channel."""
        return self.sample_rate / 2 if self.fmax is None else self.fmax

    @property
    def frames_per_second(self) -> float:
        return self.sample_rate / self.hop_length
