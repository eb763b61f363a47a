"""The packed product on a mesh of devices, each of which has a part of the weights.

Weights are divided over the axis `tensor`: by columns, which gives each device a part of the
outputs, or by rows, of which each device multiplies a part of the inputs. Then the scale of a token
is that of its whole row, and integers are summed over the devices before they are scaled: the
result is that of one device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from bitttt_jax.config import BATCH_AXES, TENSOR_AXIS
from bitttt_jax.ops import quantize
from bitttt_jax.ops.partition import devices_along, over_mesh, shared
from bitttt_jax.ternary.packing import INPUTS_TOGETHER, PackedTernary

Sharding = Literal["columns", "rows"]
"""Which dimension of the weights is divided."""

Weights = tuple[PackedTernary, ...]


class Kernel(NamedTuple):
    """An implementation of the packed product."""

    matmul: Callable[[jax.Array, Weights], tuple[jax.Array, ...]]
    """Of activations `[M, K]`, in their type."""
    sums: Callable[[jax.Array, Weights], tuple[jax.Array, ...]]
    """Of int8 codes `[M, K]`, int32, not scaled."""


def parts(weights: Weights, sharding: Sharding) -> Weights | None:
    """The weights that a device multiplies: these codes, with the shape of the device's part.

    Returns:
      None where the devices along the axis can't share the weights evenly.
    """
    count = devices_along(TENSOR_AXIS)
    along = 0 if sharding == "rows" else 1
    for weight in weights:
        unit = INPUTS_TOGETHER[weight.layout] if sharding == "rows" else 1
        if weight.shape[along] % (unit * count):
            return None
    return tuple(_with_part(weight, along, count) for weight in weights)


def matmul(
    x: jax.Array, weights: Weights, kernel: Kernel, sharding: Sharding
) -> tuple[jax.Array, ...]:
    """Products of activations and weights, divided over the mesh.

    Args:
      x: activations `[M, K]`.
      weights: of K inputs each. Those that `parts` can't divide are multiplied by every device.
      kernel: what computes a device's part.
      sharding: how the weights are divided.

    Returns:
      `[M, N]` in the type of `x` for each of the weights.
    """
    shares = parts(weights, sharding)
    if shares is None:
        across, by_rows, shares = None, False, weights
    else:
        across, by_rows = TENSOR_AXIS, sharding == "rows"

    def part(x: jax.Array, *arrays: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        own = tuple(
            dataclasses.replace(share, codes=codes, scale=scale)
            for share, (codes, scale) in zip(shares, arrays, strict=True)
        )
        return _sum_over_devices(x, own, kernel) if by_rows else kernel.matmul(x, own)

    batch = shared(BATCH_AXES, x.shape[0])
    of_x, of_y = (P(batch, across), P(batch)) if by_rows else (P(batch), P(batch, across))
    of_weights = tuple((_codes_spec(weight, by_rows, across), P()) for weight in weights)
    call = over_mesh(part, (of_x, *of_weights), (of_y,) * len(weights))
    return call(x, *((weight.codes, weight.scale) for weight in weights))


def _sum_over_devices(x: jax.Array, weights: Weights, kernel: Kernel) -> tuple[jax.Array, ...]:
    codes, scale = quantize.int8_codes(x, TENSOR_AXIS)
    sums = lax.psum(kernel.sums(codes, weights), TENSOR_AXIS)
    return tuple(
        (y.astype(jnp.float32) * (scale * weight.scale)).astype(x.dtype)
        for y, weight in zip(sums, weights, strict=True)
    )


def _with_part(weight: PackedTernary, along: int, count: int) -> PackedTernary:
    K, N = weight.shape
    shape = (K // count, N) if along == 0 else (K, N // count)
    return dataclasses.replace(weight, shape=shape)


def _codes_spec(weight: PackedTernary, by_rows: bool, across: str | None) -> P:
    inputs_first = weight.layout == "rows4"
    return P(across, None) if by_rows == inputs_first else P(None, across)
