"""The run directory: one folder that a run writes and every other tool reads.

    config.json  command.txt  status.json  metrics.jsonl  events.jsonl  train.log  error.json
    tb/  ckpt/  export/

Process 0 writes; in the other processes the same calls do nothing, except that a process that
fails may say so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitttt_jax.errors import ConfigError
from bitttt_jax.runs.command import command_text
from bitttt_jax.runs.failures import INTERRUPTED, Failure, describe_failure
from bitttt_jax.runs.files import JsonLines, keep_rows, read_rows, write_atomically
from bitttt_jax.runs.status import Heartbeat, RunStatus, State, read_status

RUN_ENTRIES = (
    "config.json", "command.txt", "status.json", "metrics.jsonl", "events.jsonl", "train.log",
    "error.json", "tokenizer.json", "chat_template.jinja", "data", "tb", "ckpt", "export",
)  # fmt: skip
_TAIL_LINES = 50


class RunDirectory:
    """A run's folder. Make one with `open`, or directly to read only.

    Args:
      path: the folder.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.config_path = self.path / "config.json"
        self.status_path = self.path / "status.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.events_path = self.path / "events.jsonl"
        self.log_path = self.path / "train.log"
        self.error_path = self.path / "error.json"
        self.tensorboard_path = self.path / "tb"
        self.checkpoints_path = self.path / "ckpt"
        self.writer = False
        self._started = False
        self._heartbeat: Heartbeat | None = None
        self._metrics = JsonLines(self.metrics_path)
        self._events = JsonLines(self.events_path)

    @classmethod
    def open(cls, path: Path | str, *, writer: bool) -> RunDirectory:
        """Opens the folder of a run that this process takes part in; changes nothing yet.

        Args:
          path: the folder; the writer creates it.
          writer: whether this process writes (process 0).

        Raises:
          ConfigError: `path` is a file, or another process is writing there.
        """
        run = cls(path)
        if not writer:
            return run
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(
                f"--workdir={path} is a file, or below one", fix="--workdir=ANOTHER_FOLDER"
            ) from None
        status = read_status(run.status_path)
        if status and status.pid != os.getpid() and status.process_alive():
            raise ConfigError(
                f"process {status.pid} is already writing to {path}",
                f"it is {status.state} at step {status.step}/{status.steps}",
                "stop it first, or --workdir=ANOTHER_FOLDER",
            )
        run.writer = True
        return run

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Writes the last status and closes all files."""
        if self._heartbeat is not None:
            self._heartbeat.close()
            self._heartbeat = None
        self._metrics.close()
        self._events.close()
        self.writer = False

    # --- writing ---------------------------------------------------------------------------

    def start(self) -> None:
        """Takes the folder for this process's run: a heartbeat begins, old errors go.

        `resume.prepare` calls it once it is clear that the folder's run is the one asked for.
        """
        self._started = True
        if self.writer and self._heartbeat is None:
            for stale in self.path.glob("error*.json"):
                stale.unlink()  # the earlier attempt's; events.jsonl remembers it
            self._heartbeat = Heartbeat(self.status_path)

    def write_config(self, config_json: str) -> None:
        """Writes the resolved configuration.

        Args:
          config_json: its JSON text.
        """
        if self.writer:
            write_atomically(self.config_path, config_json)

    def write_command(self, argv: Sequence[str]) -> None:
        """Adds this start to command.txt: command, folder, versions, and variables that matter.

        Args:
          argv: the command line, program included.
        """
        if self.writer:
            path = self.path / "command.txt"
            earlier = path.read_text(encoding="utf-8") + "\n" if path.exists() else ""
            write_atomically(path, earlier + command_text(argv))

    def update(self, **changes: Any) -> None:
        """Changes fields of status.json: see `RunStatus`; cheap enough for every step."""
        if self._heartbeat is not None:
            self._heartbeat.update(**changes)

    def finish(self, state: State, exit_code: int) -> None:
        """Writes how the run ended; `fail` does it for exceptions.

        Args:
          state: `finished` or `stopped`.
          exit_code: what the process will exit with.
        """
        self.update(state=state, exit_code=int(exit_code), phase="", eta_s=None)

    def metric(self, row: Mapping[str, Any]) -> None:
        """Appends a row to metrics.jsonl.

        Args:
          row: `step` and values by tag.
        """
        if self.writer:
            self._metrics.append(row)

    def event(self, kind: str, **fields: Any) -> None:
        """Appends a row to events.jsonl.

        Args:
          kind: `resume`, `config`, `compile`, `eval`, `sample`, `checkpoint`, `export`, `warn`,
            `stop` or `fail`.
          **fields: JSON values, `step` among them if there is one.
        """
        if self.writer:
            self._events.append({"kind": kind, **fields})

    def fail(self, error: BaseException) -> Failure:
        """Records why the run ends: error.json, status.json and the exit code.

        In several processes the first to fail owns error.json, for the others fail because of it;
        they write error.HOST-PID.json. An interrupt is no error. Before `start` nothing is
        written: the folder may hold another run, which hasn't failed.

        Args:
          error: the exception.

        Returns:
          What to print, and the exit code.
        """
        failure = describe_failure(error)
        if not self._started:
            return failure
        if failure.kind == INTERRUPTED:
            self.finish("stopped", failure.exit_code)
            return failure
        path = self.error_path
        if not self.writer and path.exists():
            path = self.path / f"error.{socket.gethostname()}-{os.getpid()}.json"
        content = dataclasses.asdict(failure) | {"tail": tail(self.log_path)}
        with contextlib.suppress(OSError):  # a full disk may be what ends the run
            write_atomically(path, json.dumps(content, indent=2) + "\n")
            self.event("fail", error_kind=failure.kind, title=failure.title)
        # Last: who reads that it failed finds the reason.
        self.update(state="failed", exit_code=failure.exit_code, error_kind=failure.kind)
        return failure

    def truncate_metrics(self, step: int) -> int:
        """Drops the rows after a step, which a resumed run will write again.

        Args:
          step: the last step whose rows stay.

        Returns:
          The number of rows dropped.
        """
        if not self.writer:
            return 0
        self._metrics.close()
        return keep_rows(self.metrics_path, lambda row: row.get("step", 0) <= step)

    # --- reading ---------------------------------------------------------------------------

    def read_config(self) -> str | None:
        """The text of config.json, None before there is one."""
        return self.config_path.read_text(encoding="utf-8") if self.config_path.exists() else None

    def read_status(self) -> RunStatus | None:
        """The content of status.json, None before there is one."""
        return read_status(self.status_path)

    def read_metrics(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Rows of metrics.jsonl from a byte offset on, and the next offset: see `read_rows`."""
        return read_rows(self.metrics_path, offset)

    def read_events(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Rows of events.jsonl from a byte offset on, and the next offset: see `read_rows`."""
        return read_rows(self.events_path, offset)

    def checkpoint_steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending; read from disk, without JAX."""
        return saved_steps(self.checkpoints_path)


def saved_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in a folder, ascending.

    Orbax writes a checkpoint under a temporary name and renames it when it is complete. What was
    half copied by hand is told by the files that come last.
    """
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if is_complete(path))


def is_complete(checkpoint: Path) -> bool:
    """Whether a folder is a checkpoint with all its parts."""
    try:
        content = json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text(encoding="utf-8"))
        committed = bool(content["commit_timestamp_nsecs"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return committed and checkpoint.name.isdecimal() and (checkpoint / "state/_METADATA").is_file()


def tail(path: Path, lines: int = _TAIL_LINES) -> list[str]:
    """The last lines of a text file; none if it doesn't exist."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 200 * lines))
        return file.read().decode(errors="replace").splitlines()[-lines:]
