"""Random learners and tokens, as numpy arrays, small enough for the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bitttt_jax.ttt.inner import FastNorm, FastWeights
from bitttt_jax.ttt.state import Learner, Views

HEADS, WIDTH, HIDDEN, MINI_BATCH = 2, 6, 10, 4


def learner(is_mlp: bool, dtype: str = "float64", mini_batch: int = MINI_BATCH) -> Learner:
    rng = np.random.default_rng(1)
    H, K, F = HEADS, WIDTH, HIDDEN if is_mlp else WIDTH
    fast = {"w1": rng.normal(size=(H, K, F)), "b1": rng.normal(size=(H, F))}
    if is_mlp:
        fast |= {"w2": 0.5 * rng.normal(size=(H, F, K)), "b2": rng.normal(size=(H, K))}
    norm = FastNorm(1 + 0.3 * rng.normal(size=(H, K)), 0.3 * rng.normal(size=(H, K)))
    scale_b = 1 / np.arange(1, mini_batch + 1) + 0.1 * rng.normal(size=mini_batch)
    return cast(Learner(fast, norm, scale_b), dtype)


def views(batch: int, length: int, dtype: str = "float64", seed: int = 2) -> Views:
    rng = np.random.default_rng(seed)
    query, key, value = rng.normal(size=(3, batch, length, HEADS, WIDTH))
    return cast(Views(query, key, value, rng.uniform(0, 0.3, (batch, length, HEADS))), dtype)


def learned(is_mlp: bool, batch: int) -> FastWeights:
    """Fast weights into which something has been learned."""
    rng = np.random.default_rng(3)
    initial = learner(is_mlp).fast
    return {name: w + 0.1 * rng.normal(size=(batch, *w.shape)) for name, w in initial.items()}


def cast(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda x: np.asarray(x, dtype), tree)


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Leaves agree relative to the largest number of each."""
    leaves = jax.tree.leaves(actual), jax.tree.leaves(expected)
    for a, e in zip(*leaves, strict=True):
        scale = max(1.0, float(np.max(np.abs(e), initial=0)))
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * scale)


def gradients_checked(
    loss: Callable[..., jax.Array], arguments: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Gradients of a scalar in float64, each leaf compared with finite differences along a line."""
    with jax.enable_x64(True):
        both = jax.jit(jax.value_and_grad(loss, tuple(range(len(arguments)))))
        _, gradients = both(*arguments)
        leaves, structure = jax.tree.flatten(arguments)
        for i, gradient in enumerate(jax.tree.leaves(gradients)):
            direction = np.random.default_rng(i).normal(size=gradient.shape)

            def at(size, i=i, direction=direction):
                moved = [*leaves[:i], leaves[i] + size * direction, *leaves[i + 1 :]]
                return float(both(*jax.tree.unflatten(structure, moved))[0])

            # Of fourth order, so that neither curvature nor rounding shows.
            step = 1e-4
            near, far = at(step) - at(-step), at(2 * step) - at(-2 * step)
            slope = (8 * near - far) / (12 * step)
            np.testing.assert_allclose(np.vdot(gradient, direction), slope, rtol=1e-6, atol=1e-8)
    return jax.tree.map(np.asarray, gradients)
