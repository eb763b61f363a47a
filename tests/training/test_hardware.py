from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from bitttt_jax.runs.memory_use import host_memory
from bitttt_jax.training import hardware

ROOT = Path(__file__).parent.parent.parent

FAULTS = """
import functools, resource, statistics, sys
import jax, jax.numpy as jnp
from bitttt_jax.training.hardware import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

@functools.partial(jax.jit, donate_argnums=0)
def step(x, w):
    y = jnp.sin(x @ w)
    return (jnp.cos(y @ w) * x) @ w + y

x, w, faults = jnp.full((2**20, 10), 1e-3), jnp.eye(10), []
for _ in range(60):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = jax.block_until_ready(step(x, w))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median(faults[20:]))
"""


def faults(mode: str) -> float:
    """Page faults of a step, in most of the later steps.

    In the first ones buffers come to lie where none has lain before: which are free when another
    is wanted depends on how the threads run.
    """
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, mode],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return float(done.stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION").lower(),  # type: ignore[union-attr]
    reason="an option of glibc",
)
def test_freed_buffers_are_used_again():
    before, after = faults("leave"), faults("keep")
    assert before >= 10240  # at least one buffer of 40 MiB
    assert after < before / 20


def test_peak():
    began = time.process_time()
    float32 = hardware.measure_peak("float32")
    assert time.process_time() - began < 2
    # Eight simulated devices share what the CPU can do: between 10 MFLOP/s and 10 TFLOP/s.
    assert 1e7 < float32 < 1e13
    assert hardware.measure_peak("bfloat16") > 0


def test_a_peak_that_cannot_be_measured_is_unknown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hardware, "_CPU_SIZE", 2**24)  # more bytes than there are addresses
    assert hardware.measure_peak("float32") == 0


def test_memory_of_this_process_and_of_devices_without_statistics():
    first = hardware.host_peak_bytes()
    block = np.ones(2**24)  # 128 MiB
    peak = hardware.host_peak_bytes()
    assert peak >= max(first, block.nbytes)
    assert peak == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert jax.local_devices()[0].memory_stats() is None
    assert hardware.device_peak_bytes() == [] == hardware.memory_by_host()


def test_cpu_devices_share_the_free_memory_of_the_host():
    room = hardware.device_room()
    assert room is not None
    limit, free = room
    count = jax.local_device_count()
    assert limit == host_memory().total // count
    assert 0 < free < limit
