"""TTT in closed form, one mini-batch at a time: the fast path for training and prefill.

All gradients of a mini-batch are taken at the same fast weights, so the outputs follow from a few
matrix products instead of one set of fast weights per token (section 2.5 and appendix A).

The mini-batches come one after the other, and what is done in that loop decides the speed: only
what depends on the fast weights is. The first layer's bias is one more row of its matrix, which a
column of ones multiplies; keys and queries are multiplied together.

Suffixes: N mini-batches, b tokens of one, F hidden width of the inner MLP.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bitttt_jax.ops.product import matmul, matmul_transposed, swap_last
from bitttt_jax.ttt.inner import NORM_EPS, FastNorm, FastWeights
from bitttt_jax.ttt.kernels import dispatch
from bitttt_jax.ttt.linear_scan import Inputs, linear_scan
from bitttt_jax.ttt.state import Learner, StreamState, Views


class MiniBatches(NamedTuple):
    """What mini-batches contribute that doesn't depend on the fast weights, `[N, B, H, ...]`."""

    rows: jax.Array
    """Keys, then queries, each with a one at the end: `[2b, K + 1]`."""
    target: jax.Array
    """Value minus key, `[b, K]`."""
    rate: jax.Array
    """Learning rates, `[b, 1]`."""
    rated_keys: jax.Array
    """Keys and their ones times the learning rates, transposed: `[K + 1, b]`."""
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


def _mini_batches(views: Views, scale_b: jax.Array) -> MiniBatches:
    """Cuts `[B, T, H, ...]` into N mini-batches and prepares them all at once."""
    b = scale_b.shape[0]

    def cut(x_BTHK):
        B, T, H, K = x_BTHK.shape
        return x_BTHK.reshape(B, T // b, b, H, K).transpose(1, 0, 3, 2, 4)

    query, key, value = cut(views.query), cut(views.key), cut(views.value)
    rate = cut(views.rate[..., None])
    ones = jnp.ones((*key.shape[:-1], 1), key.dtype)
    keys, queries = (jnp.concatenate([x, ones], axis=-1) for x in (key, query))
    step = jnp.tril(scale_b[:, None] * rate.swapaxes(-1, -2))
    return MiniBatches(
        rows=jnp.concatenate([keys, queries], axis=-2),
        target=value - key,
        rate=rate,
        rated_keys=swap_last(rate * keys),
        step=step,
        overlap=step * matmul_transposed(queries, keys),
    )


def _pack(fast: FastWeights) -> FastWeights:
    """Appends the first layer's bias to its matrix as a row."""
    w1 = jnp.concatenate([fast["w1"], fast["b1"][..., None, :]], axis=-2)
    return {"w1": w1} | {name: fast[name] for name in ("w2", "b2") if name in fast}


def _unpack(packed: FastWeights) -> FastWeights:
    """Undoes `_pack`."""
    split = {"w1": packed["w1"][..., :-1, :], "b1": packed["w1"][..., -1, :]}
    return split | {name: packed[name] for name in ("w2", "b2") if name in packed}


def _read_linear(fast, grad, scale_b1, norm, mini: MiniBatches):
    """One mini-batch of the linear inner model: its gradients, and what the outputs need."""
    b = mini.target.shape[-2]
    z = matmul(mini.rows, fast["w1"])
    d1 = norm_loss_gradient(z[..., :b, :], mini.target, norm)
    z_query = z[..., b:, :]
    if grad is not None:
        z_query -= scale_b1 * matmul(mini.rows[..., b:, :], grad["w1"])
    return {"w1": matmul(mini.rated_keys, d1)}, (z_query, d1)


def _outputs_linear(mini: MiniBatches, read) -> jax.Array:
    z_query, d1 = read
    return z_query - matmul(mini.overlap, d1)


def _read_mlp(fast, grad, scale_b1, norm, mini: MiniBatches):
    """One mini-batch of the inner MLP: its gradients, and what the outputs need."""
    b = mini.target.shape[-2]
    z1 = matmul(mini.rows, fast["w1"])
    x2, slope = _gelu_and_slope(z1[..., :b, :])
    d2 = norm_loss_gradient(matmul(x2, fast["w2"]) + fast["b2"][..., None, :], mini.target, norm)
    d1 = matmul_transposed(d2, fast["w2"]) * slope
    z1_query = z1[..., b:, :] - matmul(mini.overlap, d1)
    if grad is not None:
        z1_query -= scale_b1 * matmul(mini.rows[..., b:, :], grad["w1"])
    q2 = jax.nn.gelu(z1_query, approximate=True)
    z_query = matmul(q2, fast["w2"]) + fast["b2"][..., None, :]
    if grad is not None:
        z_query -= scale_b1 * (matmul(q2, grad["w2"]) + grad["b2"][..., None, :])
    gradients = {
        "w1": matmul(mini.rated_keys, d1),
        "w2": matmul(swap_last(mini.rate * x2), d2),
        "b2": jnp.sum(mini.rate * d2, axis=-2),
    }
    return gradients, (z_query, x2, q2, d2)


def _outputs_mlp(mini: MiniBatches, read) -> jax.Array:
    z_query, x2, q2, d2 = read
    return z_query - matmul(mini.step * (matmul_transposed(q2, x2) + 1), d2)


def _gelu_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tanh GELU and its derivative."""
    return jax.jvp(lambda x: jax.nn.gelu(x, approximate=True), (x,), (jnp.ones_like(x),))


def _scan_in_groups(step, carry, inputs, group: int):
    """`lax.scan` that saves the carry every `group` steps and recomputes between; 0 saves all."""
    count = jax.tree.leaves(inputs)[0].shape[0]
    whole = count - count % group if group else 0
    outputs = []
    if whole:
        grouped = jax.tree.map(lambda x: x[:whole].reshape(-1, group, *x.shape[1:]), inputs)
        run = jax.checkpoint(lambda carry, xs: jax.lax.scan(step, carry, xs))
        carry, y = jax.lax.scan(run, carry, grouped)
        outputs.append(jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), y))
    if whole < count:
        carry, y = jax.lax.scan(step, carry, jax.tree.map(lambda x: x[whole:], inputs))
        outputs.append(y)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def _dual_linear(fresh, norm: FastNorm, scale_b, state: StreamState, minis, restart_BN):
    """All complete mini-batches of the linear inner model, by way of `linear_scan`."""
    packed, b = _pack(state.fast)["w1"], scale_b.shape[0]
    mean = jnp.mean(packed, axis=-1, keepdims=True)
    count, batch = minis.target.shape[:2]
    restart = jnp.zeros((count, batch), packed.dtype)
    if restart_BN is not None:
        restarted = jnp.any(restart_BN, axis=1)[:, None, None, None]
        mean = jnp.where(restarted, jnp.mean(fresh["w1"], axis=-1, keepdims=True), mean)
        packed = jnp.where(restart_BN[:, :1, None, None], fresh["w1"], packed)
        restart = restart.at[:-1].set(restart_BN.T[1:])
    centre = lambda w: w - jnp.mean(w, axis=-1, keepdims=True)
    outputs = linear_scan(
        Inputs(
            rows=minis.rows,
            rated_keys=minis.rated_keys * scale_b[-1],
            offset=norm.scale * (norm.bias - minis.target),
            gain=jnp.broadcast_to(norm.scale**2, (batch, *norm.scale.shape)),
            initial=centre(packed),
            fresh=jnp.broadcast_to(centre(fresh["w1"]), packed.shape),
            restart=restart[:, :, None, None, None],
        )
    )
    z = outputs.z[..., b:, :] - matmul(minis.overlap, outputs.d)
    return z, _unpack({"w1": outputs.final + mean})


def dual(
    learner: Learner,
    views: Views,
    state: StreamState,
    restart_BN: jax.Array | None = None,
    complete_BN: jax.Array | None = None,
    *,
    remat_group: int = 0,
    implementation: dispatch.Choice = "auto",
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
      implementation: of complete mini-batches; a kernel is differentiable once, XLA's code any
        number of times.

    Returns:
      The inner model's outputs for the queries before the LayerNorm, `[B, T, H, K]`, up to a
      constant a token and head (which the LayerNorm takes off), and the state after the last
      mini-batch.

    Raises:
      ConfigError: the implementation asked for doesn't run here.
    """
    scale_b = learner.token_scale_b
    norm = FastNorm(learner.norm.scale[..., None, :], learner.norm.bias[..., None, :])
    fresh = _pack(learner.fast)
    is_mlp = "w2" in fresh
    read_one, outputs = (_read_mlp, _outputs_mlp) if is_mlp else (_read_linear, _outputs_linear)

    def expand(flag_B, like):
        return flag_B.reshape(-1, *(1,) * (like.ndim - 1))

    def read(carry, inputs):
        fast, grad = carry
        mini, restart_B, complete_B = inputs
        if restart_B is not None:
            fast = {n: jnp.where(expand(restart_B, w), fresh[n], w) for n, w in fast.items()}
            grad = {n: jnp.where(expand(restart_B, g), 0.0, g) for n, g in grad.items()}
        earlier = None if complete_B is None else grad
        new, result = read_one(fast, earlier, scale_b[:, None], norm, mini)
        if complete_B is None:
            fast = {n: w - scale_b[-1] * new[n] for n, w in fast.items()}
            return (fast, grad), result
        total = {n: g + new[n] for n, g in grad.items()}
        moved = {n: w - scale_b[-1] * total[n] for n, w in fast.items()}
        fast = {n: jnp.where(expand(complete_B, w), moved[n], w) for n, w in fast.items()}
        grad = {n: jnp.where(expand(complete_B, g), 0.0, g) for n, g in total.items()}
        return (fast, grad), result

    if complete_BN is None:
        kernel = dispatch.choose(implementation, learner, views)
        if kernel != "xla":
            z, final = dispatch.read_mini_batches(
                kernel, learner, views, state.fast, restart_BN, remat_group
            )
            return z, StreamState(final, state.grad)
    minis = _mini_batches(views, scale_b)
    if not is_mlp and complete_BN is None and not remat_group:
        z, final = _dual_linear(fresh, norm, scale_b, state, minis, restart_BN)
        z_BTHK = z.transpose(1, 0, 3, 2, 4).reshape(views.query.shape)
        return z_BTHK, StreamState(final, state.grad)
    flags = tuple(None if flag is None else flag.T for flag in (restart_BN, complete_BN))
    carry = (_pack(state.fast), _pack(state.grad))
    (fast, grad), results = _scan_in_groups(read, carry, (minis, *flags), remat_group)
    z = outputs(minis, results)
    z_BTHK = z.transpose(1, 0, 3, 2, 4).reshape(views.query.shape)
    return z_BTHK, StreamState(_unpack(fast), _unpack(grad))
