"""Inputs of packed products, shared by the tests of all kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax.ternary import packing
from bitttt_jax.ternary.packing import Layout, PackedTernary


def random_product(
    M: int, K: int, widths: tuple[int, ...], dtype: str = "float32", layout: Layout = "i2_s"
) -> tuple[jax.Array, tuple[PackedTernary, ...]]:
    """Activations whose rows differ in size, and a weight for each of the widths."""
    rng = np.random.default_rng([M, K])
    x = jnp.asarray(3 * rng.normal(size=(M, K)) * 10 ** rng.uniform(-2, 2, (M, 1)), dtype)
    weights = []
    for n in widths:
        trits = rng.integers(-1, 2, (K, n)).astype(np.int8)
        weights.append(packing.pack(trits, jnp.float32(rng.uniform(0.01, 2)), layout))
    return x, tuple(weights)
