"""What a run's files say about it, read again only where they have changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bitttt_jax.runs.directory import is_complete, saved_steps

_TAIL_BYTES = 1 << 16


class RunFiles:
    """The files of one run.

    Args:
      folder: its folder.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._signatures: dict[str, Any] = {}
        self._config: dict[str, Any] = {}
        self._last: dict[str, float] = {}
        self.last_step = 0
        """Of the last row of metrics."""
        self.size: int | None = None
        """Bytes of the checkpoints, metrics and log; None before it was measured."""
        self._measured: Any = None

    @property
    def steps(self) -> int:
        """Steps that the configuration asks for."""
        steps = self._config.get("steps")
        return steps if isinstance(steps, int) else 0

    @property
    def step_seconds(self) -> float:
        """Seconds of a step lately; 0 if unknown."""
        return self._last.get("perf/step_s") or 0.0

    def refresh(self) -> None:
        """Reads what has changed."""
        if self._has_changed("config.json"):
            config = read_json(self._folder / "config.json")
            self._config = config if isinstance(config, dict) else {}
        if self._has_changed("metrics.jsonl"):
            self._read_tail()
        self._has_changed("ckpt")

    @property
    def size_is_stale(self) -> bool:
        """Whether checkpoints have come or gone since the size was measured."""
        return self.size is None or self._measured != self._signatures.get("ckpt")

    def measure(self) -> None:
        """Adds up the sizes of the files."""
        self._measured = self._signatures.get("ckpt")
        self.size = folder_size(self._folder / "ckpt") + sum(
            (self._folder / name).stat().st_size
            for name in ("metrics.jsonl", "train.log", "events.jsonl")
            if (self._folder / name).exists()
        )

    def summary(self) -> dict[str, Any]:
        """The part of a run's JSON that comes from its files."""
        model = self._config.get("model")
        model = model if isinstance(model, dict) else {}
        ternary = model.get("ternary")
        ternary = ternary if isinstance(ternary, dict) else {}
        mixers = model.get("mixers")
        mixers = [m for m in mixers if isinstance(m, str)] if isinstance(mixers, list) else []
        return {
            "preset": self._config.get("name"),
            "mixers": mixers,
            "ternary": bool(ternary.get("mixer", True) or ternary.get("mlp", True)),
            "has_ttt": any(mixer.startswith("ttt") for mixer in mixers),
            "train_loss": self._last.get("train/loss"),
            "eval_loss": self._last.get("eval/loss"),
            "size_bytes": self.size,
            "has_chat_template": (self._folder / "chat_template.jinja").is_file(),
        }

    def _has_changed(self, name: str) -> bool:
        try:
            found = (self._folder / name).stat()
            signature: Any = (found.st_ino, found.st_size, found.st_mtime_ns)
        except OSError:
            signature = None
        changed = self._signatures.get(name, ()) != signature
        self._signatures[name] = signature
        return changed

    def _read_tail(self) -> None:
        try:
            with (self._folder / "metrics.jsonl").open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                # At first a good look back for the last validation, which is rare.
                file.seek(max(0, end - (_TAIL_BYTES // 8 if self._last else 4 * _TAIL_BYTES)))
                data = file.read()
        except OSError:
            return
        for line in data[: data.rfind(b"\n") + 1].splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the first is cut off
            if isinstance(row, dict):
                numbers = {k: v for k, v in row.items() if isinstance(v, (int, float))}
                self._last |= numbers
                self.last_step = int(numbers.get("step", self.last_step))


def checkpoints(folder: Path, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The complete checkpoints of a run as JSON values, the oldest first.

    Args:
      folder: the run's.
      events: rows of its events.jsonl, for the validations' losses.
    """
    losses = {
        event.get("step"): event["eval/loss"]
        for event in events
        if isinstance(event.get("eval/loss"), (int, float))
    }
    steps = saved_steps(folder / "ckpt")
    best = min((s for s in steps if s in losses), key=lambda s: (losses[s], -s), default=None)
    found = []
    for step in steps:
        path = folder / "ckpt" / str(step)
        if not is_complete(path):
            continue  # removed just now
        found.append(
            {
                "step": step,
                "bytes": folder_size(path),
                "time": path.stat().st_mtime,
                "eval_loss": losses.get(step),
                "is_best": step == best,
                "is_latest": step == steps[-1],
            }
        )
    return found


def folder_size(folder: Path) -> int:
    """Bytes of all files of a folder; those that vanish meanwhile don't count."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:
                continue
    return total


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if there is none, or it isn't JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
