"""The packed product as a Pallas kernel for TPUs.

Weights come from memory at 2 bits and are unpacked where the matrix unit reads them: a byte of the
layout `rows4` becomes four rows by a cast. Sums are kept in int32 from the first block of inputs
to the last, and scaled on the way out.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bitttt_jax.ops import quantize
from bitttt_jax.ternary.packing import PackedTernary

NEEDS = "weights in the layout `rows4` whose widths (of each device's part) are multiples of 128"
Compute = Literal["int8", "bfloat16"]

_SUBLANES, _LANES = 8, 128
# Chosen by the bundles compiled for v5e and v6e: each step of the grid costs some 150 whatever it
# multiplies. A block of weights is larger where there are few rows; its code grows with both.
_BLOCK_ROWS, _BLOCK_INPUTS = 256, 2560
_FEW_ROWS, _BLOCK_WEIGHTS_OF_FEW, _BLOCK_WEIGHTS = 32, 3 * 2**20, 2 * 2**20


def takes(weight: PackedTernary) -> bool:
    """Whether the kernel takes a weight: `rows4`, both its widths multiples of 128."""
    K, N = weight.shape
    return weight.layout == "rows4" and K % _LANES == 0 and N % _LANES == 0


def matmul(
    x: jax.Array,
    weights: tuple[PackedTernary, ...],
    *,
    compute: Compute = "int8",
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """As `ternary.matmul.matmul`; weights that the kernel `takes`.

    Args:
      x: activations `[M, K]`.
      weights: of K inputs each.
      compute: type of the factors. `bfloat16` is as exact up to 130,000 inputs (all values are
        integers below 2^8, sums below 2^24), for chips whose matrix unit has no int8.
      interpret: run as plain JAX, on any backend.
    """
    codes, scale = quantize.int8_codes(x)
    return tuple(_product(codes, scale, w, x.dtype, compute, interpret) for w in weights)


def sums(
    codes: jax.Array,
    weights: tuple[PackedTernary, ...],
    *,
    compute: Compute = "int8",
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """The products of int8 codes `[M, K]` and of the weights' codes, int32; else as `matmul`."""
    ones = jnp.ones((codes.shape[0], 1), jnp.float32)
    plain = (dataclasses.replace(w, scale=jnp.ones_like(w.scale)) for w in weights)
    return tuple(_product(codes, ones, w, jnp.int32, compute, interpret) for w in plain)


def _product(x_MK, scale_M1, weight: PackedTernary, dtype, compute: Compute, interpret: bool):
    rows, (K, N) = x_MK.shape[0], weight.shape
    bm, bk, bn = blocks(rows, K, N)
    M = -(-rows // bm) * bm
    x_MK, scale_M1 = (jnp.pad(part, ((0, M - rows), (0, 0))) for part in (x_MK, scale_M1))
    factor, total = (jnp.int8, jnp.int32) if compute == "int8" else (jnp.bfloat16, jnp.float32)
    return pl.pallas_call(
        functools.partial(_kernel, factor, total),
        grid=(M // bm, N // bn, K // bk),
        in_specs=[
            pl.BlockSpec((bm, bk), lambda m, n, k: (m, k)),
            pl.BlockSpec((bm, 1), lambda m, n, k: (m, 0)),
            pl.BlockSpec((bk // 4, bn), lambda m, n, k: (k, n)),
            pl.BlockSpec((1,), lambda m, n, k: (0,), memory_space=pltpu.SMEM),
        ],
        out_specs=pl.BlockSpec((bm, bn), lambda m, n, k: (m, n)),
        out_shape=jax.ShapeDtypeStruct((M, N), dtype),
        scratch_shapes=[pltpu.VMEM((bm, bn), total)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * M * N * K,
            bytes_accessed=M * K + N * K // 4 + M * N * jnp.dtype(dtype).itemsize,
            transcendentals=0,
        ),
        interpret=interpret,
        name="packed_product",
    )(x_MK, scale_M1, weight.codes, weight.scale.reshape(1))[:rows]


def blocks(rows: int, K: int, N: int) -> tuple[int, int, int]:
    """Rows, inputs and outputs of a step of the grid."""
    parts = -(-rows // _BLOCK_ROWS)
    unit = _SUBLANES if parts == 1 else 4 * _SUBLANES  # four int8 to a register's sublane
    bm = -(-rows // (parts * unit)) * unit
    weights = _BLOCK_WEIGHTS_OF_FEW if bm <= _FEW_ROWS else _BLOCK_WEIGHTS
    bk = _largest_divisor(K, _BLOCK_INPUTS)
    return bm, bk, _largest_divisor(N, weights // bk)


def _largest_divisor(size: int, bound: int) -> int:
    """The largest multiple of 128 that divides `size`, up to a bound."""
    return next(n for n in range(bound // _LANES * _LANES, 0, -_LANES) if size % n == 0)


def _kernel(factor, total, x_ref, x_scale_ref, codes_ref, scale_ref, y_ref, sums_ref):
    """One block of inputs for one block of the product."""

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        sums_ref[...] = jnp.zeros_like(sums_ref)

    weights = pltpu.bitcast(codes_ref[...], jnp.int2).astype(factor)
    sums_ref[...] += jnp.dot(x_ref[...].astype(factor), weights, preferred_element_type=total)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        scale = x_scale_ref[...] * scale_ref[0]
        y_ref[...] = (sums_ref[...].astype(jnp.float32) * scale).astype(y_ref.dtype)
