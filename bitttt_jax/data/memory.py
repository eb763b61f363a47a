"""Memory for weights that are read from end to end again and again."""

from __future__ import annotations

import mmap

import numpy as np

_LARGE_PAGE = 2 * 2**20


def large_buffer(size: int) -> np.ndarray:
    """Zeroed bytes in large pages, where the system has them for the asking (Linux).

    Reading weights at the full speed of the memory takes them: with small pages a core waits for
    their addresses, and fetches nothing ahead across their ends.

    Args:
      size: in bytes.

    Returns:
      uint8 `[size]`, aligned to a large page.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(size, np.uint8)
    # Private: shared memory has large pages by another setting.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, size + _LARGE_PAGE, flags=flags)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % _LARGE_PAGE
    return whole[start : start + size]
