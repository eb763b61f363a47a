"""The kernels of the dual form against the XLA code that they stand in for."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax.ops.norm import layer_norm
from bitttt_jax.ttt.dual import dual
from bitttt_jax.ttt.inner import NORM_EPS, FastNorm, token_scales
from bitttt_jax.ttt.state import Learner, StreamState, Views


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    return (scale * rng.normal(size=shape)).astype(np.float32)


def ttt_arguments(B: int, T: int, H: int, K: int, b: int, F: int = 0) -> tuple[Any, ...]:
    """A learner, tokens of which the last ones are padding, and learned fast weights."""

    def fast(*lead: int, seed: int) -> dict[str, np.ndarray]:
        shapes = {"w1": (K, F or K), "b1": (F or K,), "w2": (F, K), "b2": (K,)}
        return {
            name: normal(*lead, *shape, scale=0.1, seed=seed)
            for name, shape in shapes.items()
            if F or name.endswith("1")
        }

    norm = FastNorm(1 + normal(H, K, scale=0.2), normal(H, K, scale=0.2, seed=1))
    scale = np.asarray(token_scales(normal(b, scale=0.02)))
    rate = np.abs(normal(B, T, H)) / K
    rate[:, -(b // 3) or T :] = 0
    views = Views(*(normal(B, T, H, K, seed=seed) for seed in range(3)), rate)
    return Learner(fast(H, seed=1), norm, scale), views, fast(B, H, seed=2)


def read(learner, views, start, restart_BN, implementation: str, group: int):
    """Outputs after the norm, and the last fast weights."""
    state = StreamState(start, jax.tree.map(jnp.zeros_like, start))
    z, state = dual(
        learner,
        views,
        state,
        restart_BN,
        remat_group=group,
        implementation=implementation,
    )
    return layer_norm(z, *learner.norm, NORM_EPS), state.fast


def with_gradients(function, *arguments):
    """Outputs, and gradients of a sum of them with random weights."""
    outputs, pull_back = jax.vjp(function, *arguments)
    leaves, structure = jax.tree.flatten(outputs)
    weights = [jnp.asarray(normal(*y.shape, seed=9), y.dtype) for y in leaves]
    return outputs, pull_back(jax.tree.unflatten(structure, weights))


def check_close(actual: Any, expected: Any, tolerance: float) -> None:
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float32), np.asarray(e, np.float32)
        assert np.max(np.abs(a - e)) <= tolerance * max(1e-3, float(np.max(np.abs(e))))


def restarts(B: int, count: int) -> np.ndarray:
    return np.random.default_rng(5).random((B, count)) < 0.4


def check_ttt(kernel: str, B: int, T: int, H: int, K: int, b: int, group: int, F: int = 0) -> None:
    """Outputs, last fast weights, and the gradients of all inputs."""
    arguments = ttt_arguments(B, T, H, K, b, F)

    @functools.partial(jax.jit, static_argnames="implementation")
    def run(implementation, *arguments):
        function = lambda *a: read(*a, restarts(B, T // b), implementation, group)
        return with_gradients(function, *arguments)

    check_close(run(kernel, *arguments), run("xla", *arguments), 1e-5)
