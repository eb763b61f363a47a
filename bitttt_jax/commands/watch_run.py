"""What `bitttt watch` knows of a run: read from its folder, kept up to date."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitttt_jax.errors import ConfigError
from bitttt_jax.runs.console_memory import HostMemory
from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.follow import Follower, LogFollower
from bitttt_jax.runs.observe import (
    Explanation,
    Observation,
    explain,
    explain_stuck,
    observe,
)
from bitttt_jax.runs.series import Series

_KEPT_LINES = 200


class WatchedRun:
    """A run seen from outside; `update` looks at it.

    Args:
      path: its folder.
      clock: seconds from any start.

    Raises:
      ConfigError: there is no run in it.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic):
        self.run = RunDirectory(path)
        self.name = str(path)
        if not (self.run.config_path.exists() or self.run.status_path.exists()):
            raise ConfigError(
                f"there is no run in {path}",
                "a run's folder has a config.json" if path.is_dir() else "there is no such folder",
                _others(path),
            )
        self.series = Series(self.run.metrics_path)
        self._events = Follower(self.run.events_path)
        self._log = LogFollower(self.run.log_path)
        self.log: list[str] = []
        """The newest lines."""
        self.seen: Observation = observe(self.run)
        self.explanation: Explanation | None = None
        self._clock = clock
        self._last: tuple[int, int, str] | None = None
        self._since = 0.0
        self.checkpoints: list[int] = []
        self._forget()

    def _forget(self) -> None:
        self.sizes: dict[int, int] = {}
        """Bytes of checkpoints by step, as far as told."""
        self.sample: tuple[int, str] | None = None
        """Step and text of the newest sample."""

    def update(self) -> list[str]:
        """Looks again; returns the new lines of the log."""
        self.seen = observe(self.run)
        self.explanation = explain(self.run, self.seen)
        self.series.update()
        if self.explanation is None:
            self._look_for_a_stuck_step()
        events, restarted = self._events.read()
        if restarted:
            self._forget()
        for event in events:
            self._take_in(event)
        self.checkpoints = self.run.checkpoint_steps()
        lines = self._log.read()
        self.log = [*self.log, *lines][-_KEPT_LINES:]
        return lines

    def _look_for_a_stuck_step(self) -> None:
        status, now = self.seen.status, self._clock()
        if (status.pid, status.step, status.state) != self._last:
            self._last, self._since = (status.pid, status.step, status.state), now
        usual = self.series.last("perf/step_s") or 0.0
        self.explanation = explain_stuck(self.seen, now - self._since, usual)
        if self.explanation:
            self.seen = dataclasses.replace(self.seen, not_responding=True)

    @property
    def hosts(self) -> list[HostMemory]:
        """Device memory when it was last measured; empty where nobody tells."""
        devices = self.seen.status.devices
        return [HostMemory(host["name"], tuple(host["used"]), host["limit"]) for host in devices]

    @property
    def best_step(self) -> int | None:
        """Of the checkpoints that are there, the one with the least validation loss."""
        curve = self.series.curves.get("eval/loss")
        losses = dict(zip(curve.steps, curve.values, strict=True)) if curve else {}
        known = [step for step in self.checkpoints if step in losses]
        return min(known, key=losses.__getitem__) if known else None

    def _take_in(self, event: dict[str, Any]) -> None:
        match event:
            case {"kind": "checkpoint", "step": int(step), "bytes": int(size)}:
                self.sizes[step] = size
            case {"kind": "sample", "step": int(step), "text": str(text)}:
                self.sample = step, text


def _others(path: Path) -> str:
    """The hint for a path that is no run: runs that are near it."""
    found = sorted(
        (
            config.parent
            for folder in (path, path.parent)
            for config in folder.glob("*/config.json")
        ),
        key=lambda run: -run.stat().st_mtime,
    )
    return f"one of {', '.join(map(str, found[:5]))}" if found else "the --workdir of a training"
