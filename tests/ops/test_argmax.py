from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.errors import ConfigError
from bitttt_jax.ops.argmax import argmax
from tests.kernels import needs_kernels

IMPLEMENTATIONS = pytest.mark.parametrize(
    "implementation", [pytest.param("cpu", marks=needs_kernels), "xla"]
)
SHAPES = [(1, 1), (3, 5), (2, 16), (2, 8192), (3, 20_003)]


@IMPLEMENTATIONS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numpy_agrees(implementation, shape):
    rng = np.random.default_rng(0)
    compiled = jax.jit(lambda x: argmax(x, implementation=implementation))
    for low, high in ((-3, 3), (-9, -1), (0, 1)):  # many are equal, also in other tasks
        x = rng.integers(low, high, shape).astype(np.float32)
        found = compiled(x)
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, np.argmax(x, axis=1))
    x = rng.normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(compiled(x), np.argmax(x, axis=1))


@IMPLEMENTATIONS
def test_what_is_not_finite_has_its_place(implementation):
    rows = np.full((4, 40), -np.inf, np.float32)
    rows[1, 33] = -3e38
    rows[2, [7, 20]] = np.inf
    rows[3, [20, 35]] = np.inf, np.nan
    np.testing.assert_array_equal(argmax(rows, implementation=implementation), [0, 33, 7, 35])


def test_the_native_kernel_refuses_what_it_does_not_take():
    with pytest.raises(ConfigError, match="at most 64 rows"):
        argmax(jnp.ones((65, 4)), implementation="cpu")
