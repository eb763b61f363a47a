"""How the layers make their linear projections."""

from __future__ import annotations

from bitttt_jax.config import ModelConfig
from bitttt_jax.layers.bitlinear import BitLinear


def projection(config: ModelConfig, features: int, ternary: bool, name: str) -> BitLinear:
    """A `BitLinear` of the given width, set up as the model's configuration says."""
    return BitLinear(features, ternary, config.ternary, config.norm_eps, config.init_std, name=name)
