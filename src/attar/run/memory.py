"""Keep freed memory in the process, so that every step does not ask the system for the same pages again."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD = -1  # M_TRIM_THRESHOLD of glibc's malloc.h
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD
_KEEP = 1 << 30  # bytes


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed blocks of up to a gibibyte instead of giving them back; return whether it listened.

    By default glibc maps every block above some hundred kilobytes afresh and unmaps it when it is freed, so the
    activations of a training step are faulted in, page by page and zeroed, in every step: about 30 % of the time of a
    step of a small network. With both thresholds raised, blocks come from the heap, which keeps its size. The peak
    stays what the largest step needs, but less of it goes back to the system in between. It changes no number. Where
    the C library is not glibc nothing happens.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _KEEP)) and bool(mallopt(_TRIM_THRESHOLD, _KEEP))
