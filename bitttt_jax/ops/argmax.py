"""The index of the largest value."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bitttt_jax import native

_KERNEL_ROWS = 64


def argmax(x_BV: jax.Array, *, implementation: native.Choice = "auto") -> jax.Array:
    """The first of the largest values of each row; NaN is larger than any number.

    Args:
      x_BV: float32.
      implementation: `cpu` takes few rows at a time.

    Returns:
      int32 `[B]`.

    Raises:
      ConfigError: the implementation asked for doesn't run here.
    """
    B, vocab = x_BV.shape
    fits = x_BV.dtype == jnp.float32 and 0 < B <= _KERNEL_ROWS and 0 < vocab < 2**31
    if native.choose(implementation, fits, f"at most {_KERNEL_ROWS} rows of float32") == "cpu":
        result = jax.ShapeDtypeStruct((B,), jnp.int32)
        return jax.ffi.ffi_call("bitttt_argmax", result, vmap_method="sequential")(x_BV)
    # By maxima of integers: XLA's of floats are slow.
    order_BV = ordered(x_BV)
    is_most = order_BV == jnp.max(order_BV, axis=1, keepdims=True)
    return jnp.min(jnp.where(is_most, jnp.arange(vocab, dtype=jnp.int32), vocab), axis=1)


def ordered(values: jax.Array) -> jax.Array:
    """Integers in the order of some float32 values."""
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
