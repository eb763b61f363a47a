from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.ops import convolution

WIDTH, CHANNELS = 4, 3
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(WIDTH, CHANNELS)).astype(np.float32)
BIAS = RNG.normal(size=CHANNELS).astype(np.float32)


next_tail = jax.jit(convolution.next_tail)


def convolve(x: np.ndarray, position_BT: np.ndarray, tail: np.ndarray | None = None) -> np.ndarray:
    run = jax.jit(convolution.causal_convolution)
    return np.asarray(run(x, KERNEL, BIAS, position_BT, tail))


def document(x_TD: np.ndarray) -> np.ndarray:
    """The definition, one document at a time."""
    y = np.tile(BIAS, (len(x_TD), 1))
    for t in range(len(x_TD)):
        for back in range(min(WIDTH, t + 1)):
            y[t] += KERNEL[WIDTH - 1 - back] * x_TD[t - back]
    return y


def tokens(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(batch, length, CHANNELS)).astype(np.float32)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_one_document_a_row(length):
    x = tokens(2, length)
    y = convolve(x, np.tile(np.arange(length), (2, 1)))
    np.testing.assert_allclose(y, [document(row) for row in x], rtol=0, atol=2e-6)


def test_packed_documents_do_not_see_each_other():
    x, lengths = tokens(1, 12), [5, 1, 2, 4]
    position = np.concatenate([np.arange(n) for n in lengths])[None]
    parts = np.split(x[0], np.cumsum(lengths)[:-1])
    expected = np.concatenate([document(part) for part in parts])
    np.testing.assert_allclose(convolve(x, position)[0], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("splits", [[1] * 9, [2, 1, 6], [4, 5], [8, 1]])
def test_a_carried_tail_equals_one_call(splits):
    x, tail, outputs, start = tokens(2, 9), np.zeros((2, WIDTH - 1, CHANNELS), np.float32), [], 0
    for length in splits:
        part = x[:, start : start + length]
        position = np.tile(start + np.arange(length), (2, 1))
        outputs.append(convolve(part, position, tail))
        tail = next_tail(part, np.full(2, length), tail)
        start += length
    whole = convolve(x, np.tile(np.arange(9), (2, 1)))
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), whole, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(tail, x[:, -(WIDTH - 1) :])


def test_a_tail_of_ragged_rows_holds_the_last_valid_inputs():
    x, tail = tokens(3, 5), 100 + tokens(3, WIDTH - 1)
    after = np.asarray(next_tail(x, np.array([0, 2, 5]), tail))
    np.testing.assert_array_equal(after[0], tail[0])
    np.testing.assert_array_equal(after[1], [tail[1, 2], x[1, 0], x[1, 1]])
    np.testing.assert_array_equal(after[2], x[2, 2:])


def test_a_stale_tail_is_not_seen_by_a_new_document():
    x, tail = tokens(1, 4), np.full((1, WIDTH - 1, CHANNELS), 1e6, np.float32)
    y = convolve(x, np.arange(4)[None], tail)
    np.testing.assert_allclose(y[0], document(x[0]), rtol=0, atol=2e-6)


def test_bfloat16_is_computed_in_float32():
    x = tokens(1, 6).astype(jnp.bfloat16)
    y = convolve(x, np.arange(6)[None])
    assert y.dtype == jnp.bfloat16
    expected = document(x[0].astype(np.float32))
    np.testing.assert_allclose(y[0].astype(np.float32), expected, rtol=2**-8, atol=1e-6)
