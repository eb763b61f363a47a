"""Short causal depthwise convolution with a carried tail."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bitttt_jax.ops.precision import widen


def causal_convolution(
    x_BTD: jax.Array,
    kernel_WD: jax.Array,
    bias_D: jax.Array,
    position_BT: jax.Array,
    tail_BWD: jax.Array | None = None,
) -> jax.Array:
    """Each channel's weighted sum of its last W values, never reaching before position 0.

    Args:
      x_BTD: inputs.
      kernel_WD: taps; the last one weighs the current token.
      bias_D: added to every output.
      position_BT: each token's position in its document: taps before the document are 0.
      tail_BWD: the W - 1 inputs before `x_BTD`; zeros when None.

    Returns:
      `[B, T, D]` in the type of `x_BTD`, computed in float32.
    """
    reach, length = kernel_WD.shape[0] - 1, x_BTD.shape[1]
    x = widen(x_BTD)
    if tail_BWD is None:
        padded = jnp.pad(x, ((0, 0), (reach, 0), (0, 0)))
    else:
        padded = jnp.concatenate([widen(tail_BWD), x], axis=1)
    y = x * kernel_WD[reach] + bias_D
    for back in range(1, reach + 1):
        shifted = padded[:, reach - back : reach - back + length]
        inside = (position_BT >= back)[:, :, None]
        y += jnp.where(inside, shifted, 0.0) * kernel_WD[reach - back]
    return y.astype(x_BTD.dtype)


def next_tail(x_BTD: jax.Array, length_B: jax.Array, tail_BWD: jax.Array) -> jax.Array:
    """The last W - 1 inputs after the first `length_B` tokens of `x_BTD` were read.

    Args:
      x_BTD: inputs, valid in each row up to its length.
      length_B: number of valid tokens.
      tail_BWD: the W - 1 inputs before `x_BTD`.
    """
    padded = jnp.concatenate([tail_BWD, x_BTD.astype(tail_BWD.dtype)], axis=1)
    index = length_B[:, None] + jnp.arange(tail_BWD.shape[1])
    return jnp.take_along_axis(padded, index[:, :, None], axis=1)
