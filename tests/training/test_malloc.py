"""What is freed stays with the process once that was asked for."""

import platform
import subprocess
import sys

import pytest

from mmseqvae.training import malloc as memory

RESIDENT = """
import sys
import torch
from mmseqvae.training.malloc import keep_freed_memory
assert not int(sys.argv[1]) or keep_freed_memory()
def faults():
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**25)
before = faults()
torch.ones(2**24)  # an aligned block of the same size need not fit where one was freed
print(faults() - before)
"""


def faults(keep: bool) -> int:
    """Pages that are fetched for 64 MiB where 128 were freed just before."""
    command = [sys.executable, "-c", RESIDENT, str(int(keep))]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is not glibc")
def test_freed_memory_is_used_again() -> None:
    kept, given_back = faults(True), faults(False)
    assert kept < given_back / 4


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not memory.keep_freed_memory()
