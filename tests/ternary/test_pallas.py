"""The Pallas kernels in interpret mode, and their way to a compiler as far as it goes here."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from bitttt_jax.errors import ConfigError
from bitttt_jax.ternary import packing
from bitttt_jax.ternary.kernels import pallas_gpu, pallas_tpu, xla
from bitttt_jax.ternary.matmul import matmul
from tests.ternary.products import random_product

# Rows, inputs, outputs of each weight: of decoding and of prefill, one block and several.
SHAPES = [
    (1, 128, (128,)),
    (3, 2560, (640, 128)),
    (8, 384, (256,)),
    (300, 1280, (512,)),
]
# What only the GPU kernel takes: inputs and outputs that fill no tile.
RAGGED = [(5, 300, (70, 1)), (129, 129, (200,))]

KERNELS: dict[str, tuple[Any, Any]] = {
    "tpu-int8": (pallas_tpu, {"compute": "int8"}),
    "tpu-bfloat16": (pallas_tpu, {"compute": "bfloat16"}),
    "gpu": (pallas_gpu, {}),
}
LAYOUTS: dict[Any, packing.Layout] = {pallas_tpu: "rows4", pallas_gpu: "i2_s"}
LOWERED = {pallas_tpu: ("tpu", "tpu_custom_call"), pallas_gpu: ("cuda", "__gpu$xla.gpu.triton")}
# Newer versions of JAX lower for GPUs only where they know which.
H100_CHIP = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "cuda")
H100 = AbstractMesh((1,), ("x",), abstract_device=H100_CHIP)
CASES = [(name, shape) for name in KERNELS for shape in SHAPES]
CASES += [("gpu", shape) for shape in RAGGED]
EVERY_KERNEL = pytest.mark.parametrize(("name", "shape"), CASES, ids=str)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@EVERY_KERNEL
def test_the_kernel_computes_what_xla_does(name, shape, dtype):
    kernel, options = KERNELS[name]
    x, weights = random_product(*shape, dtype, LAYOUTS[kernel])
    product = functools.partial(kernel.matmul, interpret=True, **options)
    for found, expected in zip(
        jax.jit(product)(x, weights), jax.jit(xla.matmul)(x, weights), strict=True
    ):
        assert found.dtype == dtype
        floats = (np.asarray(y, np.float32) for y in (found, expected))
        tolerance = 5e-7 if dtype == "float32" else 2**-8  # XLA may round scales in another order
        np.testing.assert_allclose(*floats, rtol=tolerance, atol=0)


@pytest.mark.parametrize("name", KERNELS)
def test_sums_are_exact_integers(name):
    kernel, options = KERNELS[name]
    _, weights = random_product(20, 640, (128, 256), "float32", LAYOUTS[kernel])
    codes = np.random.default_rng(0).integers(-128, 128, (20, 640)).astype(np.int8)
    sums = functools.partial(kernel.sums, interpret=True, **options)
    for found, expected in zip(sums(codes, weights), xla.sums(codes, weights), strict=True):
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected)


# Mosaic compiles for Hopper alone, and not this kernel in both versions of JAX.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@EVERY_KERNEL
def test_it_lowers_for_its_platform(name, shape):
    kernel, options = KERNELS[name]
    x, weights = random_product(*shape, "float32", LAYOUTS[kernel])
    platform, call = LOWERED[kernel]
    with use_abstract_mesh(H100):
        traced = jax.jit(functools.partial(kernel.matmul, **options)).trace(x, weights)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count(f"custom_call @{call}") == len(weights)


def test_what_they_do_not_take():
    x, weights = random_product(2, 256, (128, 40), layout="rows4")
    with pytest.raises(ConfigError, match="multiples of 128"):
        matmul(x, weights, implementation="pallas_tpu")
    with pytest.raises(ConfigError, match="layout `i2_s`"):
        matmul(x, weights, implementation="pallas_gpu")
    blocks = packing.convert_layout(weights[0], "i2_s")
    assert pallas_tpu.takes(weights[0]) and not pallas_tpu.takes(blocks)
    assert pallas_gpu.takes(blocks) and not pallas_gpu.takes(weights[0])


@pytest.mark.parametrize("rows", [1, 8, 9, 33, 256, 257, 300, 2048])
@pytest.mark.parametrize(("K", "N"), [(2560, 6912), (6912, 2560), (128, 128), (2560, 640)])
def test_blocks_of_a_tpu_cover_the_product(rows, K, N):
    bm, bk, bn = pallas_tpu.blocks(rows, K, N)
    assert K % bk == 0 == N % bn and bm % 8 == 0
    assert -(-rows // bm) * bm - rows < 32 * -(-rows // bm)
    assert bm * bk + bk * bn // 4 + bm * bn * 4 < 4 * 2**20  # twice that in 16 MiB
