"""How fast are log-mels, resampling and Griffin-Lim? Against torchaudio and librosa at equal output, in turns.

    python -m benchmarks.speed.features [--data-dir DIR]

Fifty recordings, one at a time, with the settings of the spoken-digits recipe (8 kHz, window 256, hop 100, 40 mels).
Log-mels are of the same padded samples, without dither; the row "with dither" adds the noise that `LogMel` adds by
default. Resampling is from 22,050 Hz (what espeak-ng speaks at) to 16 kHz, torchaudio's with its kernel prepared.
Griffin-Lim runs 32 iterations with momentum 0.99 from phase zero; convergence is the norm of |spectrum of the samples|
minus the wanted one over the norm of the latter, the mean over recordings. Processor time of one thread, medians over
rounds. Writes benchmarks/results/features.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import librosa
import numpy as np
import soxr
import torch
import torchaudio
from torch import Tensor

from benchmarks.page_heading import heading
from benchmarks.speed.timing import each, in_turns
from mmseqvae.features.griffin_lim import griffin_lim
from mmseqvae.features.log_mel import LogMel, read_audio
from mmseqvae.files import write_text
from recipes.spoken_digits import AUDIO

RESULTS = Path(__file__).parents[1] / "results"
RATES = 22050, 16000
ITERATIONS, MOMENTUM = 32, 0.99
Ways = dict[str, Callable[[int], Any]]  # of the number of a recording


def main(
    data_dir: Path | None = None, recordings: int = 50, repeats: int = 5, results: Path = RESULTS, seed: int = 0
) -> None:
    """Time the three and write the table.

    Args:
        data_dir: folder with recordings (.wav); without it, signals like speech are made.
        recordings: how many of them, evenly from all.
        repeats: rounds over the recordings, after one that does not count.
        results: folder for the table.
        seed: of the signals that are made.
    """
    torch.set_num_threads(1)
    waves = speech(data_dir, recordings, seed)
    hours = sum(map(len, waves)) / AUDIO.sample_rate / 3600
    command = "python -m benchmarks.speed.features" + (" --data-dir DIR" if data_dir else "")
    table = [
        *heading("Features", f"{command} --recordings {recordings} --repeats {repeats}", seed),
        f"{len(waves)} recordings of {3600 * hours / len(waves):.2f} s on average. Equal means: log-mels within 0.001 "
        "nats and 0.1 %; resampling within 1 % (root mean square), since the filters differ; the convergence of "
        "Griffin-Lim within 1 %.",
        "",
        "| what | way | hours of audio a second | time / torchaudio | time / librosa | against torchaudio | equal |",
        "|---|---|---|---|---|---|---|",
    ]
    for what, ways, judge in (log_mel(waves), resampling(waves), inversion(waves)):
        outputs = {name: [np.asarray(way(i)) for i in range(len(waves))] for name, way in ways.items()}
        times = in_turns({name: partial(each, way, range(len(waves))) for name, way in ways.items()}, repeats)
        for name, seconds in times.items():
            found, equal = judge(outputs[name], outputs["torchaudio"])
            table.append(
                f"| {what} | {name} | {hours / seconds:.3f} | {seconds / times['torchaudio']:.2f} "
                f"| {seconds / times['librosa']:.2f} | {found} | {'yes' if equal else 'no'} |"
            )
    print("\n".join(table))
    write_text(results / "features.md", "\n".join(table) + "\n")


def speech(data_dir: Path | None, count: int, seed: int) -> list[np.ndarray]:
    """Recordings at the recipe's rate: of `data_dir`, or gliding harmonics under formants in a little noise."""
    if data_dir is not None:
        files = sorted(data_dir.rglob("*.wav"))
        if len(files) < count:
            raise FileNotFoundError(f"{data_dir} holds {len(files)} .wav files, --recordings asks for {count}")
        chosen = np.linspace(0, len(files) - 1, count).astype(int)
        return [read_audio(files[i], AUDIO.sample_rate) for i in chosen]
    random = np.random.default_rng(seed)
    waves = []
    for seconds in random.uniform(0.2, 0.8, count):
        clock = np.arange(int(seconds * AUDIO.sample_rate)) / AUDIO.sample_rate
        pitch, glide, formant = random.uniform(80, 250), random.uniform(-60, 60), random.uniform(300, 2500)
        phase = 2 * np.pi * (pitch * clock + glide * clock**2)
        loud = [np.exp(-(((k * pitch - formant) / 500) ** 2)) + 0.3 / k for k in range(1, 15)]
        voiced = sum(weight * np.sin(k * phase) for k, weight in enumerate(loud, 1))
        noisy = np.sin(np.pi * clock / seconds) * voiced / 5 + 1e-3 * random.standard_normal(len(clock))
        waves.append(noisy.astype(np.float32))
    return waves


Judge = Callable[[list[np.ndarray], list[np.ndarray]], tuple[str, bool]]  # what is found, what torchaudio gives


def log_mel(waves: list[np.ndarray]) -> tuple[str, Ways, Judge]:
    dithered, front_end = LogMel(AUDIO), LogMel(replace(AUDIO, dither=0))
    options: dict[str, Any] = {
        "n_fft": AUDIO.n_fft,
        "hop_length": AUDIO.hop_length,
        "n_mels": AUDIO.n_mels,
        "pad_mode": "constant",
    }
    transform = torchaudio.transforms.MelSpectrogram(
        AUDIO.sample_rate, f_min=AUDIO.fmin, f_max=AUDIO.highest, norm="slaney", mel_scale="slaney", **options
    )

    def theirs(wave: np.ndarray) -> np.ndarray:
        band: dict[str, Any] = {"fmin": AUDIO.fmin, "fmax": AUDIO.highest}
        power = librosa.feature.melspectrogram(y=wave, sr=AUDIO.sample_rate, **band, **options)
        return np.log(np.maximum(power, AUDIO.floor)).T

    def judge(found: list[np.ndarray], wanted: list[np.ndarray]) -> tuple[str, bool]:
        most = max(float(abs(a - b).max()) for a, b in zip(found, wanted, strict=True))
        equal = all(np.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(found, wanted, strict=True))
        return f"at most {most:.1e} nats apart", equal

    tensors = [torch.from_numpy(wave) for wave in waves]
    ways: Ways = {
        "torchaudio": lambda i: transform(tensors[i]).clamp_min(AUDIO.floor).log().T,
        "librosa": lambda i: theirs(waves[i]),
        "ours": lambda i: front_end.features(waves[i]),
        "ours, with dither": lambda i: dithered.features(waves[i]),
    }
    return "log-mel", ways, judge


def resampling(waves: list[np.ndarray]) -> tuple[str, Ways, Judge]:
    spoken = [soxr.resample(wave, AUDIO.sample_rate, RATES[0]) for wave in waves]
    tensors = [torch.from_numpy(wave) for wave in spoken]
    transform = torchaudio.transforms.Resample(*RATES)

    def judge(found: list[np.ndarray], wanted: list[np.ndarray]) -> tuple[str, bool]:
        error = energy = 0.0
        for a, b in zip(found, wanted, strict=True):
            length = min(len(a), len(b))  # they may round the number of samples differently
            error += float(np.square(a[:length] - b[:length], dtype=np.float64).sum())
            energy += float(np.square(b[:length], dtype=np.float64).sum())
        share = (error / energy) ** 0.5
        return f"{share:.2%} apart (root mean square)", share < 0.01

    ways: Ways = {
        "torchaudio": lambda i: transform(tensors[i]),
        "librosa": lambda i: librosa.resample(spoken[i], orig_sr=RATES[0], target_sr=RATES[1]),
        "ours (soxr)": lambda i: soxr.resample(spoken[i], *RATES),
    }
    return "resampling", ways, judge


def inversion(waves: list[np.ndarray]) -> tuple[str, Ways, Judge]:
    """From the magnitudes that `LogMel.invert` starts from."""
    front_end, n_fft, hop = LogMel(AUDIO), AUDIO.n_fft, AUDIO.hop_length
    wanted = [front_end.magnitude(front_end.features(wave)) for wave in waves]
    arrays = [magnitude.T.numpy() for magnitude in wanted]
    samples = [len(magnitude) * hop - hop // 2 for magnitude in wanted]

    def torchaudios(i: int) -> Tensor:
        return torchaudio.functional.griffinlim(
            wanted[i].T, front_end.window, n_fft, hop, n_fft, 1.0, ITERATIONS, MOMENTUM, samples[i], rand_init=False
        )

    def librosas(i: int) -> np.ndarray:
        options: dict[str, Any] = {
            "hop_length": hop,
            "n_fft": n_fft,
            "pad_mode": "reflect",
            "init": None,
            "length": samples[i],
        }
        return librosa.griffinlim(arrays[i], n_iter=ITERATIONS, momentum=MOMENTUM, **options)

    def convergence(found: list[np.ndarray]) -> float:
        errors = []
        for wave, magnitude in zip(found, wanted, strict=True):
            spectrum = torch.stft(torch.from_numpy(wave), n_fft, hop, window=front_end.window, return_complex=True)
            errors.append(float((spectrum.abs().T - magnitude).norm() / magnitude.norm()))
        return mean(errors)

    def judge(found: list[np.ndarray], reference: list[np.ndarray]) -> tuple[str, bool]:
        here, there = convergence(found), convergence(reference)
        return f"convergence {here:.5f} (torchaudio {there:.5f})", abs(here - there) < 0.01 * there

    ways: Ways = {
        "torchaudio": torchaudios,
        "librosa": librosas,
        "ours": lambda i: griffin_lim(wanted[i], front_end.window, hop, samples[i], ITERATIONS, MOMENTUM),
    }
    return "Griffin-Lim", ways, judge


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.speed.features")
