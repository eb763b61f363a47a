"""The device mesh, and how a batch lies on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bitttt_jax.config import BATCH_AXES, TENSOR_AXIS, MeshConfig
from bitttt_jax.errors import ConfigError

AXES = (*BATCH_AXES, TENSOR_AXIS)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges the devices on the axes `data`, `fsdp` and `tensor`.

    Args:
      config: sizes of the axes; `data=-1` takes the devices that the others leave.
      devices: those of the whole run if None.

    Raises:
      ConfigError: the sizes don't use all devices.
    """
    count = len(jax.devices() if devices is None else devices)
    shape = _axis_sizes(config, count)
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * len(AXES), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a [batch, time] array: rows over `data` and `fsdp`."""
    return NamedSharding(mesh, P(BATCH_AXES, None))


def check_batch_size(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Refuses a batch that the devices can't share evenly.

    Args:
      batch_size: rows of a step.
      accumulation: parts in which a step is run.
      mesh: the device mesh.

    Raises:
      ConfigError: the rows of a part aren't a multiple of the devices on the batch axes.
    """
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % (accumulation * shards):
        part = f" / optim.accumulation={accumulation}" if accumulation > 1 else ""
        raise ConfigError(
            f"data.batch_size={batch_size}{part} must be a multiple of {shards}",
            f"the rows are shared by mesh.data={mesh.shape['data']} x "
            f"mesh.fsdp={mesh.shape['fsdp']} devices",
            f"--config.data.batch_size={_round_up(batch_size, accumulation * shards)}",
        )


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Rows of the global batch that this process must read, ascending.

    Processes that share a row through the `tensor` axis each read it.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size, 1))
    ranges = {index[0].indices(batch_size) for index in indices.values() if index}
    return np.unique(np.concatenate([np.arange(*rows) for rows in ranges]))


def to_global(local: Any, mesh: Mesh, batch_size: int) -> Any:
    """Puts the rows that each process read together to global arrays.

    Args:
      local: a tree of [rows, time] arrays with the rows of `process_rows`, in that order.
      mesh: the device mesh.
      batch_size: rows of the global batch.

    Returns:
      The tree with [batch_size, time] arrays, sharded by `batch_sharding`.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda rows_BT: jax.make_array_from_process_local_data(
            sharding, rows_BT, (batch_size, *rows_BT.shape[1:])
        ),
        local,
    )


def _axis_sizes(config: MeshConfig, count: int) -> tuple[int, int, int]:
    inner = config.fsdp * config.tensor
    if config.data == -1:
        if count % inner:
            raise ConfigError(
                f"mesh.fsdp={config.fsdp} x mesh.tensor={config.tensor} = {inner} "
                f"doesn't divide the number of devices, {count}"
            )
        return count // inner, config.fsdp, config.tensor
    if config.data * inner != count:
        raise ConfigError(
            f"mesh.data={config.data} x mesh.fsdp={config.fsdp} x mesh.tensor={config.tensor} "
            f"= {config.data * inner}, but there are {count} devices",
            fix="--config.mesh.data=-1, which takes the devices left over",
        )
    return config.data, config.fsdp, config.tensor


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
