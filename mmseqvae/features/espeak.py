"""Paired speech without a download: words spoken by espeak-ng, in processes of its own.

espeak-ng is GPL-3 and comes with the optional extra `synth`; this library never loads it. This same file, run as a
script, is the worker that does: utterances go in as JSON, WAV files come out. A fresh worker speaks each shard of
`SHARD` utterances in order, seeded, because espeak-ng carries state from one utterance to the next: only so is the
result bit-identical whenever the utterances are, however many workers run (two threads in one process would abort it).
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from tqdm import tqdm

FORMAT = 1  # to be raised whenever a change to this file makes the same utterances sound otherwise, for caches to see
SHARD = 100  # utterances a worker process; changing it changes the recordings
VOLUME = 40  # espeak-ng clips some voices at its default of 100
PEAK = 0.5  # of full scale, for every recording
FLOOR = 5e-4  # standard deviation of white noise, -60 dB of the peak: no room is digitally silent
SILENCE = 0.01  # of the peak (-40 dB): a 10 ms frame below this is silent
MARGIN = 0.02  # seconds kept before the first and after the last frame that is not silent


@dataclass(frozen=True)
class Utterance:
    """What is said and how. `voice`: an espeak-ng language, or language+variant ("en-us+f2"); `speed` in words a minute
    (80 to 450); `pitch` from 0 to 99, 50 being the voice's own."""

    text: str
    voice: str
    speed: int = 160
    pitch: int = 50

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("an utterance needs a text")
        if not (80 <= self.speed <= 450 and 0 <= self.pitch <= 99):
            raise ValueError(f"speed must lie in 80..450 and pitch in 0..99, got {self.speed} and {self.pitch}")


def synthesise(jobs: Mapping[str, Utterance], folder: Path, rate: int = 8000, processes: int = 2) -> list[Path]:
    """Speak every utterance of `jobs` (file stem -> utterance) to `folder`/<stem>.wav and return these paths in order.

    Mono 16-bit WAV at `rate` Hz, silence trimmed to 20 ms at both ends, peak 0.5. Bit-identical for the same jobs.
    Raises ModuleNotFoundError without the `synth` extra, ValueError for an unknown voice, RuntimeError where a worker
    fails.
    """
    data = espeak_data()
    for voice in {utterance.voice for utterance in jobs.values()}:
        check_voice(voice, data)
    folder.mkdir(parents=True, exist_ok=True)
    names = list(jobs)
    shards = [names[start : start + SHARD] for start in range(0, len(names), SHARD)]
    lock = Lock()  # the bar is moved by one thread a worker
    with tqdm(total=len(names), unit=" words", desc="speak") as bar, ThreadPoolExecutor(processes) as pool:

        def spoken() -> None:
            with lock:
                bar.update()

        orders = [
            {"folder": str(folder), "rate": rate, "jobs": {name: asdict(jobs[name]) for name in shard}}
            for shard in shards
        ]
        for _ in pool.map(lambda order: run_worker(order, spoken), orders):
            pass  # waits, and raises what a worker raised
    return [folder / f"{name}.wav" for name in names]


def run_worker(order: dict[str, object], spoken: Callable[[], None]) -> None:
    """Run this file as a script on one shard; `spoken` is called after each utterance."""
    # -P: the package's own folder must not come first in the worker's search path.
    with tempfile.TemporaryFile("w+") as complaints:
        worker = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        with worker:
            try:
                worker.stdin.write(json.dumps(order))
                worker.stdin.close()
            except BrokenPipeError:
                pass  # it died early: its complaint is raised below
            for _ in worker.stdout:
                spoken()
        if worker.returncode:
            complaints.seek(0)
            raise RuntimeError(f"espeak-ng failed (exit status {worker.returncode}): {complaints.read().strip()}")


def espeak_data() -> Path:
    """The folder of espeak-ng's voices. Raises ModuleNotFoundError that says how to install it."""
    found = importlib.util.find_spec("espeakng_loader")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("synthetic speech needs the extra `synth`: pip install 'mmseqvae[synth]'")
    return Path(found.origin).parent / "espeak-ng-data"


def check_voice(voice: str, data: Path) -> None:
    """Raise ValueError unless `voice` exists: for an unknown variant espeak-ng would silently take the plain voice."""
    language, _, variant = voice.partition("+")
    languages = {file.name.lower(): file.name for file in (data / "lang").rglob("*") if file.is_file()}
    if language.lower() not in languages:
        raise ValueError(
            f"voice {voice!r}: no language {language!r} in espeak-ng; it has {', '.join(sorted(languages))}"
        )
    variants = sorted(file.name for file in (data / "voices" / "!v").iterdir())
    if variant and variant not in variants:
        raise ValueError(f"voice {voice!r}: no variant {variant!r} in espeak-ng; it has {', '.join(variants)}")


def finish(spoken: npt.NDArray[np.int16], source_rate: int, rate: int, name: str) -> npt.NDArray[np.float32]:
    """Samples as they are stored: resampled to `rate` Hz, trimmed, scaled to the peak, with the floor of noise."""
    wave = soxr.resample(spoken.astype(np.float32) / 32768, source_rate, rate)
    wave = trim(wave, rate)
    noise = np.random.default_rng(list(name.encode())).normal(0, FLOOR, len(wave))
    return (wave * (PEAK / np.abs(wave).max()) + noise).astype(np.float32)


def trim(wave: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.float32]:
    """`wave` from 20 ms before its first to 20 ms after its last 10 ms frame above -40 dB of the peak.

    Raises ValueError where the wave is silent throughout.
    """
    frame, margin = rate // 100, round(MARGIN * rate)
    wave = np.pad(wave, (0, -len(wave) % frame))
    loud = np.flatnonzero(np.abs(wave).reshape(-1, frame).max(1) > SILENCE * np.abs(wave).max(initial=0))
    if not len(loud):
        raise ValueError("espeak-ng made no sound")
    # Padding first gives every recording the same margin, also where espeak-ng starts or ends at once.
    return np.pad(wave, margin)[loud[0] * frame : (loud[-1] + 1) * frame + 2 * margin]


def work() -> None:
    """Speak the shard given as JSON on standard input, printing each name when its file is in place (worker only)."""
    import espeakng_loader

    order = json.load(sys.stdin)
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    chunks: list[npt.NDArray[np.int16]] = []

    # int callback(short *samples, int count, espeak_EVENT *events); 0 means go on.
    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(samples: ctypes._Pointer[ctypes.c_short], count: int, events: int) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    synchronous, rate_id, volume_id, pitch_id, from_character, utf8 = 2, 1, 2, 3, 1, 1  # espeak-ng's speak_lib.h
    source_rate = library.espeak_Initialize(synchronous, 0, espeakng_loader.get_data_path().encode(), 0)
    if source_rate <= 0:
        raise SystemExit("espeak_Initialize found no voices")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # else breath and roughness are seeded with the time of day
    library.espeak_SetSynthCallback(collect)
    for name, job in order["jobs"].items():
        chunks.clear()
        text = job["text"].encode()
        failed = library.espeak_SetVoiceByName(job["voice"].encode())
        failed = failed or library.espeak_SetParameter(rate_id, job["speed"], 0)
        failed = failed or library.espeak_SetParameter(volume_id, VOLUME, 0)
        failed = failed or library.espeak_SetParameter(pitch_id, job["pitch"], 0)
        failed = failed or library.espeak_Synth(text, len(text) + 1, 0, from_character, 0, utf8, None, None)
        if failed:
            raise SystemExit(f"{name}: espeak-ng answers {failed} to {job}")
        spoken = np.concatenate(chunks) if chunks else np.zeros(0, np.int16)
        try:
            wave = finish(spoken, source_rate, order["rate"], name)
        except ValueError as error:
            raise SystemExit(f"{name}: {error} for {job}") from error
        target = Path(order["folder"], f"{name}.wav")
        part = target.with_suffix(".part")
        soundfile.write(part, wave, order["rate"], subtype="PCM_16", format="WAV")
        os.replace(part, target)
        print(name, flush=True)


if __name__ == "__main__":
    work()
