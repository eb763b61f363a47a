from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from bitttt_jax.errors import ConfigError
from bitttt_jax.ops.gate import gated
from tests.kernels import needs_kernels

REFERENCES = {
    "silu": lambda gate: gate * expit(gate),
    "relu2": lambda gate: np.maximum(gate, 0) ** 2,
    "gelu": lambda gate: gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))),
}
ACTIVATIONS = pytest.mark.parametrize("activation", REFERENCES)
IMPLEMENTATIONS = pytest.mark.parametrize(
    "implementation", [pytest.param("cpu", marks=needs_kernels), "xla"]
)
SHAPES = [(16,), (3, 1, 48), (16, 6912)]  # of the last, several tasks


def inputs(shape: tuple[int, ...], dtype) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    gate, x = 4 * rng.normal(size=shape), rng.normal(size=shape)
    gate.flat[:6] = 0, -0.0, 30, -30, 1e-8, -1e-8
    return jnp.asarray(gate, dtype), jnp.asarray(x, dtype)


@ACTIVATIONS
@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numpy_agrees(activation, implementation, dtype, shape):
    gate, x = inputs(shape, dtype)
    y = jax.jit(lambda gate, x: gated(gate, x, activation, implementation=implementation))(gate, x)
    assert y.dtype == dtype
    expected = REFERENCES[activation](np.asarray(gate, np.float64)) * np.asarray(x, np.float64)
    tolerance = 1e-5 if dtype == "float32" else 2**-6
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=tolerance, atol=tolerance)


@needs_kernels
@ACTIVATIONS
def test_the_native_kernel_has_the_gradient_of_the_plain_function(activation):
    gate, x = inputs((2, 48), jnp.float32)

    def loss(gate, x, implementation):
        return jnp.sum(jnp.sin(gated(gate, x, activation, implementation=implementation)))

    found, expected = (
        jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)(gate, x, name) for name in ("cpu", "xla")
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@ACTIVATIONS
@IMPLEMENTATIONS
def test_what_is_not_a_number_stays_so(activation, implementation):
    gate = jnp.full(16, jnp.nan)
    assert np.all(np.isnan(gated(gate, jnp.ones(16), activation, implementation=implementation)))


def test_the_native_kernel_refuses_what_it_does_not_take():
    for shape in ((17, 16), (2, 20), (0, 16)):
        with pytest.raises(ConfigError, match="at most 16 rows"):
            gated(jnp.ones(shape), jnp.ones(shape), "silu", implementation="cpu")
