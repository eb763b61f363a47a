"""Matrix products whose backward passes run as fast as their forward passes.

Autodiff of `x @ w` contracts the leading dimensions of `x` and of the cotangent. XLA's CPU backend
has no fast kernel for that, and folds an ordinary transpose back into the product, so here the
transpose is written out first (3x faster on CPU; other backends keep XLA's own choice).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from bitttt_jax import native

_KERNEL_ROWS = 8  # of a product that native code computes


def _row_major(x: jax.Array) -> jax.Array:
    """`x`, laid out row by row on CPU."""
    # The constraint is opaque to the partitioner, which gathers a sharded `x` in front of it.
    if jax.sharding.get_abstract_mesh().size > 1:
        return x
    constrain = lambda x: with_layout_constraint(x, Layout(tuple(range(x.ndim))))
    return lax.platform_dependent(x, cpu=constrain, default=lambda x: x)


@jax.custom_vjp
def swap_last(x: jax.Array) -> jax.Array:
    """Swaps the last two dimensions of `x`; on CPU the result is written out row by row."""
    # Constrained on both sides, or XLA folds the swap into the product that made `x`.
    return _row_major(jnp.swapaxes(_row_major(x), -1, -2))


swap_last.defvjp(lambda x: (swap_last(x), None), lambda _, g: (swap_last(g),))


def _contract(a: jax.Array, b: jax.Array, b_dim: int) -> jax.Array:
    """Contracts the last dimension of `a` with dimension `b_dim` of `b`; leading ones are batch."""
    batch = tuple(range(a.ndim - 2))
    dims = (((a.ndim - 1,), (b.ndim + b_dim,)), (batch, batch))
    # XLA goes through a bfloat16 matrix value by value where it isn't worth repacking.
    fits = a.ndim == 2 and 0 < a.shape[0] <= _KERNEL_ROWS and a.dtype == b.dtype == jnp.bfloat16
    if native.choose("auto", fits, "few rows of bfloat16") == "cpu":
        result = jax.ShapeDtypeStruct((a.shape[0], b.shape[1 if b_dim == -2 else 0]), jnp.float32)
        call = jax.ffi.ffi_call("bitttt_few_rows_matmul", result, vmap_method="sequential")
        return call(a, b, by_columns=b_dim == -2)
    accumulate = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
    return lax.dot_general(_row_major(a), _row_major(b), dims, preferred_element_type=accumulate)


def transposed_matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a^T @ b` of `[..., M, K]` and `[..., M, N]`, by way of the smaller transposes."""
    (M, K), N = a.shape[-2:], b.shape[-1]
    if M * K <= M * N + K * N:
        return matmul(swap_last(a), b)
    return swap_last(matmul(swap_last(b), a))


@jax.custom_vjp
def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b` of `[..., M, K]` and `[..., K, N]` with equal batch dimensions.

    Accumulates and returns float32 (float64 for such inputs). Cotangents are rounded to the type of
    `a` before their products. Differentiable any number of times in reverse.
    """
    return _contract(a, b, -2)


def _matmul_bwd(residuals, g):
    a, b = residuals
    g = g.astype(a.dtype)
    grad_a = matmul_transposed(g, b)
    grad_b = transposed_matmul(a, g)
    return grad_a.astype(a.dtype), grad_b.astype(b.dtype)


matmul.defvjp(lambda a, b: (_contract(a, b, -2), (a, b)), _matmul_bwd)


@jax.custom_vjp
def matmul_transposed(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b^T` of `[..., M, K]` and `[..., N, K]`; as `matmul` otherwise."""
    return _contract(a, b, -1)


def _matmul_transposed_bwd(residuals, g):
    a, b = residuals
    g = g.astype(a.dtype)
    grad_a = matmul(g, b)
    grad_b = transposed_matmul(g, a)
    return grad_a.astype(a.dtype), grad_b.astype(b.dtype)


matmul_transposed.defvjp(lambda a, b: (_contract(a, b, -1), (a, b)), _matmul_transposed_bwd)


@jax.custom_vjp
def shared_matmul(a: jax.Array, bs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """`a @ b` of `[M, K]` with each `[K, N]` of `bs`; the backward pass transposes `a` once."""
    return tuple(_contract(a, b, -2) for b in bs)


def _shared_matmul_bwd(residuals, grads):
    a, bs = residuals
    grads = tuple(g.astype(a.dtype) for g in grads)
    grad_a = functools.reduce(jnp.add, map(matmul_transposed, grads, bs))
    grad_bs = tuple(transposed_matmul(a, g).astype(b.dtype) for g, b in zip(grads, bs, strict=True))
    return grad_a.astype(a.dtype), grad_bs


shared_matmul.defvjp(lambda a, bs: (shared_matmul(a, bs), (a, bs)), _shared_matmul_bwd)
