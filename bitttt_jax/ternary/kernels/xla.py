"""The packed product in plain XLA: unpacks, and multiplies the integers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bitttt_jax.ops import quantize
from bitttt_jax.ternary.packing import PackedTernary, unpack


def matmul(x: jax.Array, weights: tuple[PackedTernary, ...]) -> tuple[jax.Array, ...]:
    """As `ternary.matmul.matmul`; weights in any layout."""
    codes, scale = quantize.int8_codes(x)
    return tuple(
        (y.astype(scale.dtype) * (scale * weight.scale)).astype(x.dtype)
        for y, weight in zip(sums(codes, weights), weights, strict=True)
    )


def sums(codes: jax.Array, weights: tuple[PackedTernary, ...]) -> tuple[jax.Array, ...]:
    """Products of int8 codes `[M, K]` and the weights' codes, int32 `[M, N]`."""
    return tuple(jnp.matmul(codes, unpack(w), preferred_element_type=jnp.int32) for w in weights)
