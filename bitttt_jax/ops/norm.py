"""Normalisations, computed in float32 (float64 for such inputs)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bitttt_jax.ops.precision import widen


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Divides the last dimension by its root mean square, then multiplies by `scale`.

    Source: Zhang and Sennrich, arXiv:1910.07467.

    Args:
      x: `[..., D]`.
      scale: broadcastable to `x`.
      eps: added to the mean square.

    Returns:
      `[..., D]` in the type of `x`.
    """
    x32 = widen(x)
    inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * inverse * scale).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Standardises the last dimension, then multiplies by `scale` and adds `bias`.

    Source: Ba et al., arXiv:1607.06450.

    Args:
      x: `[..., D]`.
      scale: broadcastable to `x`.
      bias: broadcastable to `x`.
      eps: added to the variance.

    Returns:
      `[..., D]` in the type of `x`.
    """
    x32 = widen(x)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return (centred * inverse * scale + bias).astype(x.dtype)
