"""The studio's jobs: processes of their own that outlive it, each with a folder that tells of it.

    ID/  job.json  log  exit.json  stop.json  progress.jsonl

Output goes to a file, never to a pipe, whose end would stop the job when the studio ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil

from bitttt_jax.runs.files import write_atomically
from bitttt_jax.runs.status import SAME_PROCESS_SECONDS, same_process

Kind = Literal["train", "prepare", "convert", "serve", "estimate", "tokenize", "tensorboard"]

# Jobs that leave nothing behind; their logs are kept for so many days. Of the others it is told how
# a run or an export ended.
_PASSING: tuple[Kind, ...] = ("serve", "estimate", "tokenize", "tensorboard")
_KEPT_DAYS = 14
_TERM_SECONDS = 5.0
_KILL_SECONDS = 5.0
_SECRETS = ("BITTTT_STUDIO_TOKEN",)

# Children of this process, to be waited for when they end; the other jobs have another parent.
_children: dict[str, subprocess.Popen[bytes]] = {}
_known: dict[Path, Job] = {}
_ended: dict[str, JobState] = {}


@dataclasses.dataclass(frozen=True)
class Job:
    """A process that the studio has started, in this life or an earlier one."""

    id: str
    kind: Kind
    title: str
    """In words, for people."""
    argv: list[str]
    """The command line, program included."""
    folder: Path
    """Its own: `jobs/ID`."""
    log: Path
    """Where its output goes."""
    pid: int
    """Of the waiting parent, which leads the process group and session."""
    create_time: float
    """When that process started: tells it from a later one of its pid."""
    started: float
    subject: str = ""
    """What it works on, such as a run's folder."""


@dataclasses.dataclass(frozen=True)
class JobState:
    """What has become of a job."""

    state: Literal["running", "done", "failed", "lost"]
    exit_code: int | None = None
    """Negative for a signal; None while it runs, or if it can't be known."""
    ended: float | None = None
    oom_kills: int = 0
    """Processes of this container that the kernel killed for want of memory meanwhile."""


def start_job(
    jobs_folder: Path,
    kind: Kind,
    title: str,
    argv: Sequence[str],
    *,
    log: Path | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    subject: str = "",
    module: str = "bitttt_jax",
    tied: bool = False,
) -> Job:
    """Starts `python -m bitttt_jax ARGV` in a session of its own.

    Args:
      jobs_folder: where the folders of all jobs are.
      kind: what sort of job.
      title: in words, for people.
      argv: the arguments, `train` or another command first.
      log: file that its output is added to; by default `log` in its own folder.
      cwd: folder to run in; by default this process's.
      env: variables added to the environment. `BITTTT_PROGRESS` names a file for progress.
      subject: what it works on.
      module: another module to run.
      tied: whether it ends with this process, also where that is killed.
    """
    started = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(started))
    folder = jobs_folder / f"{stamp}-{kind}-{secrets.token_hex(3)}"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", module, *argv]
    log = log or folder / "log"
    environment = {
        **{name: value for name, value in os.environ.items() if name not in _SECRETS},
        "PYTHONUNBUFFERED": "1",
        "BITTTT_PROGRESS": str((folder / "progress.jsonl").absolute()),
        **(env or {}),
    }
    tie = [f"--tied={os.getpid()}"] if tied else []
    exit_file = str((folder / "exit.json").absolute())
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bitttt_jax.studio.child", exit_file, *tie, "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=True,
            cwd=cwd,
            env=environment,
        )
    try:
        create_time = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess:  # it has ended already, and nobody has waited for it
        create_time = started
    job = Job(
        id=folder.name,
        kind=kind,
        title=title,
        argv=command,
        folder=folder,
        log=log,
        pid=process.pid,
        create_time=create_time,
        started=started,
        subject=subject,
    )
    _children[str(folder)] = process
    write_atomically(folder / "job.json", json.dumps(_to_json(job), indent=1) + "\n")
    return job


def load_jobs(jobs_folder: Path) -> list[Job]:
    """All jobs whose folders are there, oldest first, also those of an earlier studio."""
    try:
        folders = sorted(entry.path for entry in os.scandir(jobs_folder) if entry.is_dir())
    except FileNotFoundError:
        return []
    jobs = (_load(Path(folder)) for folder in folders)
    return [job for job in jobs if job is not None]


def forget_old_jobs(jobs_folder: Path) -> None:
    """Removes folders of jobs that were over long ago, and of which nothing is asked any more."""
    oldest = time.time() - _KEPT_DAYS * 24 * 3600
    for job in load_jobs(jobs_folder):
        is_old = job.kind in _PASSING and job.started < oldest
        if is_old and job_state(job).state != "running":
            shutil.rmtree(job.folder, ignore_errors=True)


def find_job(jobs_folder: Path, id: str) -> Job | None:
    """The job with an id; None if there is none."""
    return next((job for job in load_jobs(jobs_folder) if job.id == id), None)


def job_state(job: Job) -> JobState:
    """Whether a job runs, and if not, how it ended."""
    key = str(job.folder)
    if key in _ended:
        return _ended[key]
    child = _children.get(key)
    if child is not None and child.poll() is not None:
        del _children[key]
    running = _process(job) is not None or (child is None and _members(job))
    ended = _read(job.folder / "exit.json")  # after the look at the process, which writes it last
    if isinstance(ended.get("exit_code"), int):
        code = ended["exit_code"]
        state = JobState(
            "failed" if code else "done", code, ended.get("time"), ended.get("oom_kills", 0)
        )
    elif running:
        return JobState("running")
    else:
        state = JobState("lost")
    if not running:  # a job that has ended but lingers is asked again
        _ended[key] = state
    return state


def stop_request(job: Job) -> dict[str, Any]:
    """What the last `stop_job` asked for: `force` and `time`; empty if nobody did."""
    return _read(job.folder / "stop.json")


def stop_job(job: Job, force: bool) -> list[int]:
    """Asks a job to end, or sees to it that it does.

    Args:
      job: the job; one that has ended is left alone.
      force: after SIGTERM and five seconds, kill the job and all that it has started.

    Returns:
      Process ids that are still there after `force`; none if all went well.
    """
    members = _members(job)
    if members:
        request = {"force": force, "time": time.time()}
        write_atomically(job.folder / "stop.json", json.dumps(request) + "\n")
    # The parent only waits: it goes last, so that it can write down how the others ended.
    return stop_processes(members, force, last=job.pid)


def stop_processes(processes: Sequence[psutil.Process], force: bool, last: int = 0) -> list[int]:
    """Signals processes; with `force` makes sure that they end, and their descendants too.

    Args:
      processes: collected before any of them is signalled: an orphan can't be found any more.
      force: whether to kill what is left after five seconds.
      last: pid of the process to be killed after the others.

    Returns:
      Process ids that are still there.
    """
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    if not force:
        return []
    _, alive = psutil.wait_procs(processes, timeout=_TERM_SECONDS)
    for process in [p for p in alive if p.pid != last]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(alive, timeout=_KILL_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(alive, timeout=_KILL_SECONDS)
    return [process.pid for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that descend from it."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _process(job: Job) -> psutil.Process | None:
    return same_process(job.pid, job.create_time)


def _members(job: Job) -> list[psutil.Process]:
    """The job's processes: descendants of its first one, and what is left of its session."""
    first = _process(job)
    found = {process.pid: process for process in (tree(first) if first else [])}
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            newer = process.create_time() >= job.create_time - SAME_PROCESS_SECONDS
            zombie = process.status() == psutil.STATUS_ZOMBIE
            if os.getsid(process.pid) == job.pid and newer and not zombie:
                found.setdefault(process.pid, process)
    return list(found.values())


def _load(folder: Path) -> Job | None:
    if folder in _known:
        return _known[folder]
    fields = _read(folder / "job.json")
    names = {field.name for field in dataclasses.fields(Job)}
    try:
        job = Job(**{k: v for k, v in fields.items() if k in names} | {"folder": folder})
        job = dataclasses.replace(job, log=Path(job.log), pid=int(job.pid))
    except (TypeError, ValueError):  # not written yet, or another program's
        return None
    return _known.setdefault(folder, job)


def _to_json(job: Job) -> dict[str, Any]:
    return dataclasses.asdict(job) | {"folder": str(job.folder), "log": str(job.log.absolute())}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
