"""The linear layer of BitNet b1.58."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bitttt_jax.config import TernaryConfig
from bitttt_jax.layers.norm import RMSNorm
from bitttt_jax.ops import product
from bitttt_jax.ternary.matmul import fake_quant_matmul, int8_matmul


class BitLinear(nn.Module):
    """`x @ kernel` with a ternary kernel and 8-bit inputs; latent weights are float32.

    Attributes:
      features: output width.
      ternary: False is an ordinary float product of the same parameters.
      config: how ternary products are computed.
      norm_eps: of the norm inside, where the config has one.
      init_std: standard deviation of the initial latent weights.
    """

    features: int
    ternary: bool
    config: TernaryConfig
    norm_eps: float
    init_std: float

    @nn.compact
    def __call__(self, x: jax.Array, strength: jax.Array | float = 1.0) -> jax.Array:
        """Maps `[..., D]` to `[..., features]` in the type of `x`.

        Args:
          x: inputs.
          strength: how far weights and activations are quantised, from 0 to 1 (`fake_quant` only).
        """
        kernel = self.param(
            "kernel",
            nn.initializers.normal(self.init_std),
            (x.shape[-1], self.features),
            jnp.float32,
        )
        if self.ternary and self.config.inner_norm:
            x = RMSNorm(self.norm_eps, name="norm")(x)
        rows = x.reshape(-1, x.shape[-1])
        if not self.ternary:
            y = product.matmul(rows, kernel.astype(x.dtype))
        elif self.config.path == "int8":
            y = int8_matmul(rows, kernel)
        else:
            y = fake_quant_matmul(
                rows, kernel, strength=strength, quantize_activations=self.config.activations
            )
        return y.astype(x.dtype).reshape(*x.shape[:-1], self.features)
