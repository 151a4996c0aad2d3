"""The hand-written Griffin-Lim gives torchaudio's numbers, whether or not the hop divides the window."""

import numpy as np
import pytest
import torch
from torchaudio.functional import griffinlim

from mmseqvae.features.griffin_lim import OverlapAdd, griffin_lim

SIZES = [(256, 100), (256, 64), (256, 128), (512, 200), (64, 7), (6, 1)]  # n_fft and hop, dividing it or not


def magnitudes(n_fft: int, hop: int, samples: int) -> torch.Tensor:
    """Of a gliding tone in noise, then disturbed so that no waveform has them: [1 + samples // hop, n_fft / 2 + 1]."""
    time = torch.arange(samples) / 8000
    wave = torch.sin(2 * torch.pi * (300 * time + 900 * time**2)) + 0.1 * torch.randn(samples)
    spectrum = torch.stft(wave, n_fft, hop, window=torch.hann_window(n_fft), return_complex=True).abs().T
    return spectrum * (1 + 0.3 * torch.rand_like(spectrum))


def theirs(magnitude: torch.Tensor, n_fft: int, hop: int, samples: int, iterations: int, momentum: float):
    window = torch.hann_window(n_fft)
    return griffinlim(magnitude.T, window, n_fft, hop, n_fft, 1.0, iterations, momentum, samples, rand_init=False)


def convergence(wave: torch.Tensor, magnitude: torch.Tensor, n_fft: int, hop: int) -> float:
    found = torch.stft(wave, n_fft, hop, window=torch.hann_window(n_fft), return_complex=True).abs().T
    return float((found - magnitude).norm() / magnitude.norm())


@pytest.mark.parametrize(("n_fft", "hop"), SIZES)
@pytest.mark.parametrize("momentum", [0.0, 0.99])
def test_samples_are_those_of_torchaudio(n_fft: int, hop: int, momentum: float) -> None:
    """Rounding grows from one iteration to the next: it is told from a mistake in the first ones."""
    torch.manual_seed(0)
    samples = 9 * n_fft + 5
    magnitude = magnitudes(n_fft, hop, samples)
    for iterations in (0, 1, 2, 4):
        wave = griffin_lim(magnitude, torch.hann_window(n_fft), hop, samples, iterations, momentum)
        expected = theirs(magnitude, n_fft, hop, samples, iterations, momentum)
        assert wave.shape == expected.shape == (samples,)
        assert (wave - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize(("n_fft", "hop"), SIZES[:4])
def test_convergence_is_that_of_torchaudio(n_fft: int, hop: int) -> None:
    torch.manual_seed(0)
    samples = 30 * hop + hop // 2
    magnitude = magnitudes(n_fft, hop, samples)
    before, after = (
        griffin_lim(magnitude, torch.hann_window(n_fft), hop, samples, iterations, 0.99) for iterations in (0, 32)
    )
    found = convergence(after, magnitude, n_fft, hop)
    expected = convergence(theirs(magnitude, n_fft, hop, samples, 32, 0.99), magnitude, n_fft, hop)
    assert found == pytest.approx(expected, rel=1e-2)
    assert found < 0.7 * convergence(before, magnitude, n_fft, hop)


@pytest.mark.parametrize(("n_fft", "hop"), SIZES)
def test_overlapping_frames_are_added_where_they_lie(n_fft: int, hop: int) -> None:
    frames = np.random.default_rng(0).standard_normal((5, n_fft)).astype(np.float32)
    add = OverlapAdd(5, n_fft, hop)
    for factor in (2, 1):  # nothing is left of an earlier call
        sums = add(factor * frames)
    expected = np.zeros(len(sums))
    for index, frame in enumerate(frames):
        expected[index * hop : index * hop + n_fft] += frame
    np.testing.assert_allclose(sums, expected, atol=1e-5)


def test_spectrum_of_nothing_is_silence() -> None:
    assert not griffin_lim(torch.zeros(6, 129), torch.hann_window(256), 100, 520, 3, 0.99).any()


@pytest.mark.parametrize(("frames", "channels", "samples"), [(5, 129, 520), (6, 128, 520), (2, 129, 128)])
def test_sizes_that_do_not_fit_are_refused(frames: int, channels: int, samples: int) -> None:
    with pytest.raises(ValueError, match=rf"{samples} samples.*\[{1 + samples // 100}, 129\], got \({frames}, "):
        griffin_lim(torch.ones(frames, channels), torch.hann_window(256), 100, samples, 1, 0.99)
