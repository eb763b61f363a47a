"""The runs below the studio's folder: what each of them is, read from what it has written.

Run state and process state are separate facts. The first is what the run said last; the second
comes from the system. Together they say whether a run goes on, ended, was killed, or hangs.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bitttt_jax.runs.directory import saved_steps
from bitttt_jax.runs.observe import SILENT_SECONDS, is_stuck
from bitttt_jax.runs.status import RunStatus, read_status
from bitttt_jax.studio import run_files
from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.processes import Job, JobState, job_state, load_jobs, stop_request

_DEPTH = 4
_SIZES_A_SCAN = 4
_SAME_START_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """All that is known of a run at one moment."""

    id: str
    folder: Path
    status: RunStatus | None
    """Of the newest start, None before it has written one."""
    alive: bool | None
    """Whether a process of it lives; None if it is on another host."""
    state: str
    exit_code: int | None
    error_kind: str | None
    not_responding: bool
    job: Job | None
    """The newest job that the studio has started for it."""
    job_state: JobState | None
    is_forced: bool = False
    """Whether its end was forced by the studio."""


class RunStore:
    """Finds runs, and remembers what doesn't change.

    Args:
      root: folder of the runs.
      jobs: folder of the studio's jobs.
      clock: seconds from any start.
    """

    def __init__(self, root: Path, jobs: Path, clock: Callable[[], float] = time.monotonic):
        self._root, self._jobs, self._clock = root, jobs, clock
        self._lock = threading.Lock()
        self._files: dict[str, run_files.RunFiles] = {}
        self._seen: dict[str, tuple[Any, float]] = {}
        self._gone: dict[str, tuple[int, float]] = {}
        self._forced: dict[str, tuple[int, float]] = {}
        self._sizes_left = 0

    def runs(self) -> list[dict[str, Any]]:
        """All runs as JSON values, the newest first."""
        with self._lock:
            self._sizes_left = _SIZES_A_SCAN
            newest = self._newest_jobs()
            ids = dict.fromkeys([*self._ids(), *newest])
            runs = [self._describe(self._facts(id, newest.get(id))) for id in ids]
            return sorted(runs, key=lambda run: -(run["started"] or 0))

    def run(self, id: str) -> dict[str, Any]:
        """One run as JSON values.

        Raises:
          RequestError: 404.
        """
        facts = self.facts(id)
        with self._lock:
            self._sizes_left = 1
            return self._describe(facts)

    def facts(self, id: str) -> RunFacts:
        """What is known of a run.

        Raises:
          RequestError: 404.
        """
        folder = self.folder(id)
        with self._lock:
            job = self._newest_jobs().get(id)
            if not _is_run(folder) and job is None:
                raise RequestError(404, f"there is no run {id!r:.200}", f"in {self._root}")
            return self._facts(id, job)

    def folder(self, id: str) -> Path:
        """Where a run with this id is, or would be.

        Raises:
          RequestError: 404, no run can have this id.
        """
        parts = id.split("/")
        if any(not part or part.startswith(".") or "\0" in part for part in parts):
            raise RequestError(404, f"{id!r:.200} is no run")
        folder = self._root.joinpath(*parts)
        try:
            inside = folder.resolve().is_relative_to(self._root.resolve())
        except (OSError, RuntimeError):
            inside = False
        if not inside:
            raise RequestError(404, f"{id!r:.200} is no run", "it is outside of the runs' folder")
        return folder

    def note_forced(self, facts: RunFacts) -> None:
        """Remembers that the end of a run's process was forced: it isn't lost, then."""
        if facts.status:
            self._forced[facts.id] = (facts.status.pid, facts.status.create_time)

    # --- facts ------------------------------------------------------------------------------

    def _ids(self) -> Iterator[str]:
        def walk(folder: Path, prefix: str, depth: int) -> Iterator[str]:
            try:
                with os.scandir(folder) as entries:
                    folders = (e.name for e in entries if e.is_dir(follow_symlinks=False))
                    names = sorted(folders)
            except OSError:
                return
            for name in names:
                if name.startswith("."):
                    continue
                if _is_run(folder / name):
                    yield prefix + name
                elif depth > 1:
                    yield from walk(folder / name, f"{prefix}{name}/", depth - 1)

        return walk(self._root, "", _DEPTH)

    def _newest_jobs(self) -> dict[str, Job]:
        root = self._root.absolute()
        jobs = {}
        for job in load_jobs(self._jobs):
            folder = Path(job.subject)
            if job.kind == "train" and folder.is_relative_to(root) and folder.is_dir():
                jobs[folder.relative_to(root).as_posix()] = job
        return jobs

    def _facts(self, id: str, job: Job | None) -> RunFacts:
        folder = self._root / id
        status = read_status(folder / "status.json")
        ended = job_state(job) if job else None
        if status and job and status.create_time < job.started - _SAME_START_SECONDS:
            status = None  # an earlier start's: this one hasn't got so far
        alive = self._alive(id, status)
        is_running = ended is not None and ended.state == "running"
        if status is None:
            alive = is_running
        silent = self._silent_seconds(id, folder, status)
        is_forced = self._was_forced(id, status, job, ended)
        state, code, kind = derive_state(status, alive, silent, self._own(status, ended), is_forced)
        if status is None and job is None:
            state = "stopped" if saved_steps(folder / "ckpt") else "lost"
        return RunFacts(
            id=id,
            folder=folder,
            status=status,
            alive=alive,
            state=state,
            exit_code=code,
            error_kind=kind,
            not_responding=bool(alive) and self._hangs(id, folder, status, silent),
            job=job,
            job_state=ended,
            is_forced=is_forced,
        )

    @staticmethod
    def _own(status: RunStatus | None, ended: JobState | None) -> JobState | None:
        """The job's end if it is the end of the process that wrote the status."""
        if status and ended and ended.ended and status.create_time > ended.ended + 2:
            return None
        return ended

    def _alive(self, id: str, status: RunStatus | None) -> bool | None:
        if status is None:
            return False
        process = (status.pid, status.create_time)
        if self._gone.get(id) == process:
            return False
        alive = status.process_alive()
        if alive is False:
            self._gone[id] = process
        return alive

    def _was_forced(
        self, id: str, status: RunStatus | None, job: Job | None, ended: JobState | None
    ) -> bool:
        if status and self._forced.get(id) == (status.pid, status.create_time):
            return True
        request = stop_request(job) if job and self._own(status, ended) else {}
        return bool(request)

    def _silent_seconds(self, id: str, folder: Path, status: RunStatus | None) -> float:
        """Seconds since status.json changed, by this host's clocks: the run's may be skewed."""
        return self._age(f"{id}\0status", status and status.heartbeat, folder / "status.json")

    def _age(self, key: str, value: Any, path: Path) -> float:
        seen = self._seen.get(key)
        if seen is None or seen[0] != value:
            try:
                age = max(0.0, time.time() - path.stat().st_mtime) if seen is None else 0.0
            except OSError:
                age = 0.0
            seen = self._seen[key] = (value, self._clock() - age)
        return self._clock() - seen[1]

    def _hangs(self, id: str, folder: Path, status: RunStatus | None, silent: float) -> bool:
        if status is None or status.over:
            return False
        if silent > SILENT_SECONDS:
            return True
        stuck = self._age(f"{id}\0step", status.step, folder / "metrics.jsonl")
        usual = self._file(id).step_seconds
        return is_stuck(status.state, stuck, usual)

    # --- JSON -------------------------------------------------------------------------------

    def _file(self, id: str) -> run_files.RunFiles:
        if id not in self._files:
            self._files[id] = run_files.RunFiles(self._root / id)
        return self._files[id]

    def _describe(self, facts: RunFacts) -> dict[str, Any]:
        files, status = self._file(facts.id), facts.status
        files.refresh()
        if files.size_is_stale and self._sizes_left:
            self._sizes_left -= 1
            files.measure()
        return {
            "id": facts.id,
            "name": facts.id,
            "state": facts.state,
            "alive": facts.alive,
            "step": status.step if status else files.last_step,
            "steps": status.steps if status and status.steps else files.steps,
            "phase": status.phase if status else "",
            "eta_s": status.eta_s if status and facts.alive else None,
            "started": status.create_time if status else facts.job and facts.job.started,
            "updated": status.heartbeat if status else facts.job and facts.job.started,
            "exit_code": facts.exit_code,
            "error_kind": facts.error_kind,
            "not_responding": facts.not_responding,
            "devices": list(status.devices) if status else [],
            **files.summary(),
        }


def derive_state(
    status: RunStatus | None,
    alive: bool | None,
    silent_s: float,
    ended: JobState | None,
    is_forced: bool,
) -> tuple[str, int | None, str | None]:
    """What state a run is in, from what it said and what the system knows.

    Args:
      status: what it said last.
      alive: whether its process lives; None if that can't be known.
      silent_s: seconds since it said so.
      ended: what became of its job, if the studio started it.
      is_forced: whether the studio has ended its process.

    Returns:
      The state, the exit code and the kind of error.
    """
    code = ended.exit_code if ended else None
    if status and status.over:
        return status.state, status.exit_code, status.error_kind
    if alive is None and silent_s <= SILENT_SECONDS:
        alive = True  # on another host: only its heartbeat can tell
    if alive:
        return (status.state if status else "starting"), None, None
    if is_forced:
        return "stopped", code, None
    if code is not None and code < 0:
        return "failed", code, "killed"
    if code:
        return "failed", code, "unexpected" if status else "config" if code == 2 else "unexpected"
    if code == 0 and status is None:
        return "finished", 0, None
    return "lost", None, "lost"


def _is_run(folder: Path) -> bool:
    # os.path says no, too, to names that no file can have.
    return any(os.path.isfile(folder / name) for name in ("status.json", "config.json"))
