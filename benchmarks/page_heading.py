"""What stands above every table: the command that made it, the machine, the versions and the date."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import torch


def heading(title: str, command: str, seed: int) -> list[str]:
    return [
        f"# {title}",
        "",
        f"`{command}`",
        "",
        f"{time.strftime('%Y-%m-%d')}, {processor()} with {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}, seed {seed}.",
        "",
    ]


def processor() -> str:
    """The processor's own name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def has_bf16() -> bool:
    """Whether the processor computes in bf16, as oneDNN sees it; torch emulates it elsewhere, slowly."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
