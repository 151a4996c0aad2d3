"""A waveform from the magnitudes of its spectrum: fast Griffin-Lim over frames that stay in the order of time."""

from __future__ import annotations

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

TINY = np.float32(1e-16)  # keeps the phase of nothing finite


def griffin_lim(
    magnitude: Tensor, window: Tensor, hop_length: int, samples: int, iterations: int, momentum: float
) -> Tensor:
    """[T, n_fft / 2 + 1] magnitudes, T = 1 + samples // hop_length, and a window [n_fft] -> [samples] float32.

    Frame t is centred on sample t * hop_length, the recording mirrored at both ends; the phase begins at zero. The same
    numbers as `torchaudio.functional.griffinlim` with `rand_init=False` but for rounding: there frames lie
    channel-major, so that each transform begins and ends by moving the whole spectrum, and every iteration allocates
    what here is allocated once. 0 <= momentum < 1 speeds convergence up, 0 is the original algorithm.

    Raises ValueError where T does not fit, or fewer than n_fft / 2 + 1 samples cannot be mirrored.

    Perraudin, Balazs & Sondergaard 2013, A fast Griffin-Lim algorithm; Griffin & Lim 1984.
    """
    n_fft, half, frames = len(window), len(window) // 2, 1 + samples // hop_length
    if magnitude.shape != (frames, half + 1) or samples <= half:
        raise ValueError(
            f"{samples} samples, more than n_fft / 2 = {half}, need magnitudes [{frames}, {half + 1}], got "
            f"{tuple(magnitude.shape)}"
        )
    # Arrays of numpy but for the transforms: torch computes these faster, and takes longer to begin anything else.
    wanted, taper, inner = magnitude.numpy(), window.numpy(), slice(half, half + samples)
    add = OverlapAdd(frames, n_fft, hop_length)
    scale = 1 / add(np.broadcast_to(taper * taper, (frames, n_fft)))[inner]  # makes the overlapping squares sum to 1
    padded = np.empty(samples + 2 * half, np.float32)
    wave, framed = padded[inner], sliding_window_view(padded, n_fft)[::hop_length]
    spectrum = torch.empty(magnitude.shape, dtype=torch.complex64).copy_(magnitude)
    phase, before = spectrum.numpy(), np.zeros(wanted.shape, np.complex64)  # phase: the memory of the spectrum
    for _ in range(iterations):
        np.multiply(add(torch.fft.irfft(spectrum, n_fft).numpy() * taper)[inner], scale, out=wave)
        padded[:half], padded[-half:] = wave[half:0:-1], wave[-2 : -half - 2 : -1]
        rebuilt = torch.fft.rfft(torch.from_numpy(framed * taper)).numpy()
        before *= np.float32(momentum / (1 + momentum))
        np.subtract(rebuilt, before, out=phase)
        real, imaginary = phase.real, phase.imag
        gain = wanted / (np.sqrt(real * real + imaginary * imaginary) + TINY)
        real *= gain
        imaginary *= gain
        before = rebuilt
    return torch.from_numpy(add(torch.fft.irfft(spectrum, n_fft).numpy() * taper)[inner] * scale)


class OverlapAdd:
    """Sums of frames [T, n_fft] that begin `hop_length` samples apart, as a sum of n_fft / hop_length blocks.

    A block is a part of every frame, `hop_length` wide; the last one is narrower where that does not divide n_fft.
    Every call returns the same array of at least (T - 1) * hop_length + n_fft samples, filled anew.
    """

    def __init__(self, frames: int, n_fft: int, hop_length: int) -> None:
        self.sums = np.empty((frames + (n_fft - 1) // hop_length, hop_length), np.float32)
        self.blocks = [
            (slice(start, start + hop_length), self.sums[row : row + frames, : n_fft - start])
            for row, start in enumerate(range(0, n_fft, hop_length))
        ]  # which part of a frame, and where it is added: that of frame t to row t + `row`

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        self.sums.fill(0)
        for part, sums in self.blocks:
            sums += frames[:, part]
        return self.sums.reshape(-1)
