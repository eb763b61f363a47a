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
    x = widen(x_BTHK)
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=x.dtype) / half)
    angle = position_BT[:, :, None, None].astype(x.dtype) * frequency
    # Without the barrier XLA fuses sine and cosine into every use of them, once for each head.
    cos, sin = jax.lax.optimization_barrier((jnp.cos(angle), jnp.sin(angle)))
    if interleaved:
        pairs = x.reshape(*x.shape[:-1], half, 2)
        first, second = pairs[..., 0], pairs[..., 1]
    else:
        first, second = x[..., :half], x[..., half:]
    rotated = (first * cos - second * sin, second * cos + first * sin)
    if interleaved:
        y = jnp.stack(rotated, axis=-1).reshape(x.shape)
    else:
        y = jnp.concatenate(rotated, axis=-1)
    return y.astype(x_BTHK.dtype)
