"""The studio's jobs over HTTP: what runs, how far it is, how it ended, and stopping it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute

from bitttt_jax.studio import cards
from bitttt_jax.studio.app import Studio
from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.logs import tail_lines
from bitttt_jax.studio.processes import Job, find_job, job_state, load_jobs, stop_job
from bitttt_jax.studio.routing import get, post

_TAIL_LINES = 40
_PROGRESS_BYTES = 1 << 14


@dataclasses.dataclass(frozen=True)
class StopBody:
    """How to end a process."""

    force: bool = False
    """Kill it if it doesn't end by itself within five seconds."""


def routes(studio: Studio) -> list[BaseRoute]:
    """GET jobs, GET jobs/{id}, POST jobs/{id}/stop."""

    def find(request: Request) -> Job:
        id = request.path_params["id"]
        job = find_job(studio.jobs, id)
        if job is None:
            raise RequestError(404, f"there is no job {id!r:.99}")
        return job

    def stop(request: Request, body: StopBody) -> dict[str, Any]:
        job = find(request)
        refuse_survivors(stop_job(job, body.force))
        return describe_job(studio, job)

    return [
        get("/jobs", lambda _: {"jobs": [describe_job(studio, j) for j in load_jobs(studio.jobs)]}),
        get("/jobs/{id}", lambda request: describe_job(studio, find(request))),
        post("/jobs/{id}/stop", stop, StopBody),
    ]


def refuse_survivors(pids: list[int]) -> None:
    """Says which processes couldn't be ended.

    Raises:
      RequestError: there are some.
    """
    if pids:
        raise RequestError(
            500,
            f"still there: process {', '.join(map(str, pids))}",
            "the system didn't end it: it waits for a device or a disk",
        )


def describe_job(studio: Studio, job: Job) -> dict[str, Any]:
    """A job as JSON values."""
    state = job_state(job)
    rows = _progress(job.folder / "progress.jsonl")
    result = None
    if state.state == "done" and job.kind in studio.results:
        with contextlib.suppress(OSError, ValueError, KeyError):
            result = studio.results[job.kind](job)
    return {
        "id": job.id,
        "kind": job.kind,
        "title": job.title,
        "state": state.state,
        "exit_code": state.exit_code,
        "progress": next((row for row in reversed(rows) if "activity" in row), None),
        "report": next((row["report"] for row in reversed(rows) if "report" in row), None),
        "started": job.started,
        "ended": state.ended,
        "log_tail": tail_lines(job.log, _TAIL_LINES)[0],
        "result": result,
        "card": cards.job_card(job, state),
    }


def _progress(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _PROGRESS_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            rows += [row] if isinstance(row, dict) else []
    return rows
