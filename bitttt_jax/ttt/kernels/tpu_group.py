"""One group of mini-batches, of heads that lie side by side: what the TPU kernel differentiates.

Narrow heads fill the 128 lanes together; their weights lie side by side too, and become a
block-diagonal matrix where the matrix unit reads them.

Suffixes: G tokens of a group, b of a mini-batch, P heads side by side (a pack), L = P * K lanes.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bitttt_jax.ttt.inner import NORM_EPS

# The matrix unit multiplies bfloat16: factors are split into several, since products with weights
# that move by little more than such a number's rounding must be exact to float32.
_PRECISION = lax.Precision.HIGHEST

Weights = dict[str, jax.Array]
"""By name: matrices `[rows, P * columns]`, biases `[1, P * columns]`."""


class Tokens(NamedTuple):
    """Tokens of a pack, `[G, L]`; `rate` is the same in all lanes of a head."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    rate: jax.Array


class Shared(NamedTuple):
    """What is the same for all mini-batches."""

    fresh: Weights
    """Weights where a document starts."""
    norm_scale: jax.Array
    """`[1, L]`, as is `norm_bias`."""
    norm_bias: jax.Array
    token_scale: jax.Array
    """`[b, 1]`."""


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    return lax.dot_general(
        a,
        b,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=_PRECISION,
        preferred_element_type=jnp.float32,
    )


def _lanes_of(head: int, lanes: int, pack: int) -> jax.Array:
    """Which of the lanes are a head's, `[1, lanes]`."""
    lane, width = lax.broadcasted_iota(jnp.int32, (1, lanes), 1), lanes // pack
    return (lane >= head * width) & (lane < (head + 1) * width)


def _spread(x: jax.Array, pack: int) -> jax.Array:
    """`[R, P * W]` to `[P * R, P * W]`: every head's lanes in rows of their own, else zeros."""
    if pack == 1:
        return x
    own = functools.partial(_lanes_of, lanes=x.shape[1], pack=pack)
    return jnp.concatenate([jnp.where(own(head), x, 0.0) for head in range(pack)], axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _stack(x: jax.Array, pack: int) -> jax.Array:
    """`[R, P * W]` to `[P * R, W]`: the heads below each other."""
    W = x.shape[1] // pack
    return jnp.concatenate([x[:, head * W : (head + 1) * W] for head in range(pack)], axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _unstack(x: jax.Array, pack: int) -> jax.Array:
    """Undoes `_stack`."""
    return jnp.concatenate(jnp.split(x, pack), axis=1)


# Autodiff would pad with zeros and add.
_stack.defvjp(lambda x, pack: (_stack(x, pack), None), lambda pack, _, g: (_unstack(g, pack),))
_unstack.defvjp(lambda x, pack: (_unstack(x, pack), None), lambda pack, _, g: (_stack(g, pack),))


def _gather(x: jax.Array, pack: int) -> jax.Array:
    """`[P * R, P * W]` to `[R, P * W]`: of every head's rows its own lanes."""
    rows = x.shape[0] // pack
    gathered = x[:rows]
    for head in range(1, pack):
        own = _lanes_of(head, x.shape[1], pack)
        gathered = jnp.where(own, x[head * rows : (head + 1) * rows], gathered)
    return gathered


def _head_mean(x: jax.Array, pack: int) -> jax.Array:
    """Mean over a head's lanes, in all of them."""
    if pack == 1:
        return jnp.mean(x, axis=-1, keepdims=True)
    means = jnp.zeros_like(x)
    for head in range(pack):
        own = _lanes_of(head, x.shape[1], pack)
        total = jnp.sum(jnp.where(own, x, 0.0), axis=-1, keepdims=True)
        means = jnp.where(own, total * (pack / x.shape[1]), means)
    return means


def _loss_gradient(z: jax.Array, mini: Tokens, shared: Shared, pack: int) -> jax.Array:
    """As `dual.norm_loss_gradient`, for z whose mean is 0.

    Its means are those of z itself, so that none of them waits for another.
    """
    gain = shared.norm_scale * shared.norm_scale
    offset = shared.norm_scale * (shared.norm_bias - (mini.value - mini.key))
    gained = gain * z
    terms = jnp.concatenate([z * z, gained * z, offset * z, gained, offset], axis=0)
    square, gained_along, offset_along, gained_mean, offset_mean = jnp.split(
        _head_mean(terms, pack), 5
    )
    inverse = lax.rsqrt(square + NORM_EPS)
    along = (gained_along * inverse + offset_along) * inverse
    residual_mean = gained_mean * inverse + offset_mean
    return ((gained - z * along) * inverse + offset - residual_mean) * inverse


def _apply(x: jax.Array, weight: jax.Array, bias: jax.Array, pack: int) -> jax.Array:
    """A layer's outputs for `[R, P * W]`."""
    return _gather(_dot(_stack(x, pack), weight, (1, 0)), pack) + bias


def _learn(weight, bias, z_query, query, key, rated, scale, pack: int):
    """A layer after a mini-batch, and its outputs for queries with what the tokens taught it.

    Both lose products with the rated gradients: one reads keys, the other the keys' overlap with
    queries.
    """
    b = rated.shape[0]
    last = scale[b - 1 :]
    overlap = _dot(query, _spread(key, pack), (1, 1)) + 1
    own, other = (lax.broadcasted_iota(jnp.int32, (b, b), axis) for axis in (0, 1))
    causal = jnp.concatenate([own - other] * pack, axis=1) >= 0
    rows = [scale * jnp.where(causal, overlap, 0.0), last * _stack(key, pack).T]
    taught = _dot(jnp.concatenate(rows, axis=0), _spread(rated, pack), (1, 0))
    bias = bias - jnp.sum(last * rated, axis=0, keepdims=True)
    return weight - taught[b:], bias, z_query - taught[:b]


def _read_linear(fast, mini: Tokens, shared: Shared, pack: int):
    query, key, _, rate = mini
    b, scale = query.shape[0], shared.token_scale
    z = _apply(jnp.concatenate([key, query], axis=0), fast["w1"], fast["b1"], pack)
    rated = rate * _loss_gradient(z[:b], mini, shared, pack)
    w1, b1, z = _learn(fast["w1"], fast["b1"], z[b:], query, key, rated, scale, pack)
    return {"w1": w1, "b1": b1}, z


def _read_mlp(fast, mini: Tokens, shared: Shared, pack: int):
    query, key, _, rate = mini
    b, scale = query.shape[0], shared.token_scale
    gelu = functools.partial(jax.nn.gelu, approximate=True)
    z1 = _apply(jnp.concatenate([key, query], axis=0), fast["w1"], fast["b1"], pack)
    x2, slope = jax.jvp(gelu, (z1[:b],), (jnp.ones_like(z1[:b]),))
    z2 = _apply(x2, fast["w2"], fast["b2"], pack)
    rated2 = rate * _loss_gradient(z2, mini, shared, pack)
    rated1 = _unstack(_dot(_spread(rated2, pack), fast["w2"], (1, 1)), pack) * slope
    w1, b1, z1 = _learn(fast["w1"], fast["b1"], z1[b:], query, key, rated1, scale, pack)
    q2 = gelu(z1)
    z = _apply(q2, fast["w2"], fast["b2"], pack)
    w2, b2, z = _learn(fast["w2"], fast["b2"], z, q2, x2, rated2, scale, pack)
    return {"w1": w1, "b1": b1, "w2": w2, "b2": b2}, z


def read_group(restart: list[jax.Array], pack: int, fast: Weights, tokens: Tokens, shared: Shared):
    """Reads a group of mini-batches in order; differentiable.

    Args:
      restart: whether each starts a document.
      pack: heads side by side.
      fast: weights before the group; those of the last layer have a mean of 0 over the outputs.
      tokens: of all mini-batches.
      shared: what is the same for them.

    Returns:
      Weights after the group, and the inner model's outputs for the queries `[G, L]`.
    """
    read = _read_mlp if "w2" in fast else _read_linear
    b, outputs = shared.token_scale.shape[0], []
    for n, starts in enumerate(restart):
        fast = {name: lax.select_n(starts, w, shared.fresh[name]) for name, w in fast.items()}
        mini = Tokens(*(x[n * b : (n + 1) * b] for x in tokens))
        fast, z = read(fast, mini, shared, pack)
        outputs.append(z)
    return fast, jnp.concatenate(outputs, axis=0)
