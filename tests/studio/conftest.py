"""A studio in a folder of its own, a client of it, and runs that never trained."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from starlette.testclient import TestClient

from bitttt_jax.config import TrainConfig
from bitttt_jax.config_loading import to_json
from bitttt_jax.studio.app import Studio, make_app
from bitttt_jax.studio.processes import Job, job_state, load_jobs, start_job, stop_job
from bitttt_jax.studio.security import Policy, allowed_hosts

TOKEN = "a-token-of-the-tests"
HERE = Path(__file__).parent


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    """A studio without runs; what it starts is ended."""
    (tmp_path / "texts").mkdir()
    studio = Studio(tmp_path / "runs", (tmp_path / "texts",), max_upload=1000)
    yield studio
    for job in load_jobs(studio.jobs):
        stop_job(job, force=True)
        job_state(job)  # waits for it, as its parent


@pytest.fixture
def policy() -> Policy:
    """For a studio on port 8701 of this computer."""
    hosts, _ = allowed_hosts("127.0.0.1")
    return Policy(TOKEN, "bitttt_studio_8701", hosts, max_upload=1000)


@pytest.fixture
def client(studio: Studio, policy: Policy) -> Iterator[TestClient]:
    """A page of the studio: it has the token and says where it comes from."""
    headers = {"authorization": f"Bearer {TOKEN}", "origin": "http://127.0.0.1:8701"}
    app = make_app(studio, policy)
    with TestClient(app, "http://127.0.0.1:8701", headers=headers) as client:
        yield client


@pytest.fixture
def fake(studio: Studio) -> Callable[..., Job]:
    """Starts fake_trainer.py as the run of a name."""

    def start(how: str, name: str = "run", *rest: str) -> Job:
        folder = studio.runs / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(to_json(TrainConfig(name="quickstart")))
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        return start_job(
            studio.jobs,
            "train",
            name,
            [how, str(folder), *rest],
            log=folder / "train.log",
            env={"PYTHONPATH": os.pathsep.join(paths)},
            subject=str(folder.absolute()),
            module="fake_trainer",
        )

    return start


def write_run(folder: Path, **status: Any) -> None:
    """Writes the files of a run that this process seems to be."""
    me = psutil.Process()
    folder.mkdir(parents=True, exist_ok=True)
    fields = {
        "state": "running", "step": 5, "steps": 10, "pid": me.pid,
        "create_time": me.create_time(), "host": os.uname().nodename, "heartbeat": time.time(),
    }  # fmt: skip
    (folder / "status.json").write_text(json.dumps(fields | status))
    (folder / "config.json").write_text(to_json(TrainConfig(name="quickstart")))


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Waits for something to become true; returns it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if found := condition():
                return found
        time.sleep(0.02)
    raise AssertionError("it didn't come to that")
