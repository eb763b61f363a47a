"""status.json: what a run is doing now, and whether its process still lives.

The two are separate facts: the state is what the run said last, the process is asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any, Literal

import psutil
import pydantic

from bitttt_jax.runs.files import to_row, write_atomically

State = Literal[
    "starting", "compiling", "running", "evaluating", "saving", "stopping",
    "finished", "stopped", "failed",
]  # fmt: skip
HEARTBEAT_SECONDS = 2.0
SAME_PROCESS_SECONDS = 1.0
"""By so much the start of one process may seem to differ between two looks."""


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """The content of status.json."""

    state: State = "starting"
    step: int = 0
    steps: int = 0
    """Steps that the run is asked to do."""
    phase: str = ""
    """What takes time just now, in words."""
    eta_s: float | None = None
    """Seconds left, if known."""
    pid: int = 0
    create_time: float = 0.0
    """When the process started (seconds since 1970): tells it from a later one of its pid."""
    host: str = ""
    heartbeat: float = 0.0
    """When this was written, seconds since 1970."""
    exit_code: int | None = None
    error_kind: str | None = None
    devices: tuple[dict[str, Any], ...] = ()
    """Memory of the devices, a dict a host as of `HostMemory`; empty where nobody tells."""

    @property
    def over(self) -> bool:
        """Whether the run said that it ended, in whatever way."""
        return self.state in ("finished", "stopped", "failed")

    @property
    def finished(self) -> bool:
        """Whether the run did all its steps."""
        return self.state == "finished" and self.step >= self.steps

    def process_alive(self) -> bool | None:
        """Whether the process that wrote this still runs; None if it is on another host."""
        if self.host != socket.gethostname():
            return None
        return same_process(self.pid, self.create_time) is not None


def same_process(pid: int, create_time: float) -> psutil.Process | None:
    """The running process with a pid, if it started at that time; None if it is gone."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - create_time) < SAME_PROCESS_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return None


def read_status(path: Path) -> RunStatus | None:
    """Reads a status.json; None where there is none or another program's file."""
    try:
        return _adapter().validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


@functools.cache
def _adapter() -> pydantic.TypeAdapter[RunStatus]:
    return pydantic.TypeAdapter(RunStatus)


class Heartbeat:
    """Keeps status.json up to date from a thread of its own.

    `update` is cheap enough for every step and never waits for the disk. Changes of state, phase
    or exit code are written as soon as possible, the rest with the next heartbeat.

    Args:
      path: the status.json.
    """

    def __init__(self, path: Path):
        process = psutil.Process()
        self._path = path
        self._status = RunStatus(
            pid=process.pid, create_time=process.create_time(), host=socket.gethostname()
        )
        self._write()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def update(self, **changes: Any) -> None:
        """Changes fields of `RunStatus` by name."""
        old, self._status = self._status, dataclasses.replace(self._status, **changes)
        urgent = ("state", "phase", "exit_code", "error_kind")
        if any(getattr(old, name) != getattr(self._status, name) for name in urgent):
            self._wake.set()

    def close(self) -> None:
        """Writes the last status and ends the thread."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._closed:
            self._wake.wait(HEARTBEAT_SECONDS)
            self._wake.clear()
            self._write()
        self._write()

    def _write(self) -> None:
        status = dataclasses.replace(self._status, heartbeat=round(time.time(), 3))
        text = json.dumps(to_row(dataclasses.asdict(status)), allow_nan=False) + "\n"
        try:
            write_atomically(self._path, text, durable=False)
        except OSError:
            # A full disk for a moment must not end a run that is otherwise well; the metrics and
            # checkpoints report it if it stays, and the next heartbeat tries again.
            return
