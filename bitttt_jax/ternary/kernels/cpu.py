"""The packed product as native CPU code: `native/src/packed.cc`, `packed_amx.cc`.

The activations are quantised inside the call, once for all weights.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bitttt_jax.ternary.packing import BLOCK, PackedTernary

_TILE_ROWS = 16
DTYPES = (jnp.float32, jnp.bfloat16)


def matmul(x: jax.Array, weights: tuple[PackedTernary, ...]) -> tuple[jax.Array, ...]:
    """As `ternary.matmul.matmul`; `x` in one of `DTYPES`, weights in the layout `i2_s`."""
    M, K = x.shape
    rows = min(M, _TILE_ROWS) * -(-M // _TILE_ROWS)
    workspace_bytes = rows * 2 * BLOCK * -(-K // (2 * BLOCK)) + 8 * M
    results = [jax.ShapeDtypeStruct((workspace_bytes,), jnp.uint8)]
    results += [jax.ShapeDtypeStruct((M, weight.shape[1]), x.dtype) for weight in weights]
    call = jax.ffi.ffi_call("bitttt_packed_matmul", tuple(results), vmap_method="sequential")
    _, *products = call(x, *(part for weight in weights for part in (weight.codes, weight.scale)))
    return tuple(products)
