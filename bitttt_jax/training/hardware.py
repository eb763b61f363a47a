"""What the devices can do and hold: measured peak rate, memory in use."""

from __future__ import annotations

import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

_SIZES = {"cpu": 1024}
_DEFAULT_SIZE = 8192
_REPEATS = 5


def measure_peak(dtype: str) -> float:
    """Operations per second of a large square matrix product on one device, the best of a few.

    Args:
      dtype: type of the factors; the result is float32 (int32 for integers).
    """
    size = _SIZES.get(jax.default_backend(), _DEFAULT_SIZE)
    out = jnp.int32 if dtype == "int8" else jnp.float32
    device = jax.local_devices()[0]
    a = jax.device_put(np.ones((size, size), np.int8), device).astype(dtype)
    product = jax.jit(lambda a: jax.lax.dot(a, a, preferred_element_type=out))
    product(a).block_until_ready()
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def host_peak_bytes() -> int:
    """Most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_peak_bytes() -> list[int]:
    """Peak memory of each local device; empty where the backend keeps no statistics."""
    statistics_ = [device.memory_stats() for device in jax.local_devices()]
    return [stats["peak_bytes_in_use"] for stats in statistics_ if stats]


def memory_by_host() -> list[tuple[str, tuple[int, ...], int]]:
    """(name, bytes in use by device, limit of a device) of every host; all hosts call it."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    used = np.array([s.get("bytes_in_use", -1) for s in stats], np.int64)
    limit = np.array([s.get("bytes_limit", 0) for s in stats], np.int64)
    if jax.process_count() > 1:
        used, limit = multihost_utils.process_allgather((used, limit))
    used, limit = np.atleast_2d(used), np.atleast_2d(limit)
    return [
        (f"host{i}", tuple(int(u) for u in row if u >= 0), int(most.max()))
        for i, (row, most) in enumerate(zip(used, limit, strict=True))
    ]


def median(values: list[float]) -> float:
    """Median, or 0 of nothing."""
    return statistics.median(values) if values else 0.0
