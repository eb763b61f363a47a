"""Embedding tables and output heads, as floats or as int8 rows with a scale each."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bitttt_jax import native
from bitttt_jax.ops import quantize
from bitttt_jax.ops.precision import widen
from bitttt_jax.ops.product import matmul_transposed

_KERNEL_WIDTH = 64  # of which the native kernel takes multiples


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedTable:
    """A `[V, D]` table whose rows are int8 times a scale: a pytree of two arrays."""

    codes: jax.Array
    """int8 `[V, D]`."""
    scale: jax.Array
    """float32 `[V]`."""


Table = jax.Array | QuantizedTable


def quantize_table(table_VD: jax.Array) -> QuantizedTable:
    """Rounds each row to int8 at the scale of its largest magnitude.

    >>> quantize_table(jnp.array([[1.0, -0.5]])).codes.tolist()
    [[127, -64]]
    """
    codes, scale = quantize.int8_codes(table_VD)
    return QuantizedTable(codes, scale[:, 0])


def look_up(table: Table, index: jax.Array) -> jax.Array:
    """Rows of a table: `[..., D]` for indices `[...]`."""
    if isinstance(table, QuantizedTable):
        rows = jnp.take(table.codes, index, axis=0).astype(jnp.float32)
        return rows * jnp.take(table.scale, index)[..., None]
    return jnp.take(table, index, axis=0)


def project(x_ND: jax.Array, table: Table, *, implementation: native.Choice = "auto") -> jax.Array:
    """`x @ table^T` in float32.

    With a quantised table `x` is rounded to int8 a row too, and the integers are multiplied and
    summed exactly.

    Args:
      x_ND: hidden states.
      table: `[V, D]`; as floats it is rounded to the type of `x_ND`.
      implementation: of the product with a quantised table.

    Returns:
      `[N, V]`.

    Raises:
      ConfigError: the implementation asked for doesn't run here.
    """
    if not isinstance(table, QuantizedTable):
        return matmul_transposed(x_ND, table.astype(x_ND.dtype))
    (N, D), V = x_ND.shape, table.codes.shape[0]
    fits = D % _KERNEL_WIDTH == 0 and x_ND.dtype in (jnp.float32, jnp.bfloat16)
    needs = f"float32 or bfloat16 and a width that is a multiple of {_KERNEL_WIDTH}"
    if native.choose(implementation, fits, needs) == "cpu":
        results = (
            jax.ShapeDtypeStruct((N * (D + 4),), jnp.uint8),  # working memory
            jax.ShapeDtypeStruct((N, V), jnp.float32),
        )
        call = jax.ffi.ffi_call("bitttt_table_matmul", results, vmap_method="sequential")
        return call(x_ND, table.codes, table.scale)[1]
    codes, scale = quantize.int8_codes(widen(x_ND))
    sums = jax.lax.dot_general(
        codes, table.codes, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
    )
    return sums.astype(jnp.float32) * (scale * table.scale)
