"""Small models whose parameters are all random, none at its special initial value."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from bitttt_jax.config import ModelConfig, TernaryConfig, TTTConfig
from bitttt_jax.models import transformer

VOCABULARY = 11


def config(ternary: TernaryConfig | None = None, ttt: Any = None, **settings: Any) -> ModelConfig:
    """A tiny model in float64; without `ternary` its weights aren't quantised."""
    return ModelConfig(
        **{
            "vocab_size": VOCABULARY,
            "dim": 8,
            "num_heads": 2,
            "num_layers": 2,
            "mlp_dim": 12,
            "compute_dtype": "float64",
            "ternary": ternary or TernaryConfig(mixer=False, mlp=False),
            "ttt": TTTConfig(**{"mini_batch": 4, "mlp_ratio": 2, "remat_group": 2, **(ttt or {})}),
            **settings,
        }
    )


def params(config: ModelConfig, dtype: str = "float64") -> Any:
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        values = rng.normal(size=leaf.shape)
        if name.endswith("['scale']"):
            return 1 + 0.3 * values
        return values * (0.1 if "token_scale" in name else 0.5)

    drawn = jax.tree_util.tree_map_with_path(draw, shapes)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), drawn)


def tokens(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCABULARY, (batch, length))
