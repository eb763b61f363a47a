"""AdamW and Muon, with weight decay and learning rate applied by the step's own count."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bitttt_jax.config import OptimConfig
from bitttt_jax.models.parameters import is_projection, is_table, leaf_paths

PyTree = Any

_MUON_MOMENTUM = 0.95
# Jordan et al., https://kellerjordan.github.io/posts/muon: the steepest polynomial at zero whose
# iterates stay near 1.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5
# Root mean square of Muon's updates: Adam's, so that both share a learning rate (Liu et al.,
# arXiv:2502.16982).
_MUON_RMS = 0.2


def has_weight_decay(path: str) -> bool:
    """Whether a parameter decays: matrices do; norms, convolutions and fast weights don't."""
    return is_projection(path) or is_table(path)


def make_direction(config: OptimConfig) -> optax.GradientTransformation:
    """Turns gradients into descent directions; `apply` scales them.

    `adamw` takes Adam's direction for every parameter, `muon` only for those that aren't hidden
    matrices. optax's own Muon has Nesterov momentum in its Adam too, and constants in its state.
    """
    adam = optax.adam(1.0, config.beta1, config.beta2, config.eps)
    if config.name == "adamw":
        return adam
    muon = optax.chain(
        optax.trace(_MUON_MOMENTUM, nesterov=True),
        optax.stateless_with_tree_map(lambda g, _: -_orthogonalised(g, config.eps)),
    )

    def kind(path: str) -> str:
        return "muon" if is_projection(path) else "adam"

    return optax.partition(
        {"muon": muon, "adam": adam}, lambda params: jax.tree.map(kind, leaf_paths(params))
    )


def apply(params: PyTree, directions: PyTree, lr: jax.Array, weight_decay: jax.Array) -> PyTree:
    """New parameters: `p + lr * (direction - weight_decay * p)`, decaying matrices only."""

    def update(path: str, p: jax.Array, d: jax.Array) -> jax.Array:
        if has_weight_decay(path):
            d -= weight_decay * p
        return p + lr * d

    return jax.tree.map(update, leaf_paths(params), params, directions)


def clip(grads: PyTree, norm: jax.Array, limit: float) -> PyTree:
    """Scales gradients of a known global norm down to a norm of `limit`; 0 leaves them."""
    if not limit:
        return grads
    scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda g: g * scale, grads)


def _orthogonalised(g: jax.Array, eps: float) -> jax.Array:
    """Moves the singular values of every matrix of `[..., M, N]` near 1, then scales to the RMS."""
    M, N = g.shape[-2:]
    x = g.mT if M > N else g  # the smaller Gram matrix
    x /= jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + eps
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return _MUON_RMS * max(M, N) ** 0.5 * (x.mT if M > N else x)
