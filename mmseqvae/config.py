"""Configuration as plain dataclasses. No torch in here, so that the command line can show its help at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

CACHE_DIR = ".cache/mmseqvae"
UNITS = ("characters", "words", "spaces", "bytes", "bpe")
BPE_SIZE = 1000


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


@dataclass(frozen=True)
class TextConfig:
    """How strings of text become tokens; see `mmseqvae.units`.

    units: "characters", "words", "spaces" (what stands between spaces), "bytes" or "bpe" (byte pairs that are learnt).
    Characters and words that training never saw are unknown; bytes and byte pairs can write any text.
    columns: the units of single columns, such as {"phones": "words"}.
    vocabulary: most tokens, `</s>` included; None means all characters or words, and 1,000 of bpe.
    least: occurrences that a character, a word or a byte pair needs to become a token.

    Raises ValueError for other units and for what bytes, of which there are 256, cannot have.
    """

    units: str = "characters"
    columns: dict[str, str] = field(default_factory=dict)
    vocabulary: int | None = None
    least: int = 1

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

    length: seconds of a window; what is no longer stays whole. None cuts nothing. hop: seconds from the beginning of a
    window to that of the next, at most length; None as many as length. least: seconds below which the last window,
    which ends with the recording and may be shorter than others, is left out.
    rates: steps a second of columns of frames, {column: rate}; 0 for one without time, which every window has whole.
    Log-mels know theirs; without any in the data, a step counts as a second where nothing else is said.
    texts: of items that are cut: "refuse" them, since a text covers the whole recording; "drop", so that windows have
    none; or "keep", so that every window has the whole text, for what holds of every part.

    Raises ValueError where the numbers do not fit together.
    """

    length: float | None = None
    hop: float | None = None
    least: float = 0.0
    rates: dict[str, float] = field(default_factory=dict)
    texts: str = "refuse"

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
class ModelConfig:
    """The networks that `mmseqvae.pretrained.build` makes for the modalities of a corpus.

    latent: dimensions that all modalities share; private: further ones of each modality, which no other reads or
    writes. fusion: how what the encoders believe becomes one posterior, "poe", "poe-without-base",
    "generalised-poe", "moe", "mopoe", "joint" or "attention"; see `mmseqvae.fusion`.
    prior: what the KL is taken to in training, "standard" for N(0, I), or, learnt with the model, a "mixture" of
    prior_components Gaussians or "vamp", the posteriors of as many pseudo-inputs; see `mmseqvae.priors`.
    rnn: "tanh", "gru" or "lstm", everywhere. layers: recurrent layers, everywhere. bidirectional, pooling
    ("last", "mean" or "max"): of the encoders. mean_scale: spread of batch-normalised posterior means, which cannot
    collapse (0.6 or so), 0 to learn them freely. dropout: between layers and before last layers.
    token_embedding, token_encoder, token_decoder: sizes for tokens; frame_encoder, frame_inputs, frame_decoder: sizes
    for frames. reduction: frames that are read and written a recurrent step.
    likelihood: "normal", "laplace" or "bernoulli" frames (bernoulli for 0/1 data, which is not standardised);
    scale: "fixed" at 1, "learnt" per channel or "predicted" per step; scale_floor: its least value.
    input_dropout, input_noise: share of the decoders' past that is hidden in training, and noise on past frames in
    standard deviations, so that the latent is used. longest: room beyond the longest training sequence, as a factor.

    Raises ValueError for numbers out of their range.
    """

    latent: int = 32
    private: int = 0
    fusion: str = "poe"
    prior: str = "mixture"
    prior_components: int = 100
    rnn: str = "gru"
    layers: int = 1
    bidirectional: bool = True
    pooling: str = "last"
    mean_scale: float = 0.0
    dropout: float = 0.0
    token_embedding: int = 32
    token_encoder: int = 32
    token_decoder: int = 64
    frame_encoder: int = 96
    frame_inputs: int = 128
    frame_decoder: int = 192
    reduction: int = 2
    likelihood: str = "normal"
    scale: str = "learnt"
    scale_floor: float = 0.01
    input_dropout: float = 0.4
    input_noise: float = 0.3
    longest: float = 1.25

    def __post_init__(self) -> None:
        least = {
            0: ("private", "mean_scale", "dropout", "scale_floor", "input_dropout", "input_noise"),
            1: ("latent", "prior_components", "layers", "reduction", "longest"),
        }
        for floor, names in least.items():
            _at_least(floor, "model.", {name: getattr(self, name) for name in names})
        for name, share in (("dropout", self.dropout), ("input_dropout", self.input_dropout)):
            if share > 1:
                raise ValueError(f"model.{name} is a share, between 0 and 1, got {share}")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is maximised; see `mmseqvae.objectives`.

    name: of an objective. options: what it takes besides beta, free bits and weights, such as {"coordination": 0.5}.
    beta: weight of the KL to the prior; above 1 it brings the latents of the data closer to N(0, I), whose draws then
    make matching pairs more often. beta_schedule: "linear" from a tenth of beta or "sigmoid", over beta_warm_up steps,
    or "cyclical", from 0 up and then constant, beta_cycles times in the training. target_kl: nats of the joint KL that
    beta is adapted to, between 0 and `beta`, instead of a schedule. free_bits: nats a latent dimension that cost the
    same; free_bits_item: nats an item.
    token_weight: weight of every token modality's reconstruction; a word is a few nats beside a thousand of log-mels.
    by_dimension: weigh all modalities by their size instead, the largest one 1 and another as many times more as it is
    smaller; the size is the mean number of steps times the channels of one. weights: {modality: weight}, over both.

    Raises ValueError for numbers that are negative or not finite.
    """

    name: str = "coordinated"
    options: dict[str, bool | int | float | str] = field(default_factory=dict)
    beta: float = 1.0
    beta_schedule: str = "linear"
    beta_warm_up: int = 600
    beta_cycles: int = 4
    target_kl: float | None = None
    free_bits: float = 0.0
    free_bits_item: float = 0.0
    token_weight: float = 40.0
    by_dimension: bool = False
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("beta", "beta_warm_up", "target_kl", "free_bits", "free_bits_item", "token_weight")
        _at_least(0, "objective.", {name: getattr(self, name) for name in names})
        _at_least(0, "objective.weights.", self.weights)
        _at_least(1, "objective.", {"beta_cycles": self.beta_cycles})


@dataclass(frozen=True)
class AugmentConfig:
    """What the encoders of recordings read in training in place of what was recorded; see `mmseqvae.data.augment`.

    Decoders are scored on what was recorded all the same. By default all of it is off.
    noise: share of recordings with white noise added, anew in every epoch. snr_low, snr_high: signal-to-noise ratios,
    in dB of mel power, are uniform between them.
    frequency_masks, time_masks: how many stretches of channels and of frames are set to their means (SpecAugment, Park
    et al. 2019). frequency_width, time_width: channels and frames of each, uniform from 0 to these; time_share: of a
    recording's frames that one may take at most.

    Raises ValueError where the numbers do not fit together.
    """

    noise: float = 0.0
    snr_low: float = 5.0
    snr_high: float = 20.0
    frequency_masks: int = 0
    frequency_width: int = 15
    time_masks: int = 0
    time_width: int = 70
    time_share: float = 0.2

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


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast.

    pretraining: epochs as a plain autoencoder (beta 0) before `epochs`, after which the decoders start anew and so do
    the schedules: the posterior is far from the prior before the decoder learns to do without it.
    epochs; batch_size: items of a step, on each process. frames_per_batch: most steps of all modalities, padding
    included, that a step may have instead, on each process; see `mmseqvae.data.sampler`.
    sampling: "plain", every item once an epoch; or as many draws, with every label as often as every other
    ("balanced"), in proportion to the square root of how often it is there ("square-root"), or with the manifest's
    column `weight` ("weights"). sampling_column: whose values are these labels, `label` or the name of one of the
    labels or covariates. learning_rate: peak of Adam, warmed up over warm_up steps, then half a cosine down to 2 %;
    prior_rate: how many times that a prior learnt with the model gets, whose parts must keep up with the codes.
    gaps: share of sequences of which a stretch is hidden from encoders and decoders, anew in every batch: the end, the
    beginning, a part in the middle or single steps, so that posteriors of prefixes and of series with holes are learnt
    (`mmseqvae.gaps`).
    augment: noise and masks on what encoders read of recordings.
    clip: largest norm of the gradient, in nats an item. l1, l2: penalties on the weight matrices, l1 sum |w| and
    l2 / 2 sum w^2, in nats. ema: decay of the averaged weights that are kept, 0 to keep the last ones.
    patience: epochs without improvement of `monitor` before stopping, the weights being then those of the best epoch;
    None to never stop early and keep the last ones. monitor: "valid/elbo" or another logged quantity that should rise.
    checkpoint_steps: steps between checkpoints within an epoch, None for one at its end only; from either a training
    goes on as if nothing had been. fitted_prior: the "mixture" fitted to training posteriors at the end, or a "flow"
    that starts from it, takes longer and fits better; components: of it at most, how many being chosen by a tenth of
    the items; fitted_items: to at most so many training items, drawn at random, None for all.
    conditionals: "mixture" or "flow" fits a flexible q(z | x_m) of every modality at the end, which answers where
    that modality is alone; "none" leaves the encoders' own. sure: the least probability of the words that the model
    would write for an item that lacks them, for it to count as a pair there (`mmseqvae.completion`); None to leave
    them out. precision: "32-true", or "bf16-mixed": matrix products in bf16, states, sums and nats in float32. seed:
    of everything random. threads: of torch, None for its own choice.

    Raises ValueError for numbers out of their range.
    """

    pretraining: int = 0
    epochs: int = 130
    batch_size: int = 64
    frames_per_batch: int | None = None
    sampling: str = "plain"
    sampling_column: str = "label"
    learning_rate: float = 2e-3
    prior_rate: float = 10.0
    warm_up: int = 100
    gaps: float = 0.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    clip: float = 1000.0
    l1: float = 0.0
    l2: float = 0.0
    ema: float = 0.998
    patience: int | None = None
    monitor: str = "valid/elbo"
    checkpoint_steps: int | None = None
    fitted_prior: str = "mixture"
    components: int = 50
    fitted_items: int | None = 100_000
    conditionals: str = "mixture"
    sure: float | None = 0.9
    precision: str = "32-true"
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        least = {
            0: ("pretraining", "learning_rate", "prior_rate", "warm_up", "clip", "l1", "l2", "ema", "patience"),
            1: ("epochs", "batch_size", "frames_per_batch", "checkpoint_steps", "components", "threads"),
            2: ("fitted_items",),
        }
        for floor, names in least.items():
            _at_least(floor, "training.", {name: getattr(self, name) for name in names})
        if self.ema >= 1:
            raise ValueError(f"training.ema must be below 1, or the averaged weights never change; got {self.ema}")
        if self.sure is not None and not 0 <= self.sure <= 1:
            raise ValueError(f"training.sure is a probability, between 0 and 1, or None; got {self.sure}")
        if not 0 <= self.gaps <= 1:
            raise ValueError(f"training.gaps is a share of sequences, between 0 and 1, got {self.gaps}")


def _at_least(least: int, prefix: str, numbers: Mapping[str, float | None]) -> None:
    """Raise ValueError for what is below `least` or not finite; None stands for no number."""
    for name, value in numbers.items():
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"{prefix}{name} must be at least {least}, got {value}")
