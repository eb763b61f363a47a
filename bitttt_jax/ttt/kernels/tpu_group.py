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
    # The unit multiplies bfloat16: this splits float32 factors, which products with the state need.
    return lax.dot_general(
        a,
        b,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _spread(x: jax.Array, pack: int) -> jax.Array:
    """`[R, P * W]` to `[P * R, P * W]`: every head's lanes in rows of their own, else zeros."""
    if pack == 1:
        return x
    head = _head_of_lane(x.shape[1], pack)
    return jnp.concatenate([jnp.where(head == h, x, 0.0) for h in range(pack)], axis=0)


def _gather(x: jax.Array, pack: int) -> jax.Array:
    """`[P * R, P * W]` to `[R, P * W]`: of every head's rows its own lanes."""
    if pack == 1:
        return x
    head, rows = _head_of_lane(x.shape[1], pack), x.shape[0] // pack
    gathered = x[:rows]
    for h in range(1, pack):
        gathered = jnp.where(head == h, x[h * rows : (h + 1) * rows], gathered)
    return gathered


def _head_of_lane(lanes: int, pack: int) -> jax.Array:
    return lax.broadcasted_iota(jnp.int32, (1, lanes), 1) // (lanes // pack)


def _head_mean(x: jax.Array, pack: int) -> jax.Array:
    """Mean over a head's lanes, in all of them."""
    if pack == 1:
        return jnp.mean(x, axis=-1, keepdims=True)
    head, means = _head_of_lane(x.shape[1], pack), jnp.zeros_like(x)
    for h in range(pack):
        total = jnp.sum(jnp.where(head == h, x, 0.0), axis=-1, keepdims=True)
        means = jnp.where(head == h, total * (pack / x.shape[1]), means)
    return means


def _loss_gradient(z: jax.Array, mini: Tokens, shared: Shared, pack: int) -> jax.Array:
    """As `dual.norm_loss_gradient`, for z whose mean is 0.

    Its sums are those of z itself, so that none of them waits for another.
    """
    mean = functools.partial(_head_mean, pack=pack)
    gain = shared.norm_scale * shared.norm_scale
    offset = shared.norm_scale * (shared.norm_bias - (mini.value - mini.key))
    gained = gain * z
    inverse = lax.rsqrt(mean(z * z) + NORM_EPS)
    along = (mean(gained * z) * inverse + mean(offset * z)) * inverse
    residual_mean = mean(gained) * inverse + mean(offset)
    return ((gained - z * along) * inverse + offset - residual_mean) * inverse


def _learn(weight, bias, x, taught, pack: int) -> tuple[jax.Array, jax.Array]:
    """A layer after a mini-batch, of whose inputs and of whose rated gradients."""
    moved = weight - _gather(_dot(x, taught, (0, 0)), pack)
    return moved, bias - jnp.sum(taught, axis=0, keepdims=True)


def _taught(query, key, rated, scale, pack: int) -> jax.Array:
    """How much lower a layer's outputs for queries are for the tokens up to theirs."""
    b = rated.shape[0]
    place = lax.broadcasted_iota(jnp.int32, (pack, b, b), 1).reshape(pack * b, b)
    causal = place >= lax.broadcasted_iota(jnp.int32, (pack * b, b), 1)
    overlap = jnp.where(causal, _dot(_spread(query, pack), key, (1, 1)) + 1, 0.0)
    return scale * _gather(_dot(overlap, rated, (1, 0)), pack)


def _read_linear(fast, mini: Tokens, shared: Shared, pack: int):
    scale = shared.token_scale
    b = scale.shape[0]
    rows = jnp.concatenate([mini.key, mini.query], axis=0)
    z = _dot(rows, _spread(fast["w1"], pack), (1, 0)) + fast["b1"]
    rated = mini.rate * _loss_gradient(z[:b], mini, shared, pack)
    w1, b1 = _learn(fast["w1"], fast["b1"], mini.key, scale[b - 1 :] * rated, pack)
    return {"w1": w1, "b1": b1}, z[b:] - _taught(mini.query, mini.key, rated, scale, pack)


def _read_mlp(fast, mini: Tokens, shared: Shared, pack: int):
    scale = shared.token_scale
    b = scale.shape[0]
    gelu = functools.partial(jax.nn.gelu, approximate=True)
    wide2 = _spread(fast["w2"], pack)
    rows = jnp.concatenate([mini.key, mini.query], axis=0)
    z1 = _dot(rows, _spread(fast["w1"], pack), (1, 0)) + fast["b1"]
    x2, slope = jax.jvp(gelu, (z1[:b],), (jnp.ones_like(z1[:b]),))
    z2 = _dot(x2, wide2, (1, 0)) + fast["b2"]
    rated2 = mini.rate * _loss_gradient(z2, mini, shared, pack)
    rated1 = _dot(rated2, wide2, (1, 1)) * slope
    q2 = gelu(z1[b:] - _taught(mini.query, mini.key, rated1, scale, pack))
    z = _dot(q2, wide2, (1, 0)) + fast["b2"] - _taught(q2, x2, rated2, scale, pack)
    last = scale[b - 1 :]
    w1, b1 = _learn(fast["w1"], fast["b1"], mini.key, last * rated1, pack)
    w2, b2 = _learn(fast["w2"], fast["b2"], x2, last * rated2, pack)
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
