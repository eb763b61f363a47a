"""The packed product in plain XLA: unpacks, and multiplies the integers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bitttt_jax.ops import quantize
from bitttt_jax.ternary.packing import PackedTernary, unpack


def matmul(x: jax.Array, weights: tuple[PackedTernary, ...]) -> tuple[jax.Array, ...]:
    """As `ternary.matmul.matmul`; weights in any layout."""
    codes, scale = quantize.int8_codes(x)
    outputs = []
    for weight in weights:
        sums = jnp.matmul(codes, unpack(weight), preferred_element_type=jnp.int32)
        y = sums.astype(scale.dtype) * (scale * weight.scale)
        outputs.append(y.astype(x.dtype))
    return tuple(outputs)
