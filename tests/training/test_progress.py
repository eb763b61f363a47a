"""What a run records of its steps besides the values themselves."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import pytest

from bitttt_jax.config import LogConfig, TrainConfig
from bitttt_jax.runs.console import Console
from bitttt_jax.runs.console_memory import HostMemory
from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.metrics import MetricsWriter
from bitttt_jax.training import hardware
from bitttt_jax.training.meter import Meter
from bitttt_jax.training.progress import Progress
from bitttt_jax.training.step import StepMetrics


@pytest.mark.parametrize("devices", [0, 8, 64, 256])
def test_the_status_has_the_memory_of_all_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int
):
    hosts = [HostMemory(f"host{h}", tuple(range(h, h + 8)), 100) for h in range(-(-devices // 8))]
    monkeypatch.setattr(hardware, "memory_by_host", lambda: hosts)
    config = TrainConfig(log=LogConfig(every_steps=2))
    values = dict.fromkeys(StepMetrics._fields, jnp.float32(1))
    with (
        RunDirectory.open(tmp_path / "run", writer=True) as run,
        Console(mode="silent") as console,
        MetricsWriter(run, tensorboard=False) as metrics,
    ):
        run.start()
        progress = Progress(config, run, console, metrics, Meter(4.0, 1e9, 0, max(devices, 1)))
        for step in (1, 2):
            progress.add(step, StepMetrics(**values))
        progress.flush()
    status = run.read_status()
    assert status is not None
    assert [(h["name"], len(h["used"]), h["limit"]) for h in status.devices] == [
        (host.name, 8, 100) for host in hosts
    ]
