"""AdamW and Muon, with weight decay and learning rate applied by the step's own count."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bitttt_jax.config import OptimConfig
from bitttt_jax.models.parameters import is_projection, is_table, leaf_paths

PyTree = Any


def has_weight_decay(path: str) -> bool:
    """Whether a parameter decays: matrices do; norms, convolutions and fast weights don't."""
    return is_projection(path) or is_table(path)


def make_direction(config: OptimConfig) -> optax.GradientTransformation:
    """Turns gradients into descent directions; `apply` scales them.

    Muon's directions have the root mean square of Adam's (0.2), so that both share a learning
    rate (Liu et al., arXiv:2502.16982).
    """
    if config.name == "adamw":
        return optax.adam(1.0, config.beta1, config.beta2, config.eps)

    def dimensions(params: PyTree) -> PyTree:
        spec = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
        return jax.tree.map(lambda path: spec if is_projection(path) else None, leaf_paths(params))

    return optax.contrib.muon(
        1.0,
        beta=0.95,
        eps=config.eps,
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=dimensions,
        consistent_rms=0.2,
    )


def apply(params: PyTree, directions: PyTree, lr: jax.Array, weight_decay: jax.Array) -> PyTree:
    """New parameters: `p + lr * (direction - weight_decay * p)`, decaying matrices only."""

    def update(path, p, d):
        if has_weight_decay(path):
            d -= weight_decay * p
        return p + lr * d

    return jax.tree.map(update, leaf_paths(params), params, directions)


def clip(grads: PyTree, norm: jax.Array, limit: float) -> PyTree:
    """Scales gradients down to a global norm of `limit`; 0 leaves them."""
    if not limit:
        return grads
    scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda g: g * scale, grads)
