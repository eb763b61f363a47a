"""BitNet b1.58 quantisers and the straight-through estimator.

Weights become {-1, 0, +1} times one scale per tensor (absmean), activations int8 times one scale
per token (absmax). Sources: arXiv:2402.17764 section 2, and the 2024 training notes of its authors.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from bitttt_jax.ops.precision import widen

# Smallest mean and maximum, as in the published code: an all-zero tensor has a finite scale.
SCALE_FLOOR = 1e-5
INT8_MAX = 127


@jax.custom_jvp
def straight_through(x: jax.Array, value: jax.Array) -> jax.Array:
    """`value` in the forward pass, the gradient of the identity to `x` in the backward pass.

    Unlike `x + stop_gradient(value - x)` the forward value is exact. Differentiable any number of
    times, forwards and backwards. Source: Bengio et al., arXiv:1308.3432.

    Args:
      x: where the gradient goes.
      value: what is returned; same shape and type as `x`.
    """
    del x
    return value


@straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    return straight_through(*primals), tangents[0]


def ternary_codes(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rounds a weight tensor to {-1, 0, +1} at the scale of its mean magnitude.

    Args:
      w: weights of any shape, read as float32.

    Returns:
      int8 codes of the shape of `w`, and the float32 scalar by which they are multiplied.

    >>> codes, scale = ternary_codes(jnp.array([[1.0, -0.2], [0.1, -0.7]]))
    >>> codes.tolist(), round(float(scale), 6)
    ([[1, 0], [0, -1]], 0.5)
    """
    w = widen(w)
    scale = jnp.maximum(jnp.mean(jnp.abs(w)), SCALE_FLOOR)
    codes = jnp.clip(jnp.round(w * (1 / scale)), -1, 1)
    return codes.astype(jnp.int8), scale


def int8_codes(x: jax.Array, axis: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Rounds activations to int8 at the scale of the largest magnitude of each token.

    Args:
      x: activations `[..., D]`.
      axis: the mesh axis whose devices each have a part of D, in a function that is mapped over it.

    Returns:
      int8 codes `[..., D]`, and float32 scales `[..., 1]` by which they are multiplied.
    """
    x = widen(x)
    largest = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), SCALE_FLOOR)
    if axis is not None:
        largest = lax.pmax(largest, axis)
    codes = jnp.clip(jnp.round(x * (INT8_MAX / largest)), -INT8_MAX - 1, INT8_MAX)
    return codes.astype(jnp.int8), largest * (1 / INT8_MAX)


def fake_quantize(
    x: jax.Array, codes: jax.Array, scale: jax.Array, strength: jax.Array | float = 1.0
) -> jax.Array:
    """Dequantised `codes * scale` in the type of `x`, with the gradient of the identity to `x`.

    Args:
      x: the unquantised tensor.
      codes: its integer codes.
      scale: what the codes are multiplied by, broadcastable to `x`.
      strength: 1 is fully quantised, 0 returns `x`; between them, the line from one to the other
        (quantisation warm-up).
    """
    value = (codes.astype(scale.dtype) * scale).astype(x.dtype)
    if not (isinstance(strength, float) and strength == 1.0):
        value = (x + strength * (value - x)).astype(x.dtype)
    return straight_through(x, lax.stop_gradient(value))
