from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.ops.product import (
    matmul,
    matmul_transposed,
    shared_matmul,
    swap_last,
    transposed_matmul,
)
from tests.kernels import needs_kernels


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


PRODUCTS = pytest.mark.parametrize(
    ("product", "plain", "b"),
    [
        (matmul, lambda a, b: a @ b, normal(2, 3, 7, 4, seed=1)),
        (matmul_transposed, lambda a, b: a @ b.mT, normal(2, 3, 4, 7, seed=1)),
        (transposed_matmul, lambda a, b: a.mT @ b, normal(2, 3, 5, 4, seed=1)),
        (transposed_matmul, lambda a, b: a.mT @ b, normal(2, 3, 5, 1, seed=1)),
        (
            lambda a, bs: shared_matmul(a.reshape(-1, 7), bs),
            lambda a, bs: tuple(a.reshape(-1, 7) @ b for b in bs),
            tuple(normal(7, n, seed=n) for n in (4, 1, 6)),
        ),
    ],
    ids=["matmul", "matmul_transposed", "transposed_wide", "transposed_narrow", "shared_matmul"],
)
A = normal(2, 3, 5, 7)


def two_orders(product):
    """A function that returns the value, the gradients, and gradients of their function."""
    loss = lambda a, b: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(product(a, b)))
    first = jax.grad(loss, (0, 1))
    penalty = lambda a, b: sum(jnp.sum(jnp.cos(g)) for g in jax.tree.leaves(first(a, b)))
    second = jax.grad(penalty, (0, 1))
    return jax.jit(lambda a, b: (product(a, b), first(a, b), second(a, b)))


@PRODUCTS
def test_value_and_gradients_of_both_orders_agree_with_autodiff(product, plain, b):
    with jax.enable_x64(True):
        own, expected = two_orders(product)(A, b), two_orders(plain)(A, b)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12), own, expected
    )


@pytest.mark.parametrize("product", [matmul, matmul_transposed])
def test_no_batch_dimensions(product):
    a, b = (x.astype(np.float32) for x in (normal(5, 6), normal(6, 6, seed=1)))
    y = jax.jit(product)(a, b)
    np.testing.assert_allclose(y, a @ (b if product is matmul else b.T), rtol=1e-5, atol=1e-5)


@PRODUCTS
def test_bfloat16_accumulates_in_float32_and_keeps_the_types_of_gradients(product, plain, b):
    a, b = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (A, b))
    wide = jax.tree.map(lambda x: x.astype(np.float32), (a, b))

    @jax.jit
    def value_and_gradients(a, b):
        y, pullback = jax.vjp(product, a, b)
        return y, pullback(jax.tree.map(jnp.ones_like, y))

    y, gradients = value_and_gradients(a, b)
    assert {leaf.dtype for leaf in jax.tree.leaves(y)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("bfloat16")}
    # Products of bfloat16 are exact in float32: only the order of the sum differs.
    jax.tree.map(
        lambda y, e: np.testing.assert_allclose(y, e, rtol=1e-6, atol=1e-5),
        y,
        jax.jit(plain)(*wide),
    )


def test_swap_last():
    x, weights = normal(2, 3, 4).astype(np.float32), normal(2, 4, 3).astype(np.float32)
    y, pullback = jax.vjp(jax.jit(swap_last), x)
    np.testing.assert_array_equal(y, x.swapaxes(1, 2))
    np.testing.assert_array_equal(pullback(weights)[0], weights.swapaxes(1, 2))


@needs_kernels
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 37, 5), (3, 64, 300), (8, 96, 128), (2, 257, 33), (2, 77, 2100), (1, 3000, 48)],
)
def test_few_rows_of_bfloat16_are_products_of_floats(shape):
    M, K, N = shape
    rng = np.random.default_rng(shape)
    a, b = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((M, K), (K, N)))
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    for found in (
        jax.jit(matmul)(a, b),
        jax.jit(matmul_transposed)(a, b.T),
        jax.jit(shared_matmul)(a, (b,))[0],
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * K**0.5)
    assert "bitttt_few_rows_matmul" in jax.jit(matmul).lower(a, b).as_text()
    many = jnp.zeros((9, K), jnp.bfloat16)
    assert "bitttt_few_rows_matmul" not in jax.jit(matmul).lower(many, b).as_text()
