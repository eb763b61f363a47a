"""The packed product as a Pallas kernel for GPUs, by way of Triton.

It reads the layout `i2_s`: a byte's four fields belong to inputs 32 apart, so activations are put
in that order beforehand, and a tile of bytes is multiplied four times, once for each field. The
weights are the left factor: unpacked, they go from registers to the matrix units, and a few rows
of activations fill what those want on their other side. Codes are weights plus one; the sum of a
row's activations is taken off in the end.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from bitttt_jax.ops import quantize
from bitttt_jax.ternary.packing import BLOCK, PackedTernary

NEEDS = "weights in the layout `i2_s`"

_FIELDS = 4
_LEAST_ROWS, _MOST_ROWS = 16, 128  # of a tile; the matrix units want 16


def takes(weight: PackedTernary) -> bool:
    """Whether the kernel takes a weight: those in the layout `i2_s`."""
    return weight.layout == "i2_s"


def matmul(
    x: jax.Array, weights: tuple[PackedTernary, ...], *, interpret: bool = False
) -> tuple[jax.Array, ...]:
    """As `ternary.matmul.matmul`; weights that the kernel `takes`.

    Args:
      x: activations `[M, K]`.
      weights: of K inputs each.
      interpret: run as plain JAX, on any backend.
    """
    codes, scale = quantize.int8_codes(x)
    return _products(codes, scale, weights, x.dtype, interpret)


def sums(
    codes: jax.Array, weights: tuple[PackedTernary, ...], *, interpret: bool = False
) -> tuple[jax.Array, ...]:
    """As `xla.sums`, of up to 130,000 inputs; weights that the kernel `takes`."""
    ones = jnp.ones((codes.shape[0], 1), jnp.float32)
    plain = tuple(dataclasses.replace(w, scale=jnp.ones_like(w.scale)) for w in weights)
    return _products(codes, ones, plain, jnp.int32, interpret)


def _products(codes_MK, scale_M1, weights, dtype, interpret: bool) -> tuple[jax.Array, ...]:
    rows, K = codes_MK.shape
    bm = min(_MOST_ROWS, max(_LEAST_ROWS, pl.next_power_of_2(rows)))
    codes_MK = jnp.pad(codes_MK, ((0, -rows % bm), (0, -K % BLOCK)))
    M = codes_MK.shape[0]
    x_FMJ = codes_MK.reshape(M, -1, _FIELDS, BLOCK // _FIELDS).transpose(2, 0, 1, 3)
    x_FMJ = x_FMJ.reshape(_FIELDS, M, -1)
    excess_M = jnp.sum(codes_MK, axis=1, dtype=jnp.int32)
    scale_M = jnp.pad(scale_M1[:, 0], (0, M - rows))
    return tuple(
        _product(x_FMJ, excess_M, scale_M, weight, bm, dtype, interpret)[:rows]
        for weight in weights
    )


def _product(x_FMJ, excess_M, scale_M, weight: PackedTernary, bm: int, dtype, interpret: bool):
    (_, M, J), N = x_FMJ.shape, weight.shape[1]
    few = bm < _MOST_ROWS // 2
    bn, warps = (64, 4) if few else (128, 8)
    bj = next(size for size in (128 if few else 64, 64, 32) if J % size == 0)
    return pl.pallas_call(
        functools.partial(_kernel, (bm, bn, bj)),
        grid=(-(-N // bn), M // bm),
        out_shape=jax.ShapeDtypeStruct((M, N), dtype),
        compiler_params=plt.CompilerParams(num_warps=warps, num_stages=3),
        interpret=interpret,
        name="packed_product",
    )(x_FMJ, excess_M, scale_M, weight.codes, weight.scale.reshape(1))


def _kernel(tile, x_ref, excess_ref, x_scale_ref, codes_ref, scale_ref, y_ref):
    """One tile of the product, the other way round while it is summed: outputs first."""
    bm, bn, bj = tile
    J, N = x_ref.shape[2], y_ref.shape[1]
    n, m = pl.program_id(0) * bn, pl.program_id(1) * bm
    exists = n + jnp.arange(bn) < N

    def add_bytes(j, sums):
        at = pl.ds(j * bj, bj)
        is_here = jnp.broadcast_to(exists[:, None], (bn, bj))
        codes = plt.load(codes_ref.at[pl.ds(n, bn), at], mask=is_here, other=0)
        for field in range(_FIELDS):
            weights = ((codes >> (6 - 2 * field)) & 3).astype(jnp.int8)
            x = x_ref[field, pl.ds(m, bm), at]
            sums += lax.dot_general(
                weights, x, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
            )
        return sums

    sums = lax.fori_loop(0, J // bj, add_bytes, jnp.zeros((bn, bm), jnp.int32))
    exact = (sums - excess_ref[pl.ds(m, bm)][None, :]).astype(jnp.float32)
    y = exact * (x_scale_ref[pl.ds(m, bm)][None, :] * scale_ref[0])
    is_here = jnp.broadcast_to(exists[None, :], (bm, bn))
    plt.store(y_ref.at[pl.ds(m, bm), pl.ds(n, bn)], y.T.astype(y_ref.dtype), mask=is_here)
