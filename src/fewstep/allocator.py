"""Make glibc keep the memory that a training step frees, so that the next step can reuse it.

glibc returns large blocks to the system as soon as they are freed. A training step on the CPU frees
and allocates buffers of the same sizes again and again, and each time the kernel has to map and
clear their pages.
"""

import ctypes
import mmap
import platform
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
HUGE_PAGE = 2 << 20
HEAP = 1 << 30
"""Bytes of the heap that may use huge pages. Only pages that are used take memory."""


_state = {"keeps": False}


def keeps_freed_memory() -> bool:
    """Whether `keep_freed_memory` took effect in this process."""
    return _state["keeps"]


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, in huge pages, until this process ends.

    It has an effect only on Linux with glibc, and not on machines with a GPU, where training does
    not compute in this memory. Call it early: memory that is already in the heap does not change.
    """
    has_gpu = any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or has_gpu:
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # keep the free end of the heap
    libc.mallopt(M_MMAP_MAX, 0)  # take large blocks from the heap too
    block = libc.malloc(HEAP)
    if not block:
        return
    start = -(-block // HUGE_PAGE) * HUGE_PAGE
    libc.madvise(start, (block + HEAP - start) // HUGE_PAGE * HUGE_PAGE, mmap.MADV_HUGEPAGE)
    libc.free(block)
    _state["keeps"] = True
