"""Ternary weights as Hugging Face packs them, and as our kernels read them.

Hugging Face: bytes `[N / 4, K]`; bits 2i and 2i + 1 of byte r of a column hold the weight of output
`r + i N / 4`, plus 1. Ours: `ternary.packing`, layout `i2_s`.
"""

from __future__ import annotations

import numpy as np

from bitttt_jax.data.memory import Arena
from bitttt_jax.ternary.packing import BLOCK, codes_shape

OUTPUTS_TOGETHER = 4
"""How many outputs share a byte."""
_BLOCKS_AT_ONCE = 4096  # half a megabyte, which stays in the cache
_WORDS = 4  # of 8 bytes, in a quarter of a block
_ALL_ZERO = 0x55  # four weights of 0


def to_i2_s(packed_RK: np.ndarray, arena: Arena) -> np.ndarray:
    """Codes `[N, 32 * ceil(K / 128)]` in the layout `i2_s`, out of an arena.

    Args:
      packed_RK: uint8 `[N / 4, K]`.
      arena: where they go.

    Raises:
      ValueError: a code stands for no weight.
    """
    R, K = packed_RK.shape
    if np.any(packed_RK & (packed_RK >> 1) & _ALL_ZERO):
        raise ValueError("it holds a code that is no ternary weight")
    padded = np.pad(packed_RK, ((0, 0), (0, -K % BLOCK)), constant_values=_ALL_ZERO)
    blocks = np.ascontiguousarray(padded).view(np.uint64).reshape(-1, 4 * _WORDS)
    codes = arena.empty(codes_shape((K, R * OUTPUTS_TOGETHER), "i2_s"), np.uint8)
    outputs = codes.view(np.uint64).reshape(OUTPUTS_TOGETHER, len(blocks), _WORDS)
    for start in range(0, len(blocks), _BLOCKS_AT_ONCE):
        part = slice(start, start + _BLOCKS_AT_ONCE)
        quarters = np.ascontiguousarray(blocks[part].T).reshape(4, _WORDS, -1)
        for i, output in enumerate(_transposed_fields(quarters)):
            outputs[i, part] = output.T
    return codes


def _transposed_fields(quarters: np.ndarray) -> tuple[np.ndarray, ...]:
    """For each of the four fields of a byte: those of all four quarters, the first's on top."""
    first, second, third, fourth = quarters
    low, high = _mask(0x0F), _mask(0xF0)
    four = np.uint64(4)
    # Fields 0 and 1 of two quarters in a byte, then fields 2 and 3.
    outer, inner = ((a & low) << four | (b & low) for a, b in ((first, third), (second, fourth)))
    below = _split(outer, inner)
    outer, inner = ((a & high) | (b & high) >> four for a, b in ((first, third), (second, fourth)))
    return *below, *_split(outer, inner)


def _split(outer: np.ndarray, inner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    even, odd, two = _mask(0x33), _mask(0xCC), np.uint64(2)
    return (outer & even) << two | (inner & even), (outer & odd) | (inner & odd) >> two


def _mask(byte: int) -> np.uint64:
    return np.uint64(byte * 0x0101010101010101)


def from_codes(codes_NK: np.ndarray) -> np.ndarray:
    """Packs the codes 0, 1 and 2 (uint8) of outputs, a row each: uint8 `[N / 4, K]`."""
    parts = codes_NK.reshape(OUTPUTS_TOGETHER, -1, codes_NK.shape[1])
    packed = parts[0].copy()
    for i in range(1, OUTPUTS_TOGETHER):
        packed |= parts[i] << 2 * i
    return packed
