"""Configuration of what is read: log-mels, text, windows, augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

UNITS = ("characters", "words", "spaces", "bytes", "bpe")
BPE_SIZE = 1000
CACHE_DIR = ".cache/mmseqvae"


@dataclass(frozen=True)
class LogMelConfig:
    """How a waveform becomes log-mel frames, `1 + samples // hop_length` of them; see `mmseqvae.features.log_mel`.

    Raises:
        ValueError: where the numbers do not fit together.
    """

    sample_rate: int = 16000
    """Samples a second (Hz); every recording is resampled to it."""
    n_fft: int = 512
    """Samples in the Hann window, an even number."""
    hop_length: int = 200
    """Samples between frames, at most n_fft / 2 so that the frames can be inverted."""
    n_mels: int = 80
    """Channels, triangular on Slaney's mel scale with unit area."""
    fmin: float = 0.0
    """Lowest frequency in Hz."""
    fmax: float | None = None
    """Highest frequency in Hz; None for sample_rate / 2."""
    dither: float = 1.0
    """Standard deviation of the noise that is added to every recording, in steps of 16-bit audio (2 ** -15 of full
    scale): digital silence would otherwise have no variance, hence no bounded density."""
    floor: float = 1e-10
    """Smallest mel power before the logarithm; with dither it is all but never reached."""

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


@dataclass(frozen=True)
class TextConfig:
    """How strings of text become tokens; see `mmseqvae.tokenizers`.

    Raises:
        ValueError: for unknown units, and for what bytes, of which there are 256, cannot have.
    """

    units: str = "characters"
    """Units of text: "characters", "words", "spaces" (what stands between spaces), "bytes" or "bpe" (byte pairs that
    are learnt). Characters and words that training never saw are unknown; bytes and byte pairs can write any text."""
    columns: dict[str, str] = field(default_factory=dict)
    """Units of single columns, such as {"phones": "words"}."""
    vocabulary: int | None = None
    """Most tokens, `</s>` included; None for all characters or words, and 1,000 of bpe."""
    least: int = 1
    """Occurrences that a character, a word or a byte pair needs to become a token."""

    def __post_init__(self) -> None:
        used = {self.units, *self.columns.values()}
        if used - set(UNITS):
            raise ValueError(
                f"units of text must be among {', '.join(UNITS)}, got {', '.join(sorted(used - set(UNITS)))}"
            )
        if self.least < 1:
            raise ValueError(f"least must be at least 1, got {self.least}")
        if self.vocabulary is not None:
            floor = 257 if "bpe" in used else 3
            if self.vocabulary < floor:
                raise ValueError(f"a vocabulary of {', '.join(sorted(used))} must be at least {floor}, "
                                 f"got {self.vocabulary}")  # fmt: skip
        if used == {"bytes"} and (self.vocabulary is not None or self.least > 1):
            raise ValueError("bytes are a vocabulary of 257, which neither vocabulary nor least can change")

    def units_of(self, column: str) -> str:
        return self.columns.get(column, self.units)


@dataclass(frozen=True)
class WindowConfig:
    """How long items are cut into windows, each an item; see `mmseqvae.data.windows`.

    Raises:
        ValueError: where the numbers do not fit together.
    """

    length: float | None = None
    """Seconds of a window; what is no longer stays whole. None cuts nothing."""
    hop: float | None = None
    """Seconds from the beginning of a window to that of the next, at most length; None for length."""
    least: float = 0.0
    """Seconds below which the last window is left out: it ends with the recording and may be shorter."""
    rates: dict[str, float] = field(default_factory=dict)
    """Steps a second of columns of frames, {column: rate}; 0 for one without time, which every window has whole.
    Log-mels know theirs; without any in the data, a step counts as a second where nothing else is said."""
    texts: str = "refuse"
    """Texts of items that are cut: "refuse" them, since a text covers the whole recording; "drop" them; or "keep" the
    whole text in every window, for what holds of every part."""

    def __post_init__(self) -> None:
        if self.texts not in ("refuse", "drop", "keep"):
            raise ValueError(f"windows.texts must be refuse, drop or keep, got {self.texts!r}")
        if not self.on:
            if (self.hop, self.least, self.rates, self.texts) != (None, 0.0, {}, "refuse"):
                raise ValueError("windows.length, in seconds, must be given with other settings of windows")
            return
        if not 0 < self.longest < math.inf:
            raise ValueError(f"windows.length must be above 0 seconds, got {self.length}")
        if not 0 < self.every <= self.longest:
            raise ValueError(
                f"windows.hop must be above 0 and at most windows.length, {self.longest:g} seconds, or what lies "
                f"between two windows would be lost; got {self.hop}"
            )
        if not 0 <= self.least <= self.longest:
            raise ValueError(f"windows.least must lie in 0..{self.longest:g}, windows.length, got {self.least}")
        wrong = {name: rate for name, rate in self.rates.items() if not 0 <= rate < math.inf}
        if wrong:
            raise ValueError(f"windows.rates are steps a second, >= 0, got {wrong}")

    @property
    def on(self) -> bool:
        return self.length is not None

    @property
    def longest(self) -> float:
        """Seconds of an item, inf where nothing is cut."""
        return math.inf if self.length is None else self.length

    @property
    def every(self) -> float:
        """Seconds from window to window."""
        return self.longest if self.hop is None else self.hop


@dataclass(frozen=True)
class AugmentConfig:
    """What encoders of recordings read in training in place of what was recorded; see `mmseqvae.data.augment`.

    Raises:
        ValueError: where the numbers do not fit together.
    """

    noise: float = 0.0
    """Share of recordings with white noise added, anew in every epoch. Decoders are scored on what was recorded all the
    same."""
    snr_low: float = 5.0
    """Lowest signal-to-noise ratio, in dB of mel power; ratios are uniform from here to snr_high."""
    snr_high: float = 20.0
    """Highest signal-to-noise ratio, in dB of mel power."""
    frequency_masks: int = 0
    """Stretches of channels that are set to their means (SpecAugment, Park et al. 2019)."""
    frequency_width: int = 15
    """Most channels of such a stretch; widths are uniform from 0 to this."""
    time_masks: int = 0
    """Stretches of frames that are set to their means."""
    time_width: int = 70
    """Most frames of such a stretch; widths are uniform from 0 to this."""
    time_share: float = 0.2
    """Most that one stretch takes of a recording's frames, a share."""

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1 or not 0 <= self.time_share <= 1:
            raise ValueError(
                f"augment.noise ({self.noise}) is a share of recordings and time_share ({self.time_share}) one of "
                "frames: both lie between 0 and 1"
            )
        if not -math.inf < self.snr_low <= self.snr_high < math.inf:
            raise ValueError(f"augment.snr_low ({self.snr_low}) must be at most snr_high ({self.snr_high}), in dB")
        if min(self.frequency_masks, self.time_masks) < 0 or min(self.frequency_width, self.time_width) < 1:
            raise ValueError(
                f"augment: numbers of masks ({self.frequency_masks}, {self.time_masks}) must be at least 0, their "
                f"widths ({self.frequency_width}, {self.time_width}) at least 1"
            )

    @property
    def on(self) -> bool:
        return bool(self.noise or self.frequency_masks or self.time_masks)
