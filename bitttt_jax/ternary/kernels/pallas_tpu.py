"""The packed product as a Pallas kernel for TPUs.

Weights come from memory at 2 bits and are unpacked where the matrix unit reads them: a byte of the
layout `rows4` becomes four rows by a cast. Sums are kept in int32 from the first block of inputs
to the last, and scaled on the way out.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bitttt_jax.ops import quantize
from bitttt_jax.ternary.packing import PackedTernary

Compute = Literal["int8", "bfloat16"]

_SUBLANES, _LANES = 8, 128
_BLOCK_ROWS, _BLOCK_OUTPUTS = 256, 512
_BLOCK_INPUTS = (1024, 768, 640, 512, 384, 256, 128)


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
    M = x.shape[0]
    codes, scale = quantize.int8_codes(x)
    short = -M % min(_BLOCK_ROWS, -(-M // _SUBLANES) * _SUBLANES)
    codes, scale = (jnp.pad(part, ((0, short), (0, 0))) for part in (codes, scale))
    outputs = [_product(codes, scale, w, x.dtype, compute, interpret) for w in weights]
    return tuple(y[:M] for y in outputs)


def _product(x_MK, scale_M1, weight: PackedTernary, dtype, compute: Compute, interpret: bool):
    (M, K), N = x_MK.shape, weight.shape[1]
    bm = min(_BLOCK_ROWS, M)
    bk = next(size for size in _BLOCK_INPUTS if K % size == 0)
    bn = next(size for size in (_BLOCK_OUTPUTS, 256, _LANES) if N % size == 0)
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
    )(x_MK, scale_M1, weight.codes, weight.scale.reshape(1))


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
