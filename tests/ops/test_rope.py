from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.config import RopeScalingConfig
from bitttt_jax.ops.rope import frequencies, rope

THETA = 100.0
PAIRINGS = pytest.mark.parametrize("interleaved", [False, True])


@functools.partial(jax.jit, static_argnums=2)
def rotate(x_BTHK, position_BT, interleaved: bool):
    return rope(x_BTHK, position_BT, THETA, interleaved=interleaved)


def rotate_complex(x_BTHK: np.ndarray, position_BT: np.ndarray, interleaved: bool) -> np.ndarray:
    """A pair of channels is a complex number, times `exp(i * angle)`."""
    width = x_BTHK.shape[-1]
    even, odd = np.arange(0, width, 2), np.arange(1, width, 2)
    low, high = np.arange(width // 2), np.arange(width // 2, width)
    real, imaginary = (even, odd) if interleaved else (low, high)
    turned = np.empty_like(x_BTHK)
    for pair, (r, i) in enumerate(zip(real, imaginary, strict=True)):
        angle = position_BT * THETA ** (-2 * pair / width)
        number = (x_BTHK[..., r] + 1j * x_BTHK[..., i]) * np.exp(1j * angle)[..., None]
        turned[..., r], turned[..., i] = number.real, number.imag
    return turned


def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 5, 3, 8)), rng.integers(0, 50, size=(2, 5))


@PAIRINGS
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-13)])
def test_complex_numbers_agree(interleaved, dtype, tolerance):
    x, position = inputs()
    with jax.enable_x64(dtype == "float64"):
        y = rotate(x.astype(dtype), position, interleaved)
        assert y.dtype == dtype
    expected = rotate_complex(x, position, interleaved)
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance)


@PAIRINGS
def test_scores_depend_on_the_distance_only(interleaved):
    x, position = inputs()
    y = [
        np.asarray(rotate(x.astype(np.float32), position + shift, interleaved))
        for shift in (0, 16, np.eye(2, 5, dtype=int))
    ]
    same, shifted, stretched = (np.einsum("bthk,bshk->bhts", a, a) for a in y)
    np.testing.assert_allclose(same, shifted, rtol=0, atol=1e-4)
    assert np.abs(same - stretched).max() > 0.1


@PAIRINGS
def test_bfloat16_is_computed_in_float32(interleaved):
    x, position = inputs()
    x = x.astype(jnp.bfloat16)
    y = rotate(x, position, interleaved)
    assert y.dtype == jnp.bfloat16
    expected = rotate_complex(x.astype(np.float64), position, interleaved)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=2e-5)


def test_stretched_angles():
    plain = frequencies(8, 1e4, RopeScalingConfig())
    np.testing.assert_allclose(plain, [1, 0.1, 0.01, 0.001])
    linear = frequencies(8, 1e4, RopeScalingConfig("linear", factor=4.0))
    np.testing.assert_allclose(linear, plain / 4)
    # 1,000 tokens are 159, 16, 1.6 and 0.16 turns: kept, kept, in between and divided.
    scaling = RopeScalingConfig("llama3", 8.0, 1.0, 4.0, original_context=1000)
    share = (10 / (2 * np.pi) - 1) / 3
    stretched = [1, 0.1, 0.01 * (share + (1 - share) / 8), 0.001 / 8]
    np.testing.assert_allclose(frequencies(8, 1e4, scaling), stretched)
