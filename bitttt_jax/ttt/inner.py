"""The inner model, its loss and its read-out: the definition that every other form must equal.

Fast weights are a dict of float32 arrays: `w1 [K, K]`, `b1 [K]` for the linear inner model, and
`w1 [K, F]`, `b1 [F]`, `w2 [F, K]`, `b2 [K]` for the MLP. Functions here see one head of one
sequence; callers map them over batch and heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bitttt_jax.ops.norm import layer_norm

FastWeights = Mapping[str, jax.Array]

NORM_EPS = 1e-6


class FastNorm(NamedTuple):
    """LayerNorm after the inner model; learned by the outer loop only."""

    scale: jax.Array
    bias: jax.Array


def predict(fast: FastWeights, x: jax.Array) -> jax.Array:
    """The inner model f: linear, or a two-layer MLP (tanh GELU) when `fast` holds `w2`.

    Args:
      fast: fast weights of one head.
      x: `[..., K]`.

    Returns:
      `[..., K]`.
    """
    hidden = x @ fast["w1"] + fast["b1"]
    if "w2" not in fast:
        return hidden
    return jax.nn.gelu(hidden, approximate=True) @ fast["w2"] + fast["b2"]


def reconstruction_loss(
    fast: FastWeights, norm: FastNorm, key: jax.Array, value: jax.Array
) -> jax.Array:
    """Half the squared distance of `LN(f(key))` from `value - key` (section 2.3 and 2.7).

    Args:
      fast: fast weights of one head.
      norm: its LayerNorm.
      key: `[K]`, the token's corrupted view.
      value: `[K]`, its label.
    """
    reconstruction = layer_norm(predict(fast, key), norm.scale, norm.bias, NORM_EPS)
    return 0.5 * jnp.sum((reconstruction - (value - key)) ** 2)


def read_out(fast: FastWeights, norm: FastNorm, query: jax.Array) -> jax.Array:
    """The layer's output for a query: `query + LN(f(query))`."""
    return query + layer_norm(predict(fast, query), norm.scale, norm.bias, NORM_EPS)


def token_scales(offset_b: jax.Array) -> jax.Array:
    """Scale of the summed gradients at each place in a mini-batch: `max(0, 1/i + offset_i)`.

    Args:
      offset_b: learned offsets, 0 at the start: then the scales turn sums into running means.

    >>> token_scales(jnp.zeros(4)).tolist()
    [1.0, 0.5, 0.3333333432674408, 0.25]
    """
    place = jnp.arange(1, offset_b.shape[0] + 1, dtype=offset_b.dtype)
    return jnp.maximum(1 / place + offset_b, 0)
