"""Tell glibc to keep freed memory: without it, a CPU training step spends a fifth of its time on page faults."""

from __future__ import annotations

import ctypes
import sys

# mallopt's parameters (malloc.h)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Let freed blocks stay in the process, for the next tensors of the same size; returns whether that could be set.

    By default glibc gets each large tensor from the kernel and gives it back when it is freed, so every step of a
    training loop faults in the same hundreds of megabytes again, page by page. The price is that memory once used stays
    with the process. Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return False
    settings = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, (1 << 31) - 1), (_M_TOP_PAD, 1 << 26))
    return sum(mallopt(name, value) for name, value in settings) == len(settings)  # 1 means done
