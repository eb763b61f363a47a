"""Kernels on a mesh of devices: the partitioner can't divide them, so each is told its part."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

Axes = str | tuple[str, ...]


def devices_along(axes: Axes) -> int:
    """Number of devices along axes of the current mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    names = (axes,) if isinstance(axes, str) else axes
    return math.prod(mesh.shape.get(axis, 1) for axis in names)


def shared(axes: Axes, size: int) -> Axes | None:
    """For a `PartitionSpec`: axes if their devices can share a dimension evenly, None if not."""
    return axes if size % devices_along(axes) == 0 else None


def over_mesh(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function` on every device's part of its arguments; itself where there is no mesh.

    What must be known of the whole, such as the largest value of a row that is divided, the
    function reduces itself.

    Args:
      function: of arrays; its results are the parts of `out_specs`.
      in_specs: a `PartitionSpec` for each argument, or a tree of them.
      out_specs: the same for the results.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return function
    # Interpreted kernels don't know which axes their values vary over.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
