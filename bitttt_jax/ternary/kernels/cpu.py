"""The packed product as native CPU code: `native/src/packed.cc`, `packed_amx.cc`.

The activations are quantised inside the call, once for all weights.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bitttt_jax.ternary.packing import BLOCK, PackedTernary

_TILE_ROWS = 16
DTYPES = (jnp.float32, jnp.bfloat16)


def matmul(x: jax.Array, weights: tuple[PackedTernary, ...]) -> tuple[jax.Array, ...]:
    """As `ternary.matmul.matmul`; `x` in one of `DTYPES`, weights in the layout `i2_s`."""
    return _call(x, weights, x.dtype)


def sums(codes: jax.Array, weights: tuple[PackedTernary, ...]) -> tuple[jax.Array, ...]:
    """As `xla.sums`, of up to 130,000 inputs: the floats that carry them are exact below 2^24."""
    plain = tuple(dataclasses.replace(w, scale=jnp.ones_like(w.scale)) for w in weights)
    return tuple(y.astype(jnp.int32) for y in _call(codes, plain, jnp.float32))


def _call(x_MK: jax.Array, weights: tuple[PackedTernary, ...], dtype) -> tuple[jax.Array, ...]:
    M, K = x_MK.shape
    rows = min(M, _TILE_ROWS) * -(-M // _TILE_ROWS)
    workspace_bytes = rows * 2 * BLOCK * -(-K // (2 * BLOCK)) + 8 * M
    results = [jax.ShapeDtypeStruct((workspace_bytes,), jnp.uint8)]
    results += [jax.ShapeDtypeStruct((M, weight.shape[1]), dtype) for weight in weights]
    call = jax.ffi.ffi_call("bitttt_packed_matmul", tuple(results), vmap_method="sequential")
    _, *products = call(
        x_MK, *(part for weight in weights for part in (weight.codes, weight.scale))
    )
    return tuple(products)
