"""A studio for tests: its client, a real server for what a client can't do, and small files."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import functools
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.testclient import TestClient

from bitttt_jax import train
from bitttt_jax.studio.app import Studio, make_app
from bitttt_jax.studio.processes import job_state, load_jobs, stop_job
from bitttt_jax.studio.security import Policy
from tests.tiny import TINY

TOKEN = "t0ken"
HEADERS = {"authorization": f"Bearer {TOKEN}", "origin": "http://127.0.0.1"}
BYTES = {"content-type": "application/octet-stream"}
_DEADLINE_SECONDS = 90.0


def make_studio(folder: Path, **fields: Any) -> Studio:
    """A studio whose runs are below a folder."""
    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    return Studio(runs=runs, **fields)


def policy(studio: Studio) -> Policy:
    """Lets the tests in."""
    hosts = frozenset({"127.0.0.1", "localhost"})
    return Policy(TOKEN, "bitttt_studio", hosts, max_upload=studio.max_upload)


@contextlib.contextmanager
def client(studio: Studio) -> Iterator[TestClient]:
    """A client within this process; the studio ends with it."""
    app = make_app(studio, policy(studio))
    with TestClient(app, base_url="http://127.0.0.1", headers=HEADERS) as opened:
        yield opened
    end_jobs(studio)


def end_jobs(studio: Studio) -> None:
    """Ends what a studio has started, and waits for it."""
    for job in load_jobs(studio.jobs):
        if job_state(job).state == "running":
            stop_job(job, True)
            job_state(job)


@dataclasses.dataclass(frozen=True)
class Server:
    """A studio that listens on a port."""

    port: int
    stop: Callable[[], None]

    def connect(self) -> socket.socket:
        """A connection, closed by the caller."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=_DEADLINE_SECONDS)

    def head(self, method: str, path: str, **headers: str) -> bytes:
        """The start of a request, up to its body."""
        own = {
            "Host": f"127.0.0.1:{self.port}",
            "Origin": f"http://127.0.0.1:{self.port}",
            "Authorization": f"Bearer {TOKEN}",
        }
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{name}: {value}" for name, value in (own | named).items()]
        return "\r\n".join([f"{method} /api/{path} HTTP/1.1", *lines, "", ""]).encode()


@contextlib.contextmanager
def server(studio: Studio) -> Iterator[Server]:
    """A real server, in a thread."""
    app = make_app(studio, policy(studio))
    opened = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(running.serve(sockets=[opened])))
    thread.start()
    wait_until(lambda: running.started)

    def stop() -> None:
        running.should_exit = True

    try:
        yield Server(opened.getsockname()[1], stop)
    finally:
        stop()
        thread.join()
        opened.close()
        end_jobs(studio)


def wait_until(condition: Callable[[], Any], seconds: float = _DEADLINE_SECONDS) -> Any:
    """What a condition gives once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
    return found


@functools.cache
def tiny_run() -> Path:
    """A run that was trained for a few steps, with checkpoints of steps 2 and 4; not to be changed.

    It is removed when the tests end.
    """
    folder = Path(tempfile.mkdtemp(prefix="bitttt-tests-"))
    atexit.register(shutil.rmtree, folder)
    (folder / "text").mkdir()
    for n in range(30):
        (folder / "text" / f"{n:02}.txt").write_text(
            f"{n}: " + "def return naïve 日本語\n" * n + "x"
        )
    values = TINY | {"data.sources": folder / "text", "log.every_steps": 1}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    assert train.main(["--config=debug", f"--workdir={folder / 'run'}", *flags]) == 0
    return folder / "run"


def with_run(studio: Studio, name: str = "tiny") -> Path:
    """Puts a copy of the tiny run among a studio's runs."""
    return shutil.copytree(tiny_run(), studio.runs / name)
