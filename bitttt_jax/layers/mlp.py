"""Gated MLP."""

from __future__ import annotations

import flax.linen as nn
import jax

from bitttt_jax.config import ModelConfig
from bitttt_jax.layers.inputs import Anneal
from bitttt_jax.layers.norm import RMSNorm
from bitttt_jax.layers.projection import projection


class GatedMLP(nn.Module):
    """`down(act(gate(x)) * up(x))` with SiLU (SwiGLU) or squared ReLU."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, anneal: Anneal) -> jax.Array:
        """Maps `[B, T, D]` to `[B, T, D]`."""
        config, ternary = self.config, self.config.ternary.mlp
        gate = projection(config, config.mlp_dim, ternary, "gate")(x_BTD, anneal.quantization)
        up = projection(config, config.mlp_dim, ternary, "up")(x_BTD, anneal.quantization)
        gated = jax.nn.silu(gate) if config.mlp == "swiglu" else jax.nn.relu(gate) ** 2
        hidden = gated * up
        if config.norm_placement == "subln":
            hidden = RMSNorm(config.norm_eps, name="sub_norm")(hidden)
        return projection(config, config.dim, ternary, "down")(hidden, anneal.quantization)
