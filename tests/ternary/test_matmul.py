"""The packed product: every implementation against the integers of numpy, bit for bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.errors import ConfigError
from bitttt_jax.ternary import packing
from bitttt_jax.ternary.latent import int8_matmul
from bitttt_jax.ternary.matmul import matmul
from bitttt_jax.ternary.packing import LAYOUTS, PackedTernary
from tests.kernels import needs_kernels
from tests.ternary.products import random_product

# Rows, inputs, outputs of each weight: of decoding and of prefill, whole and ragged.
SHAPES = [
    (1, 256, (8,)),
    (1, 2560, (640, 160, 160)),
    (1, 128, (4,)),  # half of a vector of codes
    (1, 384, (7, 1)),
    (3, 688, (5, 33)),  # the last block isn't full
    (4, 2560, (640, 33)),
    (8, 384, (70,)),
    (15, 130, (6,)),
    (16, 256, (32,)),
    (17, 384, (40, 3)),
    (40, 129, (16,)),
    (100, 640, (70,)),
    (33, 1, (2,)),
]
IMPLEMENTATIONS = [
    "xla",
    pytest.param("cpu", marks=needs_kernels),
]


def integer_reference(x, weight: PackedTernary) -> np.ndarray:
    """Quantises, multiplies and scales with numpy, in the order that the contract says."""
    rows = np.asarray(x.astype(jnp.float32))
    largest = np.maximum(np.abs(rows).max(-1, keepdims=True), np.float32(1e-5))
    codes = np.round(rows * (np.float32(127) / largest)).astype(np.int32)
    sums = codes @ np.asarray(packing.unpack(weight)).astype(np.int32)
    scale = largest * np.float32(1 / 127) * np.asarray(weight.scale)
    return np.asarray(jnp.asarray(sums.astype(np.float32) * scale).astype(x.dtype))


def assert_same(implementation: str, y, expected):
    """Bit for bit; XLA may round the scales' product in another order."""
    if implementation == "cpu":
        np.testing.assert_array_equal(y, expected)
    tolerance = 5e-7 if y.dtype == jnp.float32 else 2**-8
    floats = (np.asarray(x, np.float32) for x in (y, expected))
    np.testing.assert_allclose(*floats, rtol=tolerance, atol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_integers(implementation, dtype, shape):
    x, weights = random_product(*shape, dtype)
    ys = jax.jit(lambda x, w: matmul(x, w, implementation=implementation))(x, weights)
    for y, weight in zip(ys, weights, strict=True):
        assert y.dtype == dtype
        assert_same(implementation, y, integer_reference(x, weight))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_give_the_same_product(layout):
    x, weights = random_product(5, 300, (9, 4), layout=layout)
    for y, weight in zip(matmul(x, weights), weights, strict=True):
        assert_same("xla", y, integer_reference(x, weight))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_it_is_what_training_computes(implementation):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(20, 256)), jnp.float32)
    latent = tuple(jnp.asarray(rng.normal(size=(256, n)), jnp.float32) for n in (48, 16))
    packed = tuple(packing.quantize_and_pack(w) for w in latent)
    ys = jax.jit(lambda x: matmul(x, packed, implementation=implementation))(x)
    for y, expected in zip(ys, jax.jit(int8_matmul)(x, latent), strict=True):
        assert_same("xla", y, expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_of_zeros_and_extreme_values(implementation):
    _, (weight,) = random_product(1, 256, (16,))
    x = np.zeros((3, 256), np.float32)
    x[1] = 1e36
    x[2, ::2] = 1e-30
    (y,) = matmul(jnp.asarray(x), [weight], implementation=implementation)
    np.testing.assert_array_equal(y[0], 0)
    assert_same(implementation, y, integer_reference(jnp.asarray(x), weight))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("rows", [1, 20])
def test_one_bad_row_leaves_the_others_alone(implementation, rows):
    x, (weight,) = random_product(rows + 1, 256, (16,))
    x = x.at[rows, 7].set(jnp.inf)
    (y,) = matmul(x, [weight], implementation=implementation)
    assert not np.isfinite(np.asarray(y[rows])).any()
    assert_same(implementation, y[:rows], integer_reference(x[:rows], weight))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_gradient_is_straight_through(implementation):
    x, weights = random_product(6, 300, (9, 4))
    probes = [np.random.default_rng(n).normal(size=(6, n)).astype(np.float32) for n in (9, 4)]

    def loss(x):
        ys = matmul(x, weights, implementation=implementation)
        return sum(jnp.sum(y * p) for y, p in zip(ys, probes, strict=True))

    expected = sum(
        p @ (np.asarray(packing.unpack(w)).astype(np.float32) * np.asarray(w.scale)).T
        for p, w in zip(probes, weights, strict=True)
    )
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(x), expected, rtol=0, atol=1e-4)


def test_shapes_that_do_not_fit_are_refused():
    x, weights = random_product(2, 256, (8,))
    with pytest.raises(ValueError, match=r"x is \(2, 128\) and a weight \(256, 8\)"):
        matmul(x[:, :128], weights)


def test_the_kernel_refuses_what_it_does_not_take():
    x, weights = random_product(2, 256, (8,), layout="rows4")
    with pytest.raises(ConfigError, match="layout `i2_s`"):
        matmul(x, weights, implementation="cpu")
