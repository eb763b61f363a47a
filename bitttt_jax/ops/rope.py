"""Rotary position embeddings (Su et al., arXiv:2104.09864)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax.config import RopeScalingConfig
from bitttt_jax.ops.precision import widen

NO_SCALING = RopeScalingConfig()


def frequencies(width: int, theta: float, scaling: RopeScalingConfig) -> np.ndarray:
    """Radians a position of the `width / 2` pairs of channels, float64.

    Args:
      width: of a head.
      theta: base; pair i has `theta^(-2i/width)` before scaling.
      scaling: how they are stretched (`llama3`: Grattafiori et al., arXiv:2407.21783).
    """
    half = width // 2
    plain = theta ** (-np.arange(half) / half)
    if scaling.kind == "none":
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    turns = scaling.original_context * plain / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return plain * (kept + (1 - kept) / scaling.factor)


def rope(
    x_BTHK: jax.Array,
    position_BT: jax.Array,
    theta: float,
    *,
    scaling: RopeScalingConfig = NO_SCALING,
    interleaved: bool = False,
) -> jax.Array:
    """Rotates pairs of channels by angles proportional to the position.

    Args:
      x_BTHK: queries or keys; K even.
      position_BT: integer positions.
      theta: base; pair i turns by `position * theta^(-2i/K)` radians.
      scaling: how the angles are stretched.
      interleaved: pairs are channels (2i, 2i+1); otherwise (i, i + K/2), as in Llama.

    Returns:
      The rotated array in the type of `x_BTHK`.
    """
    x = widen(x_BTHK)
    half = x.shape[-1] // 2
    frequency = jnp.asarray(frequencies(x.shape[-1], theta, scaling), x.dtype)
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
