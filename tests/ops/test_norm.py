from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.errors import ConfigError
from bitttt_jax.ops.norm import layer_norm, rms_norm
from tests.kernels import needs_kernels

EPS = 1e-5


def numpy_rms_norm(x, scale, bias):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + EPS) * scale


def numpy_layer_norm(x, scale, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPS) * scale + bias


CASES = pytest.mark.parametrize(
    ("apply", "reference"),
    [
        (jax.jit(lambda x, scale, bias: rms_norm(x, scale, EPS)), numpy_rms_norm),
        (jax.jit(lambda x, scale, bias: layer_norm(x, scale, bias, EPS)), numpy_layer_norm),
    ],
    ids=["rms_norm", "layer_norm"],
)


def inputs() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    x = 3 * rng.normal(size=(2, 5, 16)) + 1
    x[0, 0] = 0
    return x, rng.normal(size=16), rng.normal(size=16)


@CASES
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-6), ("float64", 1e-14)])
def test_numpy_agrees(apply, reference, dtype, tolerance):
    arrays = inputs()
    with jax.enable_x64(dtype == "float64"):
        y = apply(*(a.astype(dtype) for a in arrays))
        assert y.dtype == dtype
    np.testing.assert_allclose(y, reference(*arrays), rtol=tolerance, atol=tolerance)


@CASES
def test_bfloat16_is_computed_in_float32(apply, reference):
    x, scale, bias = (a.astype(np.float32) for a in inputs())
    x = x.astype(jnp.bfloat16)
    y = apply(x, scale, bias)
    assert y.dtype == jnp.bfloat16
    wide = reference(x.astype(np.float64), scale, bias)
    np.testing.assert_allclose(np.asarray(y, np.float64), wide, rtol=2**-8, atol=1e-6)


@CASES
def test_gradient_at_zero_is_finite(apply, reference):
    _, scale, bias = (a.astype(np.float32) for a in inputs())
    gradient = jax.jit(jax.grad(lambda x: apply(x, scale, bias)[3]))(np.zeros(16, np.float32))
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


SHAPES = [(16,), (1, 1, 48), (3, 5, 2560)]


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_native_kernel_normalises_as_xla_does(shape, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(3 * rng.normal(size=shape) + 1, dtype)
    scale = jnp.asarray(rng.normal(size=shape[-1:]), jnp.float32)

    def loss(x, scale, implementation):
        y = rms_norm(x, scale, EPS, implementation=implementation)
        assert y.dtype == x.dtype
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

    outcomes = [
        jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=2)(x, scale, name)
        for name in ("cpu", "xla")
    ]
    tolerance = 1e-5 if dtype == "float32" else 2**-7
    for found, expected in zip(*map(jax.tree.leaves, outcomes), strict=True):
        floats = (np.asarray(leaf, np.float32) for leaf in (found, expected))
        np.testing.assert_allclose(*floats, rtol=tolerance, atol=tolerance)


def test_the_native_kernel_refuses_what_it_does_not_take():
    for shape in ((17, 16), (2, 24)):
        with pytest.raises(ConfigError, match="at most 16 rows"):
            rms_norm(jnp.ones(shape), jnp.ones(shape[-1]), EPS, implementation="cpu")
