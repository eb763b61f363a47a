"""Ternary weights in 2 bits and less: layouts, and the packed weight that stands in for an array.

A layout says where the codes of a `[K, N]` matrix lie (a code is the weight plus one: 0, 1 or 2):

- `i2_s`: `[N, 32 * ceil(K / 128)]` bytes, a row an output. In the 32 bytes of each block of 128
  inputs, byte j holds the codes j, 32 + j, 64 + j and 96 + j, from its highest two bits down; what
  is missing in the last block is 1. This is how GGUF files of BitNet models lay a tensor,
  and what the CPU kernels read.
- `rows4`: `[ceil(K / 4), N]` bytes; byte r of a column holds the weights of the inputs 4r to 4r + 3
  as two's complement, from its lowest two bits up; 0 is what is missing. A Pallas kernel unpacks it
  by a cast.
- `base3`: `[N, ceil(K / 5)]` bytes, a row an output; a byte is the number whose base-3 digits are
  five codes, the first the most significant; 1 is what is missing. 1.6 bits a weight, for storage.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax.ops import quantize

Layout = Literal["i2_s", "rows4", "base3"]
LAYOUTS: tuple[Layout, ...] = ("i2_s", "rows4", "base3")

BLOCK = 128
INPUTS_TOGETHER: dict[Layout, int] = {"i2_s": BLOCK, "rows4": 4, "base3": 5}
"""How many inputs share bytes: codes can be divided between two such groups."""
_BLOCK_SHIFTS = np.arange(6, -2, -2, dtype=np.uint8)
_ROW_SHIFTS = np.arange(0, 8, 2, dtype=np.uint8)
_POWERS_OF_3 = np.array([81, 27, 9, 3, 1], np.uint8)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedTernary:
    """A `[K, N]` ternary matrix in packed form: a pytree of two arrays.

    In front of both arrays' dimensions may lie those of a stack of matrices.
    """

    codes: jax.Array
    """uint8, as the layout says."""
    scale: jax.Array
    """float32 `[]`: what the weights -1, 0 and 1 are multiplied by."""
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})
    """K and N."""
    layout: Layout = dataclasses.field(metadata={"static": True})

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scale."""
        return self.codes.nbytes + self.scale.nbytes


def codes_shape(shape: tuple[int, int], layout: Layout) -> tuple[int, int]:
    """Shape of the codes of a `[K, N]` matrix.

    >>> codes_shape((300, 8), "i2_s"), codes_shape((300, 8), "base3")
    ((8, 96), (8, 60))
    """
    K, N = shape
    if layout == "i2_s":
        return N, BLOCK // 4 * -(-K // BLOCK)
    return (-(-K // 4), N) if layout == "rows4" else (N, -(-K // 5))


def pack(weight: jax.Array, scale: jax.Array, layout: Layout = "i2_s") -> PackedTernary:
    """Packs weights that are ternary already.

    Args:
      weight: int8 `[..., K, N]` of -1, 0 and 1.
      scale: float32 `[...]`.
      layout: where the codes go.
    """
    *lead, K, N = weight.shape
    if layout == "rows4":
        fields = _padded(weight, 4, 0).reshape(*lead, -1, 4, N)
        codes = jnp.sum((fields.astype(jnp.uint8) & 3) << _ROW_SHIFTS[:, None], -2, jnp.uint8)
        return PackedTernary(codes, scale, (K, N), layout)
    wide = BLOCK if layout == "i2_s" else 5
    by_output = (_padded(weight, wide, 0) + 1).astype(jnp.uint8).swapaxes(-1, -2)
    if layout == "i2_s":
        fields = by_output.reshape(*lead, N, -1, 4, BLOCK // 4)
        codes = jnp.sum(fields << _BLOCK_SHIFTS[:, None], axis=-2, dtype=jnp.uint8)
    else:
        fields = by_output.reshape(*lead, N, -1, 1, 5)
        codes = jnp.sum(fields * _POWERS_OF_3, axis=-1, dtype=jnp.uint8)
    return PackedTernary(codes.reshape(*lead, N, -1), scale, (K, N), layout)


def quantize_and_pack(w: jax.Array, layout: Layout = "i2_s") -> PackedTernary:
    """Makes latent weights `[K, N]` ternary at the scale of their mean magnitude, and packs them.

    >>> quantize_and_pack(jnp.ones((256, 4))).codes.nbytes
    256
    """
    return pack(*quantize.ternary_codes(w), layout)


def unpack(packed: PackedTernary) -> jax.Array:
    """The weights -1, 0 and 1 as int8 `[..., K, N]`."""
    K, N = packed.shape
    codes, lead = packed.codes, packed.codes.shape[:-2]
    if packed.layout == "rows4":
        # The upper bits fall off on the left, and the shift to the right repeats the sign.
        fields = (codes[..., None, :] << (6 - _ROW_SHIFTS)[:, None]).astype(jnp.int8) >> 6
        return fields.reshape(*lead, -1, N)[..., :K, :]
    if packed.layout == "i2_s":
        blocks = codes.reshape(*lead, N, -1, 1, BLOCK // 4)
        fields = (blocks >> _BLOCK_SHIFTS[:, None]) & 3
    else:
        fields = codes[..., None] // _POWERS_OF_3 % 3
    by_output = fields.reshape(*lead, N, -1)[..., :K]
    return by_output.swapaxes(-1, -2).astype(jnp.int8) - 1


def convert_layout(packed: PackedTernary, layout: Layout) -> PackedTernary:
    """The same weights in another layout."""
    if packed.layout == layout:
        return packed
    return pack(unpack(packed), packed.scale, layout)


def _padded(weight: jax.Array, multiple: int, value: int) -> jax.Array:
    widths = [(0, 0)] * (weight.ndim - 2) + [(0, -weight.shape[-2] % multiple), (0, 0)]
    return jnp.pad(weight, widths, constant_values=value)
