"""A waveform from the magnitudes of its spectrum: fast Griffin-Lim over frames that stay in the order of time."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-16  # keeps the phase of nothing finite


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
    n_fft, half = len(window), len(window) // 2
    if magnitude.shape != (1 + samples // hop_length, half + 1) or samples <= half:
        raise ValueError(
            f"{samples} samples, more than n_fft / 2 = {half}, need magnitudes "
            f"[{1 + samples // hop_length}, {half + 1}], got {tuple(magnitude.shape)}"
        )
    add = OverlapAdd(len(magnitude), n_fft, hop_length)
    inner = slice(half, half + samples)
    scale = 1 / add(window.square().expand(len(magnitude), n_fft))[inner]  # the windows' squares, overlapping, to 1
    padded = torch.empty(samples + 2 * half)
    wave, framed = padded[inner], padded.unfold(0, n_fft, hop_length)
    spectrum = magnitude.to(torch.complex64)
    before = torch.zeros_like(spectrum)
    for _ in range(iterations):
        torch.mul(add(torch.fft.irfft(spectrum, n_fft).mul_(window))[inner], scale, out=wave)
        padded[:half] = wave[1 : half + 1].flip(0)
        padded[-half:] = wave[-half - 1 : -1].flip(0)
        rebuilt = torch.fft.rfft(framed * window)
        torch.sub(rebuilt, before, alpha=momentum / (1 + momentum), out=spectrum)
        before = rebuilt
        real, imaginary = spectrum.real, spectrum.imag  # views: torch's own arithmetic of complex numbers is slower
        gain = magnitude / torch.addcmul(imaginary.square(), real, real).sqrt_().add_(TINY)
        real.mul_(gain)
        imaginary.mul_(gain)
    return add(torch.fft.irfft(spectrum, n_fft).mul_(window))[inner] * scale


class OverlapAdd:
    """Sums of frames [T, n_fft] that begin `hop_length` samples apart: a sum of n_fft / hop_length blocks of all frames.

    Blocks are `hop_length` wide, the last one narrower where that does not divide n_fft. Every call returns the same
    tensor, [at least (T - 1) * hop_length + n_fft] samples, filled anew.
    """

    def __init__(self, frames: int, n_fft: int, hop_length: int) -> None:
        self.starts = range(0, n_fft, hop_length)
        self.sums = torch.empty(frames + len(self.starts) - 1, hop_length)
        self.parts = [
            self.sums[block : block + frames, : n_fft - start]  # row t + block is where block of frame t lies
            for block, start in enumerate(self.starts)
        ]

    def __call__(self, frames: Tensor) -> Tensor:
        self.sums.zero_()
        for start, part in zip(self.starts, self.parts, strict=True):
            part.add_(frames[:, start : start + part.shape[1]])
        return self.sums.view(-1)
