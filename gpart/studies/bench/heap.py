"""Freed memory stays with the process while steps are timed.

The C library gives the top of its heap back to the system when enough of it is free, and what lies at the top is luck: a
training step of RoBERTa-base at 8 x 64 tokens then fetches its activations anew in 0 to 35,000 page faults, 0 to 4 % of its
time, one method more and the other less, in this process and not in the next (measured, docs/performance.md).
"""

from __future__ import annotations

import ctypes
import sys

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_ALL, _MOST = (1 << 31) - 1, 32 << 20  # an int's largest; the largest block that glibc takes from its heap


def keep_freed_memory() -> bool:
    """Tells the allocator so, for the rest of the process.

    Returns:
        Whether it did: glibc does.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_TRIM, _ALL)) and bool(library.mallopt(_MMAP, _MOST))
