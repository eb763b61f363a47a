"""Normalisation layers."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bitttt_jax.ops import norm


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last dimension of `x`."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        return norm.rms_norm(x, scale, self.eps)


class LayerNorm(nn.Module):
    """Standardisation with a learned scale and bias."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last dimension of `x`."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return norm.layer_norm(x, scale, bias, self.eps)
