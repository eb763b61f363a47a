"""What is compiled for TPUs: the kernels, dense products as their yardstick, a sharded train step.

A case is a function from the chips of a topology to a function and the abstract arguments it is
compiled for. A new kernel gets an entry in `KERNELS`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from bitttt_jax.config import (
    BATCH_AXES,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    TTTConfig,
)
from bitttt_jax.distributed import mesh as meshes
from bitttt_jax.ternary.divided import Sharding
from bitttt_jax.ternary.kernels import pallas_tpu
from bitttt_jax.ternary.matmul import matmul
from bitttt_jax.ternary.packing import PackedTernary, codes_shape
from bitttt_jax.ttt.kernels import pallas_tpu as ttt_kernel
from bitttt_jax.ttt.kernels.inputs import Inputs

Chips = Sequence[jax.Device]
Compiled = Any
Case = Callable[[Chips], tuple[Compiled, int]]
"""Compiles; returns that, and the steps of its kernel's grid (0 without a kernel)."""

# Rows, inputs and outputs: the MLP of BitNet b1.58 2B4T, one token of 8 sequences and a prompt.
DECODE, PREFILL = (8, 2560, 6912), (512, 2560, 6912)
RAGGED = (300, 6912, 640)


def _packed(chip, K: int, N: int) -> PackedTernary:
    codes = _array(chip, codes_shape((K, N), "rows4"), "uint8")
    return PackedTernary(codes, _array(chip, (), "float32"), (K, N), "rows4")


def _array(place, shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
    sharding = place if isinstance(place, NamedSharding) else SingleDeviceSharding(place)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _steps(M: int, K: int, N: int) -> int:
    """Of the grid of a product."""
    bm, bk, bn = pallas_tpu.blocks(M, K, N)
    return -(-M // bm) * (K // bk) * (N // bn)


def packed_product(
    chips: Chips, *, shape: tuple[int, int, int], compute: pallas_tpu.Compute
) -> tuple[Compiled, int]:
    """Activations quantised, times packed weights."""
    M, K, N = shape
    product = lambda x, w: pallas_tpu.matmul(x, (w,), compute=compute)
    lowered = jax.jit(product).lower(_array(chips[0], (M, K), "bfloat16"), _packed(chips[0], K, N))
    return lowered.compile(), _steps(*shape)


def dense_product(chips: Chips, *, shape: tuple[int, int, int], dtype: str) -> tuple[Compiled, int]:
    """The yardstick: the same kernel in the same blocks, of weights that need no unpacking."""
    M, K, N = shape
    bm, bk, bn = pallas_tpu.blocks(*shape)
    total = jnp.int32 if dtype == "int8" else jnp.float32

    def kernel(x_ref, x_scale_ref, w_ref, scale_ref, y_ref, sums_ref):
        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            sums_ref[...] = jnp.zeros_like(sums_ref)

        sums_ref[...] += jnp.dot(x_ref[...], w_ref[...], preferred_element_type=total)

        @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
        def _() -> None:
            scale = x_scale_ref[...] * scale_ref[0]
            y_ref[...] = (sums_ref[...].astype(jnp.float32) * scale).astype(y_ref.dtype)

    product = pl.pallas_call(
        kernel,
        grid=(M // bm, N // bn, K // bk),
        in_specs=[
            pl.BlockSpec((bm, bk), lambda m, n, k: (m, k)),
            pl.BlockSpec((bm, 1), lambda m, n, k: (m, 0)),
            pl.BlockSpec((bk, bn), lambda m, n, k: (k, n)),
            pl.BlockSpec((1,), lambda m, n, k: (0,), memory_space=pltpu.SMEM),
        ],
        out_specs=pl.BlockSpec((bm, bn), lambda m, n, k: (m, n)),
        out_shape=jax.ShapeDtypeStruct((M, N), jnp.bfloat16),
        scratch_shapes=[pltpu.VMEM((bm, bn), total)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        name="dense_product",
    )
    shapes = [((M, K), dtype), ((M, 1), "float32"), ((K, N), dtype), ((1,), "float32")]
    lowered = jax.jit(product).lower(*(_array(chips[0], *of) for of in shapes))
    return lowered.compile(), _steps(*shape)


def sharded_product(chips: Chips, *, sharding: Sharding) -> tuple[Compiled, int]:
    """The packed product on all chips of a topology, its weights divided in two."""
    M, K, N = PREFILL
    mesh = meshes.make_mesh(MeshConfig(fsdp=2, tensor=2), chips)
    across = P(None, "tensor") if sharding == "columns" else P("tensor", None)
    place = lambda spec: NamedSharding(mesh, spec)
    codes = _array(place(across), codes_shape((K, N), "rows4"), "uint8")
    weight = PackedTernary(codes, _array(place(P()), (), "float32"), (K, N), "rows4")
    product = lambda x, w: matmul(x, (w,), implementation="pallas_tpu", sharding=sharding)
    rows = M * 2 // len(chips)
    part = (rows, K, N // 2) if sharding == "columns" else (rows, K // 2, N)
    with jax.set_mesh(mesh):
        x = _array(place(P(BATCH_AXES, None)), (M, K), "bfloat16")
        return jax.jit(product).lower(x, weight).compile(), _steps(*part)


def inner_learning(chips: Chips, *, hidden: int, backward: bool) -> tuple[Compiled, int]:
    """All mini-batches of sequences, read forwards; or that and its backward pass."""
    B, T, H, K, b, group = 8, 2048, 12, 64, 16, 4
    fast = (K + 1) * hidden + (hidden + 1) * K if hidden else (K + 1) * K
    floats = lambda *shape: _array(chips[0], shape, "float32")
    tokens, initial = floats(B, T, H, K), floats(B, H, fast)
    rate, norm = floats(B, T, H), floats(H, K)
    restart = _array(chips[0], (B, T // b), "bool")
    inputs = Inputs(*(tokens,) * 3, rate, floats(b), norm, norm, initial, floats(H, fast), restart)
    read = lambda inputs: ttt_kernel.read_mini_batches(inputs, hidden, group)

    def differentiate(inputs, *grads):
        rest = inputs._replace(restart=None)
        of_rest = lambda rest: read(rest._replace(restart=inputs.restart))
        return jax.vjp(of_rest, rest)[1](grads)

    function, grads = (differentiate, (tokens, initial)) if backward else (read, ())
    steps = ttt_kernel.steps(B, H, K, hidden, T // b, group)
    return jax.jit(function).lower(inputs, *grads).compile(), steps


def train_step(chips: Chips) -> tuple[Compiled, int]:
    """A step of training as a run compiles it: parameters and products divided over the chips."""
    from bitttt_jax.runs.console import Console
    from bitttt_jax.runs.directory import RunDirectory
    from bitttt_jax.training.setup import compile_steps

    config = TrainConfig(
        name="compiled",
        model=ModelConfig(
            vocab_size=512,
            dim=256,
            num_layers=2,
            num_heads=4,
            mlp_dim=512,
            mixers=("attention", "ttt_linear"),
            ttt=TTTConfig(mini_batch=16),
        ),
        data=DataConfig(seq_len=128, batch_size=8),
        optim=OptimConfig(warmup_steps=1),
        mesh=MeshConfig(fsdp=2, tensor=2),
    )
    mesh = meshes.make_mesh(config.mesh, chips)
    steps = compile_steps(config, mesh, RunDirectory(Path("unused")), Console(mode="silent"))
    return steps.train_step, 0


KERNELS: dict[str, Case] = {
    **{
        f"packed_{name}_{use}": functools.partial(packed_product, shape=shape, compute=compute)
        for name, compute in (("int8", "int8"), ("bf16", "bfloat16"))
        for use, shape in (("decode", DECODE), ("prefill", PREFILL), ("ragged", RAGGED))
    },
    **{
        f"dense_{name}_{use}": functools.partial(dense_product, shape=shape, dtype=dtype)
        for name, dtype in (("int8", "int8"), ("bf16", "bfloat16"))
        for use, shape in (("decode", DECODE), ("prefill", PREFILL))
    },
    "packed_columns": functools.partial(sharded_product, sharding="columns"),
    "packed_rows": functools.partial(sharded_product, sharding="rows"),
    **{
        f"ttt_{name}_{way}": functools.partial(
            inner_learning, hidden=hidden, backward=way == "backward"
        )
        for name, hidden in (("linear", 0), ("mlp", 256))
        for way in ("forward", "backward")
    },
}
"""Programs whose kernels' code is counted."""

CASES: dict[str, Case] = {**KERNELS, "train_step": train_step}


def _compile_kernel(chips: Chips, kernel: Any, dtype: str, rows: int = 128) -> tuple[Compiled, int]:
    block = _array(chips[0], (rows, 128), dtype)
    call = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(block.shape, dtype), name="kernel")
    return jax.jit(call).lower(block).compile(), 0


def int8_subtraction(chips: Chips) -> tuple[Compiled, int]:
    """There is none in the vector units."""

    def kernel(x_ref, y_ref):
        y_ref[...] = x_ref[...] - jnp.int8(1)

    return _compile_kernel(chips, kernel, "int8")


def uint8_shift(chips: Chips) -> tuple[Compiled, int]:
    """Older versions of libtpu can't."""

    def kernel(x_ref, y_ref):
        y_ref[...] = x_ref[...] >> jnp.uint8(2)

    return _compile_kernel(chips, kernel, "uint8")


def too_large_blocks(chips: Chips) -> tuple[Compiled, int]:
    """200 MiB in a memory of at most 128."""

    def kernel(x_ref, y_ref):
        y_ref[...] = x_ref[...]

    return _compile_kernel(chips, kernel, "float32", rows=200 * 2**20 // 512)


def kernel_left_to_the_partitioner(chips: Chips) -> tuple[Compiled, int]:
    """A kernel on divided arrays, which nobody maps over the devices."""
    mesh = meshes.make_mesh(MeshConfig(fsdp=2, tensor=2), chips)
    weight = _packed(NamedSharding(mesh, P()), 256, 256)
    x = _array(NamedSharding(mesh, P(BATCH_AXES, None)), (64, 256), "bfloat16")
    with jax.set_mesh(mesh):
        lowered = jax.jit(lambda x, w: pallas_tpu.matmul(x, (w,))).lower(x, weight)
    return lowered.compile(), 0


CONTROLS: dict[str, Case] = {
    "int8_subtraction": int8_subtraction,
    "uint8_shift": uint8_shift,
    "too_large_blocks": too_large_blocks,
    "kernel_left_to_the_partitioner": kernel_left_to_the_partitioner,
}
"""What the compiler must refuse, or else it isn't the real one."""
