"""The dual form as native CPU code: `native/src/ttt_linear.cc`, `ttt_mlp.cc`, and back again.

A head's weights stay in the cache from its first mini-batch to its last, and what depends on one
mini-batch alone is computed when it is its turn: nothing is laid out anew, and of all intermediate
values only the weights before every group of mini-batches are saved.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax.ttt.kernels.inputs import Inputs


def _shapes(*arrays: jax.Array) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays)


def _forward(inputs: Inputs, hidden: int, group: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    B, H, M = inputs.initial.shape
    groups = -(-inputs.restart.shape[1] // group)
    between = jax.ShapeDtypeStruct((B, H, groups, M), jnp.float32)
    results = (*_shapes(inputs.query), between, *_shapes(inputs.initial))
    call = jax.ffi.ffi_call("bitttt_ttt_forward", results, vmap_method="sequential")
    z, saved, final = call(*inputs, hidden=np.int64(hidden), group=np.int64(group))
    return z, saved, final


def _backward(inputs: Inputs, saved, grads, hidden: int, group: int) -> Inputs:
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
    call = jax.ffi.ffi_call("bitttt_ttt_backward", results, vmap_method="sequential")
    read = inputs._replace(initial=saved)
    query, key, value, rate, scale, norm_scale, norm_bias, initial, fresh = call(
        *read, *grads, hidden=np.int64(hidden), group=np.int64(group)
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def read_mini_batches(inputs: Inputs, hidden: int, group: int) -> tuple[jax.Array, jax.Array]:
    """Reads all mini-batches in order.

    Differentiable once, in reverse.

    Args:
      inputs: tokens, weights and norm.
      hidden: hidden width of the inner MLP; 0 for the linear inner model.
      group: mini-batches between two saved weights, at least 1; the backward pass computes those
        between them again.

    Returns:
      The inner model's outputs for the queries before the LayerNorm `[B, T, H, K]`, and the weights
      after the last mini-batch `[B, H, M]`.
    """
    z, _, final = _forward(inputs, hidden, group)
    return z, final


def _read_fwd(inputs: Inputs, hidden: int, group: int):
    z, saved, final = _forward(inputs, hidden, group)
    return (z, final), (inputs, saved)


def _read_bwd(hidden: int, group: int, residuals, grads):
    inputs, saved = residuals
    return (_backward(inputs, saved, grads, hidden, group),)


read_mini_batches.defvjp(_read_fwd, _read_bwd)
