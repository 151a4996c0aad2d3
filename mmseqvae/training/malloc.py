"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # numbers of mallopt(3)


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed for what is allocated next; whether it will. Other libraries are not asked.

    Blocks of more than 32 MiB would go back to the system as soon as they are free, and every step of a training on
    long sequences would fetch them anew, page by page. From now on the process keeps the most it ever needed.
    """
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return False
    return bool(library.mallopt(MMAP_MAX, 0)) and bool(library.mallopt(TRIM_THRESHOLD, -1))
