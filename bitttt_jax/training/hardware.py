"""What the devices can do and hold: measured peak rate, memory in use, and freed memory kept."""

from __future__ import annotations

import ctypes
import importlib.util
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from bitttt_jax.runs.console_memory import HostMemory
from bitttt_jax.runs.memory_use import host_memory

# Side of the square matrices; on a CPU their product takes some milliseconds.
_CPU_SIZE, _SIZE = 1024, 8192
_REPEATS, _CPU_SECONDS = 5, 0.1
# Numbers of glibc's malloc.h, and values: no allocation of its own for what is large, nothing given
# back from the top of the heap, one heap for all threads, which grows by 512 MiB at a time (with
# smaller steps it ended up half as large again).
_MALLOC_OPTIONS = ((-4, 0), (-1, -1), (-8, 1), (-2, 2**29))


def keep_freed_memory() -> bool:
    """Lets freed device buffers be used again at once, where the devices are CPUs.

    XLA allocates a step's buffers anew with every step. glibc takes large ones from the kernel
    and gives them back, so that each step faults in all its pages again, which can take more than
    a tenth of its time. Call it before JAX starts its threads; later it has no effect.

    Returns:
      Whether it was done: on Linux with glibc, and if no accelerator can be there.
    """
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    plugins = map(importlib.util.find_spec, ("jax_plugins", "libtpu"))
    if sys.platform != "linux" or (platforms != "cpu" and any(plugins)):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return all([libc.mallopt(*option) for option in _MALLOC_OPTIONS])


def measure_peak(dtype: str) -> float:
    """Operations per second of a large square matrix product on one device, the best of a few.

    Simulated devices share the CPU, so each is given its part of what the first can do.

    Args:
      dtype: floating-point type of the factors; the result is float32.

    Returns:
      The rate; 0 if it couldn't be measured.
    """
    is_cpu = jax.default_backend() == "cpu"
    size = _CPU_SIZE if is_cpu else _SIZE
    try:
        seconds = _time_product(size, dtype, _CPU_SECONDS if is_cpu else float("inf"))
    except jax.errors.JaxRuntimeError:  # no room for it: the run may fit all the same
        return 0.0
    return 2 * size**3 / seconds / (jax.local_device_count() if is_cpu else 1)


def _time_product(size: int, dtype: str, most_seconds: float) -> float:
    a = jnp.ones((size, size), dtype, device=jax.local_devices()[0])
    product = jax.jit(lambda a: jax.lax.dot(a, a, preferred_element_type=jnp.float32))
    product(a).block_until_ready()
    seconds: list[float] = []
    while len(seconds) < _REPEATS and sum(seconds) < most_seconds:
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def host_peak_bytes() -> int:
    """Most memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_peak_bytes() -> list[int]:
    """Peak memory of each local device; empty where the backend keeps no statistics."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    return [each["peak_bytes_in_use"] for each in stats if each]


def device_room() -> tuple[int, int] | None:
    """Bytes that a device can hold, and those of them that are free: the least of all devices.

    CPU devices share the host's memory. All processes call this; None where a backend keeps no
    statistics.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        memory, count = host_memory(), len(devices)
        sizes_D2 = [(memory.total // count, max(memory.total - memory.used, 0) // count)]
    else:
        stats = [device.memory_stats() or {} for device in devices]
        if not all("bytes_limit" in each for each in stats):
            return None
        sizes_D2 = [
            (each["bytes_limit"], each["bytes_limit"] - each["bytes_in_use"]) for each in stats
        ]
    least = np.min(np.array(sizes_D2, np.int64), axis=0)
    if jax.process_count() > 1:
        least = multihost_utils.process_allgather(least).min(axis=0)
    return int(least[0]), int(least[1])


def memory_by_host() -> list[HostMemory]:
    """Device memory of all hosts, which all call this; empty where there are no statistics."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if not all("bytes_limit" in each for each in stats):
        return []
    used_D, limit_D = (
        np.array([each[key] for each in stats], np.int64) for key in ("bytes_in_use", "bytes_limit")
    )
    if jax.process_count() > 1:
        used_HD, limit_HD = multihost_utils.process_allgather((used_D, limit_D))
    else:
        used_HD, limit_HD = used_D[None], limit_D[None]
    return [
        HostMemory(f"host{i}", tuple(map(int, used_D)), int(limit_D.max()))
        for i, (used_D, limit_D) in enumerate(zip(used_HD, limit_HD, strict=True))
    ]
