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
from tests.ttt import samples

MODELS = pytest.mark.parametrize("is_mlp", [False, True], ids=["linear", "mlp"])
BATCH, LENGTH = 2, 7 * samples.MINI_BATCH


@pytest.mark.parametrize("spread", [1e-4, 1.0, 1e3])
def test_norm_loss_gradient_is_that_of_autodiff(spread):
    rng = np.random.default_rng(0)
    z, target, scale, bias = rng.normal(size=(4, 3, 8))
    norm = FastNorm(scale, bias)
    loss = lambda z: 0.5 * jnp.sum((layer_norm(z, *norm, NORM_EPS) - target) ** 2)
    with jax.enable_x64(True):
        own = norm_loss_gradient(spread * z, target, norm)
        expected = jax.grad(loss)(spread * z)
    np.testing.assert_allclose(own, expected, rtol=1e-9, atol=1e-12 / spread)


def read_out(learner, query, z):
    return query + layer_norm(z, learner.norm.scale, learner.norm.bias, NORM_EPS)


def run_dual(learner, views, state, **settings):
    z, state = dual(learner, views, state, **settings)
    return read_out(learner, views.query, z), state


def run_primal(learner, views, state):
    position_BT = jnp.broadcast_to(jnp.arange(1, LENGTH + 1) - 1, (BATCH, LENGTH))
    # Position 0 would start from fresh weights: the mini-batches are counted from one later on.
    position_BT += samples.MINI_BATCH
    return primal(learner, views, state, position_BT, jnp.ones((BATCH, LENGTH), bool))


def with_gradients(run):
    """Outputs, final state, and what flows back from both into everything that is learned."""

    @jax.jit
    def both(learner, views, state):
        results, pullback = jax.vjp(run, learner, views, state)
        return results, pullback(jax.tree.map(lambda x: jnp.cos(3 * x), results))

    return both


@functools.cache
def dual_at(is_mlp: bool, remat_group: int):
    run = functools.partial(run_dual, remat_group=remat_group)
    arguments = samples.learner(is_mlp), samples.views(BATCH, LENGTH), samples.state(is_mlp, BATCH)
    with jax.enable_x64(True):
        return with_gradients(run)(*arguments)


@MODELS
def test_outputs_state_and_gradients_are_those_of_the_primal_form(is_mlp):
    arguments = samples.learner(is_mlp), samples.views(BATCH, LENGTH), samples.state(is_mlp, BATCH)
    with jax.enable_x64(True):
        expected = with_gradients(run_primal)(*arguments)
    samples.assert_close(dual_at(is_mlp, 0), expected, 1e-10)


@MODELS
@pytest.mark.parametrize("remat_group", [1, 3, 7, 100])
def test_recomputation_changes_no_gradient(is_mlp, remat_group):
    samples.assert_close(dual_at(is_mlp, remat_group), dual_at(is_mlp, 0), 1e-12)


@MODELS
def test_float32_stays_close_to_float64(is_mlp):
    arguments = samples.learner(is_mlp), samples.views(BATCH, LENGTH), samples.state(is_mlp, BATCH)
    outputs, state = jax.jit(run_dual)(*samples.cast(arguments, "float32"))
    assert {leaf.dtype for leaf in jax.tree.leaves((outputs, state))} == {jnp.dtype("float32")}
    samples.assert_close((outputs, state), dual_at(is_mlp, 0)[0], 1e-5)


@MODELS
def test_gelu_is_the_tanh_form_in_value_and_slope_far_from_zero(is_mlp):
    """Keys so large that the hidden units cover the whole bend, and both tails."""
    learner, views = samples.learner(is_mlp), samples.views(BATCH, LENGTH)
    views = views._replace(key=3 * views.key)
    state = samples.state(is_mlp, BATCH)
    with jax.enable_x64(True):
        own = jax.jit(run_dual)(learner, views, state)
        samples.assert_close(own, jax.jit(run_primal)(learner, views, state), 1e-10)


def test_first_mini_batch_from_zero_is_linear_attention():
    """Of values that are the inner loss's gradients at a LayerNorm of zeros."""
    H, K, b = samples.HEADS, samples.WIDTH, 8
    learner, views = samples.learner(False, mini_batch=b), samples.views(1, b)
    learner = learner._replace(fast={n: np.zeros_like(w) for n, w in learner.fast.items()})
    with jax.enable_x64(True):
        outputs, _ = jax.jit(run_dual)(learner, views, initial_state(learner.fast, 1))
    query, key, value, rate = (x[0] for x in views)
    for h in range(H):
        scale, bias = learner.norm.scale[h], learner.norm.bias[h]
        u = scale * (bias - (value[:, h] - key[:, h]))
        d = (u - u.mean(-1, keepdims=True)) / np.sqrt(1e-6)
        scores = np.tril(query[:, h] @ key[:, h].T + 1) * rate[:, h]
        z = -learner.token_scale_b[:, None] * (scores @ d)
        expected = z.std(-1, keepdims=True) ** 2 + 1e-6
        expected = query[:, h] + scale * (z - z.mean(-1, keepdims=True)) / np.sqrt(expected) + bias
        np.testing.assert_allclose(outputs[0, :, h], expected, rtol=0, atol=1e-10)
    assert K == outputs.shape[-1]


HAND = {
    # Two tokens of one mini-batch, inner weights that start as the identity, LayerNorm without
    # effect but its standardisation. By hand, with LN(k) = k for keys of +-1 and 1e-6 neglected:
    #   u1 = 2 k1 - v1 = (-2, 2, -2, -2), mean -1, mean(u1 k1) 1, so g1 = u1 + 1 - k1
    #   u2 = 2 k2 - v2 = (2, -2, 2, -6), mean -1, mean(u2 k2) 3, so g2 = u2 + 1 - 3 k2
    "key": [[1, 1, -1, -1], [1, -1, 1, -1]],
    "value": [[4, 0, 0, 0], [0, 0, 0, 4]],
    "query": [[1, -1, 1, -1], [2, 0, 0, 0]],
    "rate": [1 / 2, 1 / 4],
    "g": [[-2, 2, 0, 0], [0, 2, 0, -2]],
    # Token 1: b = -g1 / 2, and q1 k1 = 0, so z1 = q1 + b.
    # Token 2: q2 k1 = q2 k2 = 2, and half of the sum is subtracted: z2 = q2 - 3/4 g1 - 3/8 g2.
    "z": [[2, -2, 1, -1], [3.5, -2.25, 0, 0.75]],
}


def test_two_tokens_by_hand():
    hand = {name: np.array(x, np.float64) for name, x in HAND.items()}
    one = lambda x: x[None, None]
    fast = {"w1": one(np.eye(4))[0], "b1": np.zeros((1, 4))}
    norm = FastNorm(np.ones((1, 4)), np.zeros((1, 4)))
    learner = Learner(fast, norm, np.array([1, 1 / 2]))
    head = lambda x: x[None, :, None]
    views = Views(*(head(hand[name]) for name in ("query", "key", "value", "rate")))
    start = StreamState(*(jax.tree.map(lambda w, s=s: s * w[None], fast) for s in (1, 0)))
    position_BT = np.arange(2)[None]
    with jax.enable_x64(True):
        results = [
            jax.jit(run_dual)(learner, views, start),
            jax.jit(primal)(learner, views, start, position_BT, np.ones((1, 2), bool)),
        ]
    centred = hand["z"] - hand["z"].mean(-1, keepdims=True)
    expected = hand["query"] + centred / np.sqrt((centred**2).mean(-1, keepdims=True))
    gradients = hand["rate"][:, None] * hand["g"]
    w1 = np.eye(4) - (hand["key"].T @ gradients) / 2
    for outputs, state in results:
        np.testing.assert_allclose(outputs[0, :, 0], expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(state.fast["w1"][0, 0], w1, rtol=0, atol=1e-5)
        np.testing.assert_allclose(state.fast["b1"][0, 0], -gradients.sum(0) / 2, rtol=0, atol=1e-5)
        assert not any(np.any(g) for g in state.grad.values())
