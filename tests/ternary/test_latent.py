from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.ternary.latent import fake_quant_matmul, int8_matmul

M, K, WIDTHS = 5, 24, (7, 1, 4)
PATHS = pytest.mark.parametrize("matmul", [fake_quant_matmul, int8_matmul])


def inputs(dtype="float64") -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(0)
    x = 3 * rng.normal(size=(M, K))
    x[1] *= 30  # a token's scale is its own
    x[2] = 0
    ws = tuple(
        scale * rng.normal(size=(K, n)) for n, scale in zip(WIDTHS, (1, 30, 0.02), strict=True)
    )
    return x.astype(dtype), tuple(w.astype(dtype) for w in ws)


def dequantised_weight(w, numpy=np):
    """`round(w / mean|w|)` clipped to -1 and 1, times the mean (arXiv:2402.17764, eq. 1 to 3)."""
    mean = numpy.maximum(numpy.mean(numpy.abs(w)), 1e-5)
    return numpy.clip(numpy.round(w / mean), -1, 1) * mean


def dequantised_input(x, numpy=np):
    largest = numpy.maximum(numpy.max(numpy.abs(x), axis=-1, keepdims=True), 1e-5)
    return numpy.clip(numpy.round(x * (127 / largest)), -128, 127) * largest / 127


def straight_through_matmul(x, ws, strength=1.0):
    """The definition: `v + stop_gradient(quantised(v) - v)` for inputs and weights."""
    fake = lambda v, q: v + jax.lax.stop_gradient(strength * (q(v, jnp) - v))
    return tuple(fake(x, dequantised_input) @ fake(w, dequantised_weight) for w in ws)


def loss(matmul, x, ws):
    return sum((i + 1) * jnp.sum(jnp.log1p(y**2)) for i, y in enumerate(matmul(x, ws)))


def two_orders(matmul):
    """A function that returns outputs, gradients, and the gradients of their function."""
    first = jax.grad(functools.partial(loss, matmul), (0, 1))
    penalty = lambda *args: sum(jnp.sum(g**2) for g in jax.tree.leaves(first(*args)))
    second = jax.grad(penalty, (0, 1))
    return jax.jit(lambda x, ws: (matmul(x, ws), first(x, ws), second(x, ws)))


def assert_close(actual, expected, tolerance):
    leaves = jax.tree.leaves(actual), jax.tree.leaves(expected)
    for a, e in zip(*leaves, strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(1, np.abs(e).max()))


@PATHS
def test_numpy_agrees(matmul):
    x, ws = inputs("float32")
    expected = [dequantised_input(np.float64(x)) @ dequantised_weight(np.float64(w)) for w in ws]
    ys = jax.jit(matmul)(x, ws)
    assert [y.dtype for y in ys] == [jnp.float32] * 3
    # 24 products of floats that are rounded at 2^-24, relative to the largest.
    assert_close(ys, expected, 2e-6)


def test_outputs_and_gradients_of_both_orders_are_straight_through():
    """Of both paths to rounding in float64, thus of each other."""
    x, ws = inputs()
    with jax.enable_x64(True):
        expected = two_orders(straight_through_matmul)(x, ws)
        for matmul in (fake_quant_matmul, int8_matmul):
            assert_close(two_orders(matmul)(x, ws), expected, 1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Float32 rounds at 2^-24. Bfloat16 at 2^-9: inputs and weights of the fake-quantised product,
    # cotangents and their products in both.
    [("float32", 3e-6), ("bfloat16", 1.5e-2)],
)
def test_the_paths_agree_in_low_precision(dtype, tolerance):
    x, ws = inputs("float32")
    x = x.astype(dtype)
    probes = [np.cos(np.arange(M * n, dtype=np.float32)).reshape(M, n) for n in WIDTHS]

    @jax.jit
    def run(x, ws):
        results = []
        for matmul in (fake_quant_matmul, int8_matmul):
            ys, pullback = jax.vjp(matmul, x, ws)
            results.append((ys, pullback(tuple(map(jnp.asarray, probes)))))
        return results

    fake, exact = run(x, ws)
    assert_close(fake, exact, tolerance)
    for _, (x_gradient, w_gradients) in (fake, exact):
        assert x_gradient.dtype == dtype
        assert [g.dtype for g in w_gradients] == [jnp.float32] * 3


@PATHS
def test_first_gradients_change_with_what_is_not_quantised_as_finite_differences_say(matmul):
    """A second derivative that the straight-through estimator leaves true: by a loss's target."""
    x, ws = inputs()
    rng = np.random.default_rng(1)
    target, direction = rng.normal(size=(2, M, WIDTHS[0]))

    def gradient_along(target):
        fit = lambda x, w: jnp.sum(jnp.tanh(0.01 * matmul(x, (w,))[0] - target) ** 2)
        x_gradient, w_gradient = jax.grad(fit, (0, 1))(x, ws[0])
        return jnp.sum(jnp.sin(x_gradient)) + jnp.sum(jnp.cos(w_gradient))

    with jax.enable_x64(True):
        slope = jnp.vdot(jax.jit(jax.grad(gradient_along))(target), direction)
        at = jax.jit(lambda size: gradient_along(target + size * direction))
        difference = (at(1e-5) - at(-1e-5)) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


@PATHS
def test_weights_together_equal_weights_alone(matmul):
    x, ws = inputs("float32")
    together = jax.jit(lambda x, ws: (matmul(x, ws), jax.grad(loss, (1, 2))(matmul, x, ws)))(x, ws)

    @jax.jit
    def alone(x, ws):
        apart = lambda x, ws: tuple(matmul(x, (w,))[0] for w in ws)
        return apart(x, ws), jax.grad(loss, (1, 2))(apart, x, ws)

    assert_close(together, alone(x, ws), 1e-6)


def test_strength_mixes_float_and_quantised():
    x, ws = inputs()
    own = functools.partial(fake_quant_matmul, strength=0.3)
    definition = functools.partial(straight_through_matmul, strength=0.3)
    with jax.enable_x64(True):
        assert_close(two_orders(own)(x, ws), two_orders(definition)(x, ws), 1e-12)
        unquantised = jax.jit(functools.partial(fake_quant_matmul, strength=0.0))(x, ws)
    assert_close(unquantised, [x @ w for w in ws], 1e-14)


def test_activations_can_stay_in_float():
    x, ws = inputs()
    with jax.enable_x64(True):
        own = functools.partial(fake_quant_matmul, quantize_activations=False)
        ys, (x_gradient, w_gradients) = jax.jit(
            lambda x, ws: (own(x, ws), jax.grad(loss, (1, 2))(own, x, ws))
        )(x, ws)
    dequantised = [dequantised_weight(w) for w in ws]
    assert_close(ys, [x @ w for w in dequantised], 1e-12)
    slopes = [2 * (i + 1) * y / (1 + y**2) for i, y in enumerate(map(np.asarray, ys))]
    assert_close(x_gradient, sum(g @ w.T for g, w in zip(slopes, dequantised, strict=True)), 1e-12)
    assert_close(w_gradients, [x.T @ g for g in slopes], 1e-12)


@PATHS
def test_zeros_give_zeros_and_finite_gradients(matmul):
    x, w = np.zeros((M, K), np.float32), np.zeros((K, 3), np.float32)
    (y,), pullback = jax.vjp(jax.jit(matmul), x, (w,))
    assert not np.any(y)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(pullback((np.ones_like(y),))))
