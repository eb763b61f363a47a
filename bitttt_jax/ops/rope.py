"""Rotary position embeddings (Su et al., arXiv:2104.09864)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bitttt_jax.ops.precision import widen


def rope(
    x_BTHK: jax.Array, position_BT: jax.Array, theta: float, *, interleaved: bool = False
) -> jax.Array:
    """Rotates pairs of channels by angles proportional to the position.

    Args:
      x_BTHK: queries or keys; K even.
      position_BT: integer positions.
      theta: base; pair i turns by `position * theta^(-2i/K)` radians.
      interleaved: pairs are channels (2i, 2i+1); otherwise (i, i + K/2), as in Llama.

    Returns:
      The rotated array in the type of `x_BTHK`.
    """
    half = x_BTHK.shape[-1] // 2
    x = widen(x_BTHK)
    frequency = theta ** (-jnp.arange(half, dtype=x.dtype) / half)
    angle_BTHK = position_BT[:, :, None, None].astype(x.dtype) * frequency
    cos, sin = jnp.cos(angle_BTHK), jnp.sin(angle_BTHK)
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    rotated = (first * cos - second * sin, second * cos + first * sin)
    if interleaved:
        y = jnp.stack(rotated, axis=-1).reshape(x.shape)
    else:
        y = jnp.concatenate(rotated, axis=-1)
    return y.astype(x_BTHK.dtype)
