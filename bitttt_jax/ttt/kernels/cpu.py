"""TTT-Linear's dual form as native CPU code: `native/src/ttt_linear.cc`, forwards and backwards.

A head's weights stay in the first-level cache from its first mini-batch to its last, and what
depends on one mini-batch alone is computed when it is its turn: nothing is laid out anew, and of
all intermediate values only the weights before every group of mini-batches are saved.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Inputs(NamedTuple):
    """What the kernel reads; all but `restart` are differentiable and float32."""

    query: jax.Array
    """`[B, T, H, K]`, as are `key` and `value`; T is a multiple of b."""
    key: jax.Array
    value: jax.Array
    rate: jax.Array
    """Learning rates `[B, T, H]`, 0 for padding."""
    token_scale: jax.Array
    """`[b]`."""
    norm_scale: jax.Array
    """`[H, K]`, as is `norm_bias`."""
    norm_bias: jax.Array
    initial: jax.Array
    """Weights before the first mini-batch, the bias as last row: `[B, H, K + 1, K]`."""
    fresh: jax.Array
    """Weights where a document starts, `[H, K + 1, K]`."""
    restart: jax.Array | np.ndarray
    """Whether a mini-batch starts a document, bool `[B, N]`."""


def _shapes(*arrays: jax.Array) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays)


def _forward(inputs: Inputs, group: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    B, H, *weights = inputs.initial.shape
    groups = -(-inputs.restart.shape[1] // group)
    between = jax.ShapeDtypeStruct((B, H, groups, *weights), jnp.float32)
    results = (*_shapes(inputs.query), between, *_shapes(inputs.initial))
    call = jax.ffi.ffi_call("bitttt_ttt_linear_forward", results, vmap_method="sequential")
    z, saved, final = call(*inputs, group=np.int64(group))
    return z, saved, final


def _backward(inputs: Inputs, saved, grads, group: int) -> Inputs:
    batch = inputs.initial.shape[0]
    per_row = lambda x: jax.ShapeDtypeStruct((batch, *x.shape), jnp.float32)
    H, b = inputs.rate.shape[2], inputs.token_scale.shape[0]
    results = (
        *_shapes(inputs.query, inputs.key, inputs.value, inputs.rate),
        jax.ShapeDtypeStruct((batch, H, b), jnp.float32),
        *map(per_row, (inputs.norm_scale, inputs.norm_bias)),
        *_shapes(inputs.initial),
        per_row(inputs.fresh),
    )
    call = jax.ffi.ffi_call("bitttt_ttt_linear_backward", results, vmap_method="sequential")
    read = inputs._replace(initial=saved)
    query, key, value, rate, scale, norm_scale, norm_bias, initial, fresh = call(
        *read, *grads, group=np.int64(group)
    )
    return Inputs(
        query,
        key,
        value,
        rate,
        jnp.sum(scale, axis=(0, 1)),
        jnp.sum(norm_scale, axis=0),
        jnp.sum(norm_bias, axis=0),
        initial,
        jnp.sum(fresh, axis=0),
        np.zeros(inputs.restart.shape, jax.dtypes.float0),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def read_linear(inputs: Inputs, group: int) -> tuple[jax.Array, jax.Array]:
    """Reads all mini-batches in order.

    Differentiable once, in reverse.

    Args:
      inputs: tokens, weights and norm.
      group: mini-batches between two saved weights, at least 1; the backward pass computes those
        between them again.

    Returns:
      The inner model's outputs for the queries before the LayerNorm `[B, T, H, K]`, and the weights
      after the last mini-batch `[B, H, K + 1, K]`.
    """
    z, _, final = _forward(inputs, group)
    return z, final


def _read_linear_fwd(inputs: Inputs, group: int):
    z, saved, final = _forward(inputs, group)
    return (z, final), (inputs, saved)


def _read_linear_bwd(group: int, residuals, grads):
    inputs, saved = residuals
    return (_backward(inputs, saved, grads, group),)


read_linear.defvjp(_read_linear_fwd, _read_linear_bwd)
