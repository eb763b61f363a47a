from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.ops.quantize import fake_quantize, int8_codes, straight_through, ternary_codes

RANDOM = np.random.default_rng(0).normal(size=(24, 16)).astype(np.float32)


@pytest.mark.parametrize(
    "w",
    [
        RANDOM,
        RANDOM * 1e-3,
        RANDOM[0],
        np.zeros((3, 4), np.float32),
        np.full((2, 2), 1e-7, np.float32),
        np.array([[1e30, 1.0], [-1.0, 0.0]], np.float32),
        np.array([[0.5, -0.5], [1.5, -1.5]], np.float32),  # mean 1: two ties at half
    ],
    ids=["random", "small", "vector", "zeros", "below_floor", "huge", "ties"],
)
def test_ternary_codes_are_those_of_the_paper(w):
    codes, scale = jax.jit(ternary_codes)(w)
    mean = max(np.abs(w.astype(np.float64)).mean(), 1e-5)
    assert codes.dtype == jnp.int8 and scale.shape == () and scale.dtype == jnp.float32
    np.testing.assert_allclose(scale, mean, rtol=1e-6)
    np.testing.assert_array_equal(codes, np.clip(np.round(w / mean), -1, 1))


@pytest.mark.parametrize(
    "x",
    [
        RANDOM,
        RANDOM.reshape(2, 3, 4, 16),
        np.zeros((2, 4), np.float32),
        np.full((1, 4), 1e-7, np.float32),
        np.array([[1e30, 1.0, -1.0], [3.0, -3.0, 0.0]], np.float32),
        np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -127]], np.float32),
    ],
    ids=["random", "rank_4", "zeros", "below_floor", "huge", "ties"],
)
def test_int8_codes_are_those_of_the_paper(x):
    codes, scale = jax.jit(int8_codes)(x)
    largest = np.maximum(np.abs(x.astype(np.float64)).max(-1, keepdims=True), 1e-5)
    assert codes.dtype == jnp.int8 and scale.dtype == jnp.float32
    np.testing.assert_allclose(scale, largest / 127, rtol=1e-6)
    np.testing.assert_array_equal(codes, np.clip(np.round(x * (127 / largest)), -128, 127))


def test_ties_round_to_the_even_code():
    codes, _ = jax.jit(int8_codes)(np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5], np.float32))
    assert codes.tolist() == [127, 0, 2, 2, 0, -2]
    codes, _ = jax.jit(ternary_codes)(np.array([0.5, -0.5, 1.5, -1.5], np.float32))
    assert codes.tolist() == [0, 0, 1, -1]


def test_rows_have_scales_of_their_own():
    louder = RANDOM * np.where(np.arange(24) == 0, 1000, 1)[:, None].astype(np.float32)
    codes, scale = jax.jit(int8_codes)(RANDOM)
    again, scale_again = jax.jit(int8_codes)(louder)
    np.testing.assert_array_equal(codes, again)
    np.testing.assert_array_equal(scale[1:], scale_again[1:])
    np.testing.assert_array_equal(np.abs(codes).max(-1), 127)


@pytest.mark.parametrize("quantise", [ternary_codes, int8_codes])
def test_bfloat16_is_read_as_float32(quantise):
    x = RANDOM.astype(jnp.bfloat16)
    own, wide = jax.jit(lambda x: (quantise(x), quantise(x.astype(jnp.float32))))(x)
    for a, b in zip(own, wide, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_straight_through_returns_the_value_exactly():
    value = jnp.array([1e-8, 0.3, 7.0])
    np.testing.assert_array_equal(straight_through(jnp.array([1e8, 1.0, -3.0]), value), value)


def test_straight_through_has_the_gradient_of_the_identity_at_any_order():
    """A function of `round(x)` has the derivatives that it has at the rounded point."""
    x, y = jnp.float32(1.3), jnp.float32(1.0)
    plain = lambda y: jnp.sin(2 * y)
    rounded = lambda x: plain(straight_through(x, jnp.round(x)))
    derivatives = lambda f: (jax.grad(f), jax.grad(jax.grad(f)), jax.jacfwd(jax.grad(jax.grad(f))))
    own, expected = jax.jit(
        lambda: tuple(
            [derivative(at) for derivative in derivatives(f)]
            for f, at in [(rounded, x), (plain, y)]
        )
    )()
    np.testing.assert_allclose(own, expected, rtol=1e-6)


def test_clipped_values_have_a_gradient_too():
    quantised = lambda w: fake_quantize(w, *ternary_codes(w)) * np.arange(4)
    w = np.array([10.0, 0.1, -0.1, 0.2], np.float32)
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(quantised(w))))(w)
    np.testing.assert_array_equal(gradient, [0, 1, 2, 3])


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("is_traced", [False, True])
def test_strength_is_the_line_from_float_to_quantised(strength, is_traced):
    @jax.jit
    def run(x, traced):
        codes, scale = int8_codes(x)
        apply = lambda x: fake_quantize(x, codes, scale, traced if is_traced else strength)
        value, pullback = jax.vjp(apply, x)
        return codes, scale, value, pullback(jnp.cos(x))[0]

    codes, scale, value, gradient = run(RANDOM, strength)
    expected = (1 - strength) * RANDOM + strength * (np.asarray(codes) * np.asarray(scale))
    np.testing.assert_allclose(value, expected, rtol=0, atol=5e-7)
    np.testing.assert_allclose(gradient, np.cos(RANDOM), rtol=0, atol=1e-6)
