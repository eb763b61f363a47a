from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.ops.norm import layer_norm
from bitttt_jax.ttt.dual import dual, norm_loss_gradient
from bitttt_jax.ttt.inner import NORM_EPS, FastNorm
from bitttt_jax.ttt.primal import primal
from bitttt_jax.ttt.state import Learner, StreamState, Views, initial_state
from tests.ttt import reference, samples

MODELS = pytest.mark.parametrize("is_mlp", [False, True], ids=["linear", "mlp"])
BATCH, LENGTH = 2, 7 * samples.MINI_BATCH
# At position 0 the primal form would start from the learner's fast weights.
POSITION_BT = np.tile(samples.MINI_BATCH + np.arange(LENGTH), (BATCH, 1))


@pytest.mark.parametrize("spread", [1e-4, 1.0, 1e3])
def test_norm_loss_gradient_is_that_of_autodiff(spread):
    rng = np.random.default_rng(0)
    z, target, scale, bias = rng.normal(size=(4, 3, 8))
    norm = FastNorm(scale, bias)
    loss = lambda z: 0.5 * jnp.sum((layer_norm(z, *norm, NORM_EPS) - target) ** 2)
    with jax.enable_x64(True):
        run = jax.jit(lambda z: (norm_loss_gradient(z, target, norm), jax.grad(loss)(z)))
        own, expected = run(spread * z)
    np.testing.assert_allclose(own, expected, rtol=1e-9, atol=1e-12 / spread)


def read_out(learner, query, z):
    return query + layer_norm(z, learner.norm.scale, learner.norm.bias, NORM_EPS)


def whole_dual(learner, views, state, **settings):
    z, state = dual(learner, views, state, **settings)
    return read_out(learner, views.query, z), state


def run_dual(learner, views, fast, **settings):
    state = StreamState(fast, jax.tree.map(jnp.zeros_like, fast))
    outputs, state = whole_dual(learner, views, state, **settings)
    return outputs, state.fast


def run_primal(learner, views, fast, position_BT):
    state = StreamState(fast, jax.tree.map(jnp.zeros_like, fast))
    outputs, state = primal(learner, views, state, position_BT, np.ones((BATCH, LENGTH), bool))
    return outputs, state.fast


def arguments(is_mlp: bool):
    fast = samples.learned(is_mlp, BATCH)
    return samples.learner(is_mlp), samples.views(BATCH, LENGTH), fast


@functools.cache
def gradients_checked(is_mlp: bool, remat_group: int):
    """What flows back into all inputs from both the outputs and the final fast weights."""

    def loss(*arguments):
        results = run_dual(*arguments, remat_group=remat_group)
        return sum(jnp.sum(jnp.sin(3 * x)) for x in jax.tree.leaves(results))

    return samples.gradients_checked(loss, arguments(is_mlp))


@MODELS
def test_outputs_and_fast_weights_are_those_of_the_primal_form(is_mlp):
    with jax.enable_x64(True):
        own = jax.jit(run_dual)(*arguments(is_mlp))
        expected = jax.jit(run_primal)(*arguments(is_mlp), POSITION_BT)
    samples.assert_close(own, expected, 1e-10)


@MODELS
def test_a_restart_forgets_what_the_state_had_learned(is_mlp):
    """In the first row only, at the fifth mini-batch."""
    restart_BN, position_BT = np.zeros((BATCH, 7), bool), POSITION_BT.copy()
    restart_BN[0, 4] = True
    position_BT[0, 4 * samples.MINI_BATCH :] = np.arange(3 * samples.MINI_BATCH)
    with jax.enable_x64(True):
        run = functools.partial(run_dual, restart_BN=restart_BN)
        own = jax.jit(run)(*arguments(is_mlp))
        expected = jax.jit(run_primal)(*arguments(is_mlp), position_BT)
    samples.assert_close(own, expected, 1e-10)


@MODELS
def test_gradients_are_those_of_finite_differences(is_mlp):
    gradients_checked(is_mlp, 0)


@MODELS
def test_recomputation_changes_no_gradient(is_mlp):
    """Seven mini-batches in groups of three: one is left over."""
    samples.assert_close(gradients_checked(is_mlp, 3), gradients_checked(is_mlp, 0), 1e-12)


@MODELS
def test_float32_stays_close_to_float64(is_mlp):
    own = jax.jit(run_dual)(*samples.cast(arguments(is_mlp), "float32"))
    assert {leaf.dtype for leaf in jax.tree.leaves(own)} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        samples.assert_close(own, jax.jit(run_dual)(*arguments(is_mlp)), 1e-5)


def test_gelu_is_the_tanh_form_in_value_and_slope():
    """Keys and queries so large that hidden units lie on the whole bend and both tails."""
    learner, views, fast = arguments(is_mlp=True)
    views = views._replace(key=3 * views.key, query=3 * views.query)
    with jax.enable_x64(True):
        own = jax.jit(run_dual)(learner, views, fast)
        expected = jax.jit(run_primal)(learner, views, fast, POSITION_BT)
    samples.assert_close(own, expected, 1e-10)


def test_first_mini_batch_from_zero_is_linear_attention():
    """With the inner loss's gradients at an inner model of zeros as values."""
    b = 8
    learner, views = samples.learner(False, mini_batch=b), samples.views(1, b)
    fast = {name: np.zeros((1, *w.shape)) for name, w in learner.fast.items()}
    with jax.enable_x64(True):
        outputs, _ = jax.jit(run_dual)(learner, views, fast)
    query, key, value, rate = (x[0] for x in views)
    for h, (scale, bias) in enumerate(zip(*learner.norm, strict=True)):
        residual = scale * (bias - (value[:, h] - key[:, h]))
        gradient = (residual - residual.mean(-1, keepdims=True)) / np.sqrt(NORM_EPS)
        scores = np.tril(query[:, h] @ key[:, h].T + 1) * rate[:, h]
        z = -learner.token_scale_b[:, None] * (scores @ gradient)
        expected = query[:, h] + reference.layer_norm(z, scale, bias)
        np.testing.assert_allclose(np.asarray(outputs)[0, :, h], expected, rtol=0, atol=1e-10)


def test_two_tokens_by_hand():
    """Inner weights start as the identity, and LN(k) = k for keys of +-1 (but for eps, 1e-6)."""
    key, value = [[1, 1, -1, -1], [1, -1, 1, -1]], [[4, 0, 0, 0], [0, 0, 0, 4]]
    query, rate = [[1, -1, 1, -1], [2, 0, 0, 0]], [1 / 2, 1 / 4]
    # u1 = 2 k1 - v1 = (-2, 2, -2, -2): mean -1, mean(u1 k1) 1, gradient g1 = u1 + 1 - k1
    # u2 = 2 k2 - v2 = (2, -2, 2, -6): mean -1, mean(u2 k2) 3, gradient g2 = u2 + 1 - 3 k2
    g = np.array([[-2, 2, 0, 0], [0, 2, 0, -2]])
    # Token 1: b = -g1 / 2 and q1 k1 = 0, so z1 = q1 + b.
    # Token 2: q2 k1 = q2 k2 = 2, of the sum a half is subtracted: z2 = q2 - 3/4 g1 - 3/8 g2.
    centred = np.array([[2, -2, 1, -1], [3, -2.75, -0.5, 0.25]])  # the mean of z2 is 1/2
    expected = query + centred / np.sqrt([[2.5], [4.21875]])
    w1 = np.eye(4) - np.outer(key[0], g[0]) / 4 - np.outer(key[1], g[1]) / 8
    b1 = np.array([0.5, -0.75, 0, 0.25])

    fast = {"w1": np.eye(4)[None], "b1": np.zeros((1, 4))}
    norm = FastNorm(np.ones((1, 4)), np.zeros((1, 4)))
    learner = Learner(fast, norm, np.array([1, 1 / 2]))
    views = Views(*(np.array(x, np.float64)[None, :, None] for x in (query, key, value, rate)))
    with jax.enable_x64(True):
        state = jax.jit(initial_state, static_argnums=1)(fast, 1)
        by_dual, after_dual = jax.jit(whole_dual)(learner, views, state)
        at = np.arange(2)[None], np.ones((1, 2), bool)
        by_primal, after_primal = jax.jit(primal)(learner, views, state, *at)
    both = (by_dual, after_dual), (by_primal, after_primal)
    for outputs, after in jax.tree.map(np.asarray, both):
        np.testing.assert_allclose(outputs[0, :, 0], expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(after.fast["w1"][0, 0], w1, rtol=0, atol=1e-5)
        np.testing.assert_allclose(after.fast["b1"][0, 0], b1, rtol=0, atol=1e-5)
        assert not any(np.any(gradient) for gradient in after.grad.values())
