"""One thread, fixed seeds and drawn examples that repeat, so that a test that fails once fails again."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=20, database=None)
settings.load_profile("deterministic")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 words, 2 voices: of each 5 takes to test on, 5 to validate with and 7 to train on."""
    folder = tmp_path_factory.mktemp("digits") / "recordings"
    folder.mkdir()
    random = np.random.default_rng(0)
    for digit in range(3):
        for speaker in ("ann", "bob"):
            for take in range(17):
                time = np.arange(int(random.integers(900, 1400))) / 8000
                tone = 300 + 700 * digit + 40 * (speaker == "bob")
                wave = 0.3 * np.sin(2 * np.pi * tone * time) + 0.01 * random.standard_normal(len(time))
                soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", wave, 8000)
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder.parent / "sums").write_text("".join(sums))
    return folder
