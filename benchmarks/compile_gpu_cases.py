"""What is compiled for GPUs: the kernels, and what the compiler must refuse.

A case is a function from a place (of abstract arrays) to the lowered program. A new kernel gets an
entry in `CASES`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jax.sharding import Sharding

from bitttt_jax.ternary.kernels import pallas_gpu
from bitttt_jax.ternary.packing import PackedTernary, codes_shape

Case = Callable[[Sharding], Any]

# Rows, inputs and outputs: the MLP of BitNet b1.58 2B4T, one token of 8 sequences and a prompt.
DECODE, PREFILL, RAGGED = (8, 2560, 6912), (512, 2560, 6912), (300, 6912, 650)


def _lower(function: Any, *arguments: Any) -> Any:
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))


def packed_product(place: Sharding, *, shape: tuple[int, int, int]) -> Any:
    """Activations quantised, times packed weights."""
    M, K, N = shape
    array = functools.partial(jax.ShapeDtypeStruct, sharding=place)
    codes = array(codes_shape((K, N), "i2_s"), "uint8")
    weight = PackedTernary(codes, array((), "float32"), (K, N), "i2_s")
    product = lambda x, w: pallas_gpu.matmul(x, (w,))
    return _lower(product, array((M, K), "bfloat16"), weight)


def too_large_tiles(place: Sharding) -> Any:
    """Tiles of 256 x 512 and 512 x 256 bfloat16, four of each at once."""

    def kernel(x_ref, w_ref, y_ref):
        def add(k, total):
            at = pl.ds(k * 512, 512)
            return total + lax.dot(x_ref[:, at], w_ref[at, :], preferred_element_type="float32")

        y_ref[...] = lax.fori_loop(0, 8, add, jax.numpy.zeros((256, 256), "float32"))

    array = functools.partial(jax.ShapeDtypeStruct, dtype="bfloat16", sharding=place)
    call = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((256, 256), "float32"),
        compiler_params=plt.CompilerParams(num_warps=8, num_stages=4),
    )
    return _lower(call, array((256, 4096)), array((4096, 256)))


CASES: dict[str, Case] = {
    f"packed_{use}": functools.partial(packed_product, shape=shape)
    for use, shape in (("decode", DECODE), ("prefill", PREFILL), ("ragged", RAGGED))
}
CONTROLS: dict[str, Case] = {"too_large_tiles": too_large_tiles}
"""What the compiler must refuse, or else it isn't the real one."""
