"""Training items that are changed anew in every epoch: recordings at another speed, with noise, with parts masked.

Nothing of it is kept. What happens to an item depends on (seed, epoch, item) alone: on no batch, worker or process.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many

import numpy as np

from mmseqvae.config import AugmentConfig
from mmseqvae.data.dataset import Batch, SequenceDataset
from mmseqvae.data.store.extraction import FrontEnd
from mmseqvae.features.log_mel import LogMel
from mmseqvae.modality import as_read
from mmseqvae.sequence import Sequence

NOISE_FRAMES = 2000  # of white noise, made once; every recording gets a stretch of them


class Augmented(SequenceDataset):
    """The same items, which are asked for by the number of a draw, epoch * N + item, and changed as that says.

    Where a recording is there at other speeds (`SequenceDataset.speeds`), one of its speeds is drawn, each as likely:
    encoder and decoder get it. Where `config` asks for noise or masks, the batch holds what encoders read in place of
    log-mels beside them (`as_read`), and decoders are scored on those without noise and masks.

    Raises ValueError where there are no log-mels, or a frequency mask is wider than they are.
    """

    numbered = True

    def __init__(
        self, dataset: SequenceDataset, front_ends: Mapping[str, FrontEnd], config: AugmentConfig, seed: int
    ) -> None:
        super().__init__(
            dataset.ids, dataset.labels, dataset.columns, dataset.weights, steps=dataset.steps, speeds=dataset.speeds
        )
        sounds = {name: end for name, end in front_ends.items() if isinstance(end, LogMel)}
        if not sounds:
            raise ValueError(f"augmentation is for recordings, of which there are none among {list(front_ends)}")
        narrow = {name: end.channels for name, end in sounds.items() if end.channels < config.frequency_width}
        if config.frequency_masks and narrow:
            raise ValueError(f"augment.frequency_width is {config.frequency_width} channels, and there are {narrow}")
        self.config, self.seed = config, seed
        self.read = {name: Reading(end, config) for name, end in sounds.items()} if config.on else {}

    def lengths(self, name: str) -> np.ndarray:
        """The most steps that an item can have."""
        slowest = super().lengths(name)
        return self.speeds[name].lengths.reshape(-1, len(self)).max(0) if name in self.speeds else slowest

    def __getitems__(self, items: Many[int]) -> Batch:
        epochs, chosen = np.divmod(np.asarray(items, np.int64), len(self))
        places = [1, *(reading.draws for reading in self.read.values())]
        draws = np.zeros((len(chosen), sum(places)))
        for row, epoch, item in zip(draws, epochs, chosen, strict=True):
            self._draw(row, epoch, item)
        batch: Batch = {}
        for name, column in self.columns.items():
            if name in self.speeds:
                column = self.speeds[name]
                speeds = len(column.lengths) // len(self)
                batch[name] = column.batch((draws[:, 0] * speeds).astype(np.int64) * len(self) + chosen)
            else:
                batch[name] = column.batch(chosen)
        parts = np.split(draws, np.cumsum(places)[:-1], axis=1)[1:]
        for (name, reading), own in zip(self.read.items(), parts, strict=True):
            batch[as_read(name)] = reading(batch[name], own)
        return batch

    def _draw(self, row: np.ndarray, epoch: int, item: int) -> None:
        """Uniform in [0, 1): a generator that counts (Salmon et al. 2011) has a place for every item of every epoch."""
        np.random.Generator(np.random.Philox(key=(self.seed, epoch), counter=(0, 0, item, 0))).random(out=row)


class Reading:
    """Log-mels as encoders read them in training: noise is added, then parts are masked.

    A mask is 0 after standardisation, the mean over the training set. torchaudio's masks (`mask_along_axis_iid`) lie
    anywhere in a padded batch and come from torch's own noise; these lie within an item and come from the item's.
    """

    def __init__(self, front_end: LogMel, config: AugmentConfig) -> None:
        self.config, self.standard = config, front_end.fitted
        samples = np.random.default_rng(0).standard_normal(NOISE_FRAMES * front_end.config.hop_length - 1, np.float32)
        self.noise = np.exp(front_end.features(samples).numpy()) if config.noise else None  # [NOISE_FRAMES, C] power

    @property
    def draws(self) -> int:
        """Uniform numbers that an item needs."""
        return 3 + 2 * (self.config.frequency_masks + self.config.time_masks)

    def __call__(self, x: Sequence, draws: np.ndarray) -> Sequence:
        """x of B, which is left as it is, by the numbers [B, `draws`]."""
        values = x.values.clone()
        for frames, length, own in zip(values.numpy(), x.lengths.tolist(), draws.tolist(), strict=True):
            if length:
                self._change(frames[:length], *own)
        return Sequence(values, x.lengths, x.observed)

    def _change(self, frames: np.ndarray, chosen: float, ratio: float, start: float, *masks: float) -> None:
        """Standardised [T, C], in place."""
        config, (steps, channels) = self.config, frames.shape
        if self.noise is not None and chosen < config.noise:
            mean, std = self.standard.mean.numpy(), self.standard.std.numpy()
            snr, first = config.snr_low + ratio * (config.snr_high - config.snr_low), int(start * NOISE_FRAMES)
            noise = self.noise.take(np.arange(first, first + steps), 0, mode="wrap")
            frames[:] = (noisy(frames * std + mean, noise, snr) - mean) / std
        for number, places in enumerate(zip(masks[::2], masks[1::2], strict=True)):
            if number < config.frequency_masks:
                frames[:, stretch(channels, config.frequency_width, *places)] = 0
            else:
                frames[stretch(steps, min(config.time_width, int(config.time_share * steps)), *places)] = 0


def noisy(log_mels: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Log-mels [T, C] with noise of mel power [T, C] at `snr` dB: ln(exp(log_mels) + g noise).

    Powers of signals that have nothing to do with each other add up on average. g makes the ratio of the sums of mel
    power, over all frames and channels, 10^(snr / 10).
    """
    power = np.exp(log_mels)
    gain = power.sum(dtype=np.float64) / noise.sum(dtype=np.float64) * 10 ** (-snr / 10)
    return np.log(power + np.float32(gain) * noise)


def stretch(size: int, longest: int, length: float, first: float) -> slice:
    """A stretch of `size` places, its length over 0..longest and its place over all that it fits in, by shares < 1."""
    taken = int(length * (longest + 1))
    begin = int(first * (size - taken + 1))
    return slice(begin, begin + taken)
