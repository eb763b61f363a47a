"""Memory for weights that are read from end to end again and again."""

from __future__ import annotations

import math
import mmap

import numpy as np
import numpy.typing as npt

_LARGE_PAGE = 2 * 2**20
_ALIGNMENT = 64


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


class Arena:
    """Gives out parts of large buffers: many arrays that share large pages.

    Args:
      piece: size of a buffer, in bytes; what is larger gets one of its own.
    """

    def __init__(self, piece: int = 64 * 2**20):
        self._piece = piece
        self._rest = np.zeros(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        """A zeroed array, aligned to 64 bytes."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        padded = size + -size % _ALIGNMENT
        if padded > len(self._rest):
            if padded >= self._piece:
                return large_buffer(size).view(dtype).reshape(shape)
            self._rest = large_buffer(self._piece)
        part, self._rest = self._rest[:size], self._rest[padded:]
        return part.view(dtype).reshape(shape)
