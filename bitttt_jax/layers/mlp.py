"""Gated MLP."""

from __future__ import annotations

import flax.linen as nn
import jax

from bitttt_jax.config import ModelConfig
from bitttt_jax.layers.bitlinear import BitLinear, apply_together
from bitttt_jax.layers.inputs import Anneal
from bitttt_jax.layers.norm import RMSNorm
from bitttt_jax.ops.gate import gated


class GatedMLP(nn.Module):
    """`down(act(gate(x)) * up(x))` with SiLU (SwiGLU) or squared ReLU."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, anneal: Anneal) -> jax.Array:
        """Maps `[B, T, D]` to `[B, T, D]`."""
        config, ternary = self.config, self.config.ternary.mlp
        wide = lambda name: BitLinear(config, config.mlp_dim, ternary, name=name)
        gate, up = apply_together((wide("gate"), wide("up")), x_BTD, anneal.quantization)
        hidden = gated(gate, up, "silu" if config.mlp == "swiglu" else "relu2")
        if config.norm_placement == "subln":
            hidden = RMSNorm(config.norm_eps, name="sub_norm")(hidden)
        down = BitLinear(config, config.dim, ternary, "rows", name="down")
        return down(hidden, anneal.quantization)
