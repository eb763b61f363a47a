"""Causal depthwise convolution that can be carried from call to call."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bitttt_jax import native
from bitttt_jax.layers.inputs import Sequence
from bitttt_jax.ops.convolution import causal_convolution, next_tail


class CausalConvolution(nn.Module):
    """Depthwise convolution over the last `width` tokens of the same document."""

    width: int
    implementation: native.Choice = "auto"

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, sequence: Sequence, tail_BWD: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the convolved tokens, and the new tail where one was given."""
        features = x_BTD.shape[-1]
        kernel = self.param(
            "kernel",
            nn.initializers.normal(self.width**-0.5),
            (self.width, features),
            jnp.float32,
        )
        bias = self.param("bias", nn.initializers.zeros, (features,), jnp.float32)
        y_BTD = causal_convolution(
            x_BTD, kernel, bias, sequence.position_BT, tail_BWD, implementation=self.implementation
        )
        if tail_BWD is None:
            return y_BTD, None
        return y_BTD, next_tail(x_BTD, sequence.length_B, tail_BWD)
