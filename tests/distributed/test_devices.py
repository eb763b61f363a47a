from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from bitttt_jax.distributed.devices import device_name, use_device
from bitttt_jax.errors import ConfigError
try:
    use_device(sys.argv[1])
except ConfigError as error:
    print("error:", error)
import jax
import jax.numpy as jnp
(device,) = jnp.ones(3).devices()
print(jax.default_backend(), device_name(device))
"""


def run(name: str) -> str:
    env = os.environ | {"PYTHONPATH": ":".join(sys.path), "JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, "-c", SCRIPT, name]
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize(
    ("name", "device"), [("", "cpu:0"), ("cpu", "cpu:0"), ("cpu:1", "cpu:1"), ("cpu:0", "cpu:0")]
)
def test_the_device_computes(name: str, device: str):
    assert run(name) == f"cpu {device}\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "--device=gpu: there is no such device here"),
        ("tpu:1", "JAX has cpu:0, cpu:1"),
        ("cpu:2", "there are only cpu:0, cpu:1"),
        ("cuda:x", "names no device"),
        ("gpux", "names no device"),
    ],
)
def test_a_device_that_is_not_there(name: str, message: str):
    out = run(name)
    assert out.startswith("error: ") and message in out
    assert out.endswith("cpu cpu:0\n")
