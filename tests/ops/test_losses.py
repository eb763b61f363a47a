from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bitttt_jax.ops import product
from bitttt_jax.ops.losses import next_token_losses

N, D, V, PADDED = 13, 6, 11, 16
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
HEAD_VD = 2 * RNG.normal(size=(V, D)).astype(np.float32)
TARGET = RNG.integers(0, V, N)
MASK = (RNG.random(N) > 0.3).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("chunk", "head_is_VD", "vocab_size"))
def losses(x, head_VD, chunk=N, head_is_VD=True, vocab_size=None):
    """The loss terms and their gradients, those of a tied embedding's layout."""

    def run(x, head_VD):
        head = lambda x: product.matmul(x, head_VD.T.astype(x.dtype))
        if head_is_VD:
            head = lambda x: product.matmul_transposed(x, head_VD.astype(x.dtype))
        return next_token_losses(x, head, TARGET, MASK, chunk=chunk, vocab_size=vocab_size)

    terms, pullback = jax.vjp(run, x, head_VD)
    return terms, pullback(jax.tree.map(lambda t: jnp.full_like(t, 0.5), terms))


@jax.jit
def optax_losses(x, head_VD):
    def run(x, head_VD):
        logits = x @ head_VD.T
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, TARGET)
        return entropy * MASK, jax.nn.logsumexp(logits, axis=-1) ** 2 * MASK

    terms, pullback = jax.vjp(run, x, head_VD)
    return terms, pullback(jax.tree.map(lambda t: jnp.full_like(t, 0.5), terms))


def assert_close(actual, expected, tolerance=1e-5):
    leaves = jax.tree.leaves(actual), jax.tree.leaves(expected)
    for a, e in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("chunk", "head_is_VD"), [(1, True), (4, False), (4, True), (13, False), (100, True)]
)
def test_optax_agrees_in_value_and_gradient(chunk, head_is_VD):
    own = losses(X, HEAD_VD, chunk, head_is_VD)
    assert [(t.shape, t.dtype) for t in own[0]] == [((N,), jnp.float32)] * 2
    assert_close(own, optax_losses(X, HEAD_VD))


def test_masked_tokens_count_nothing():
    terms, (gradient, _) = losses(X, HEAD_VD, 4)
    masked = MASK == 0
    assert not np.any(np.stack(terms)[:, masked]) and not np.any(np.asarray(gradient)[masked])
    assert np.all(np.any(np.asarray(gradient)[~masked] != 0, axis=-1))


@pytest.mark.parametrize(("chunk", "head_is_VD"), [(5, True), (100, False)])
def test_padding_rows_of_the_vocabulary_are_as_if_absent(chunk, head_is_VD):
    padded = np.concatenate([HEAD_VD, np.full((PADDED - V, D), 50, np.float32)])
    terms, (x_gradient, head_gradient) = losses(X, padded, chunk, head_is_VD, V)
    expected = optax_losses(X, HEAD_VD)
    assert_close((terms, (x_gradient, head_gradient[:V])), expected)
    assert not np.any(head_gradient[V:])


def test_large_logits_stay_finite():
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(losses(1e3 * X, HEAD_VD, 4)))


def test_bfloat16_gives_float32_losses_and_gradients_in_the_types_of_the_inputs():
    x = X.astype(jnp.bfloat16)
    terms, gradients = losses(x, HEAD_VD, 4)
    assert [t.dtype for t in terms] == [jnp.float32] * 2
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]
    rounded = HEAD_VD.astype(jnp.bfloat16).astype(np.float32)
    assert_close(terms, losses(x.astype(np.float32), rounded, 4)[0])
