"""The C library's memory allocator, which by itself hands large tensors back to the system once they are freed."""

from __future__ import annotations

import ctypes
import os
import platform

# Numbers of these settings in glibc's malloc.h, and the names under which the environment sets them.
SETTINGS = {-1: "MALLOC_TRIM_THRESHOLD_", -3: "MALLOC_MMAP_THRESHOLD_"}
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells the allocator to keep what is freed, up to 2 GB, for the next tensors, throughout this process.

    On a CPU each step frees and asks for the same large tensors. What went back to the system comes back as pages to
    be mapped and cleared one by one, which takes a sixth of a training step on documents of 200 tokens
    (`benchmarks/roofline.py` without and with `--hand_back_memory`). `train` and the scripts call this; call it before
    a training loop of your own.

    Returns:
        Whether it was told: not if the environment has set the allocator up (`MALLOC_TRIM_THRESHOLD_` and the like),
        nor where the C library is another than glibc.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in SETTINGS.values()):
        return False
    set_option = ctypes.CDLL(None).mallopt
    return all(set_option(number, LARGEST) for number in SETTINGS)


__all__ = ["keep_freed_memory"]
