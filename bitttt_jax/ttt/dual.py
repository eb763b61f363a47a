"""TTT in closed form, one mini-batch at a time: the fast path for training and prefill.

All gradients of a mini-batch are taken at the same fast weights, so the outputs follow from a few
matrix products instead of one set of fast weights per token (section 2.5 and appendix A).

Suffixes: N mini-batches, b tokens of one, F hidden width of the inner MLP.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bitttt_jax.ops.product import matmul, matmul_transposed, swap_last
from bitttt_jax.ttt.inner import NORM_EPS, FastNorm, FastWeights
from bitttt_jax.ttt.state import Learner, StreamState, Views


class MiniBatch(NamedTuple):
    """What a mini-batch contributes that doesn't depend on the fast weights, `[B, H, ...]`."""

    key: jax.Array
    """`[b, K]`"""
    query: jax.Array
    """`[b, K]`"""
    target: jax.Array
    """Value minus key, `[b, K]`."""
    rated_key: jax.Array
    """Keys times their learning rates, transposed: `[K, b]`."""
    rate: jax.Array
    """`[b, 1]`"""
    step: jax.Array
    """How much of token j's gradient token i sees: scale_i * rate_j for j <= i, `[b, b]`."""
    overlap: jax.Array
    """`step * (query key^T + 1)`: the first layer's step, seen from the queries, `[b, b]`."""


def norm_loss_gradient(z: jax.Array, target: jax.Array, norm: FastNorm) -> jax.Array:
    """Gradient of `0.5 * |LN(z) - target|^2` with respect to z, over the last dimension."""
    centred = z - jnp.mean(z, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + NORM_EPS)
    standard = centred * inverse
    residual = norm.scale * (norm.scale * standard + norm.bias - target)
    along = jnp.mean(residual * standard, axis=-1, keepdims=True)
    return (residual - jnp.mean(residual, axis=-1, keepdims=True) - standard * along) * inverse


def _gelu_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tanh GELU and its derivative."""
    value, slope = jax.jvp(lambda x: jax.nn.gelu(x, approximate=True), (x,), (jnp.ones_like(x),))
    return value, slope


def _rows(bias: jax.Array) -> jax.Array:
    return bias[..., None, :]


def _linear(fast: FastWeights, grad: FastWeights | None, scale_b1, norm, mini: MiniBatch):
    """Queries' inner outputs and summed gradients for the linear inner model."""
    d1 = norm_loss_gradient(matmul(mini.key, fast["w1"]) + _rows(fast["b1"]), mini.target, norm)
    z = matmul(mini.query, fast["w1"]) + _rows(fast["b1"]) - matmul(mini.overlap, d1)
    if grad is not None:
        z -= scale_b1 * (matmul(mini.query, grad["w1"]) + _rows(grad["b1"]))
    return z, {"w1": matmul(mini.rated_key, d1), "b1": jnp.sum(mini.rate * d1, axis=-2)}


def _mlp(fast: FastWeights, grad: FastWeights | None, scale_b1, norm, mini: MiniBatch):
    """Queries' inner outputs and summed gradients for the MLP inner model."""
    x2, slope = _gelu_and_slope(matmul(mini.key, fast["w1"]) + _rows(fast["b1"]))
    d2 = norm_loss_gradient(matmul(x2, fast["w2"]) + _rows(fast["b2"]), mini.target, norm)
    d1 = matmul_transposed(d2, fast["w2"]) * slope
    z1 = matmul(mini.query, fast["w1"]) + _rows(fast["b1"]) - matmul(mini.overlap, d1)
    if grad is not None:
        z1 -= scale_b1 * (matmul(mini.query, grad["w1"]) + _rows(grad["b1"]))
    q2 = jax.nn.gelu(z1, approximate=True)
    overlap = mini.step * (matmul_transposed(q2, x2) + 1)
    z2 = matmul(q2, fast["w2"]) + _rows(fast["b2"]) - matmul(overlap, d2)
    if grad is not None:
        z2 -= scale_b1 * (matmul(q2, grad["w2"]) + _rows(grad["b2"]))
    return z2, {
        "w1": matmul(mini.rated_key, d1),
        "b1": jnp.sum(mini.rate * d1, axis=-2),
        "w2": matmul(swap_last(mini.rate * x2), d2),
        "b2": jnp.sum(mini.rate * d2, axis=-2),
    }


def _mini_batches(views: Views, scale_b: jax.Array) -> MiniBatch:
    """Cuts `[B, T, H, ...]` into N mini-batches `[N, B, H, b, ...]` and prepares each."""
    b = scale_b.shape[0]

    def cut(x_BTHK):
        B, T, H, K = x_BTHK.shape
        return x_BTHK.reshape(B, T // b, b, H, K).transpose(1, 0, 3, 2, 4)

    query, key, value = cut(views.query), cut(views.key), cut(views.value)
    rate = cut(views.rate[..., None])
    step = jnp.tril(scale_b[:, None] * rate.swapaxes(-1, -2))
    return MiniBatch(
        key=key,
        query=query,
        target=value - key,
        rated_key=swap_last(rate * key),
        rate=rate,
        step=step,
        overlap=step * (matmul_transposed(query, key) + 1),
    )


def _scan_in_groups(step, carry, inputs, group: int):
    """`lax.scan` that saves the carry every `group` steps and recomputes between; 0 saves all."""
    count = jax.tree.leaves(inputs)[0].shape[0]
    whole = count - count % group if group else 0
    outputs = []
    if whole:
        grouped = jax.tree.map(lambda x: x[:whole].reshape(-1, group, *x.shape[1:]), inputs)
        run = jax.checkpoint(lambda carry, xs: jax.lax.scan(step, carry, xs))
        carry, y = jax.lax.scan(run, carry, grouped)
        outputs.append(y.reshape(whole, *y.shape[2:]))
    if whole < count:
        carry, y = jax.lax.scan(step, carry, jax.tree.map(lambda x: x[whole:], inputs))
        outputs.append(y)
    return carry, jnp.concatenate(outputs)


def dual(
    learner: Learner,
    views: Views,
    state: StreamState,
    restart_BN: jax.Array | None = None,
    complete_BN: jax.Array | None = None,
    *,
    remat_group: int = 0,
) -> tuple[jax.Array, StreamState]:
    """Reads T tokens, mini-batch by mini-batch; T is a multiple of the mini-batch size b.

    Args:
      learner: outer parameters.
      views: tokens, float32 or float64; `rate` is 0 for padding.
      state: where the sequences stand. Its `grad` is only read when `complete_BN` is given.
      restart_BN: True where a mini-batch starts a new document; None for nowhere.
      complete_BN: False where a mini-batch lacks its last token: its gradients then stay in
        `state.grad` and the fast weights don't move. None for all complete, and no earlier ones.
      remat_group: mini-batches between two saved fast weights; 0 saves everything.

    Returns:
      The inner model's outputs for the queries before the LayerNorm `[B, T, H, K]` and the state
      after the last mini-batch.
    """
    scale_b = learner.token_scale_b
    norm = FastNorm(_rows(learner.norm.scale), _rows(learner.norm.bias))
    block = _mlp if "w2" in learner.fast else _linear

    def expand(flag_B, like):
        return flag_B.reshape(-1, *(1,) * (like.ndim - 1))

    def read(state: StreamState, inputs):
        mini, restart_B, complete_B = inputs
        fast, grad = state
        if restart_B is not None:
            fast = {n: jnp.where(expand(restart_B, w), learner.fast[n], w) for n, w in fast.items()}
            grad = {n: jnp.where(expand(restart_B, g), 0.0, g) for n, g in grad.items()}
        if complete_B is None:
            z, grads = block(fast, None, scale_b[:, None], norm, mini)
            fast = {n: w - scale_b[-1] * grads[n] for n, w in fast.items()}
            return StreamState(fast, grad), z
        z, grads = block(fast, grad, scale_b[:, None], norm, mini)
        total = {n: g + grads[n] for n, g in grad.items()}
        moved = {n: w - scale_b[-1] * total[n] for n, w in fast.items()}
        fast = {n: jnp.where(expand(complete_B, w), moved[n], w) for n, w in fast.items()}
        grad = {n: jnp.where(expand(complete_B, g), 0.0, g) for n, g in total.items()}
        return StreamState(fast, grad), z

    flags = tuple(None if flag is None else flag.T for flag in (restart_BN, complete_BN))
    inputs = (_mini_batches(views, scale_b), *flags)
    state, z = _scan_in_groups(read, state, inputs, remat_group)
    return z.transpose(1, 0, 3, 2, 4).reshape(views.query.shape), state
