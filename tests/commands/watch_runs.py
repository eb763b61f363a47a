"""Runs to look at, made without training."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import time
from pathlib import Path

import psutil

from bitttt_jax.runs.console_memory import HostMemory
from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.status import RunStatus

GIB = 2**30
GONE = 2**22 + 1  # no process has such a number


def make_run(path: Path, **status: object) -> RunDirectory:
    """A run in the middle of its work, of this process unless `status` says something else."""
    with RunDirectory.open(path, writer=True) as run:
        run.write_config("{}\n")
        for step in range(10, 621, 10):
            run.metric(_row(step))
            if step % 200 == 0:
                run.metric({"step": step, "eval/loss": _loss(step) + 0.1, "eval/bpb": 1.5})
                run.event("checkpoint", step=step, path="", bytes=21_400_000)
                _save(run, step)
        run.event(
            "sample", step=600, text="def \x1b[31mred(x):\n    return 日本語\n" + "pass\n" * 9
        )
        run.log_path.write_text("".join(f"step={step}/1000 loss=2.2\n" for step in range(600, 621)))
    write_status(run, **status)
    return run


def write_status(run: RunDirectory, **changes: object) -> None:
    process = psutil.Process()
    hosts = [HostMemory(f"host{i}", (60 * GIB, (70 + 9 * i) * GIB), 80 * GIB) for i in (0, 1)]
    status = RunStatus(
        state="running", step=620, steps=1000, eta_s=76.0, pid=os.getpid(),
        host=socket.gethostname(), create_time=process.create_time(), heartbeat=time.time(),
        devices=tuple(dataclasses.asdict(host) for host in hosts),
    )  # fmt: skip
    changed = dataclasses.replace(status, **changes)  # type: ignore[arg-type]
    temporary = run.status_path.with_suffix(".new")
    temporary.write_text(json.dumps(dataclasses.asdict(changed)))
    temporary.replace(run.status_path)


def _loss(step: int) -> float:
    return 2 + 4 * math.exp(-step / 100)


def _row(step: int) -> dict[str, float]:
    return {
        "step": step, "train/loss": _loss(step), "train/bpb": _loss(step) / 2,
        "lr": 2e-3 * math.sin(step / 250), "grad_norm": 0.6 + step / 1e4, "train/skipped": 1,
        "perf/tokens_per_s": 41_200.0, "perf/step_s": 0.2, "perf/mfu": 0.31,
        "mem/host_peak_gib": 1.25, "mem/peak_gib": 79.0, "quant/zero_share": 0.31,
        "quant/flip_share": 0.004, "ttt/inner_loss_initial": 1.5, "ttt/inner_loss_current": 0.5,
        "ttt/inner_loss_updated": 0.25, "ttt/fast_drift": 1.2,
    }  # fmt: skip


def _save(run: RunDirectory, step: int) -> None:
    """What tells a complete checkpoint from the outside."""
    folder = run.checkpoints_path / str(step)
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "_METADATA").touch()
    (folder / "_CHECKPOINT_METADATA").write_text('{"commit_timestamp_nsecs": 1}')
