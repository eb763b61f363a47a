"""The `bitttt studio` process: its start, its streams, and its end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from bitttt_jax.commands import studio as command
from bitttt_jax.errors import ExitCode
from tests.studio.conftest import until, write_run

FLAGS = ["--port=0", "--no_browser"]


@contextlib.contextmanager
def running(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    """A studio's process, and a browser that has opened its address."""
    with (folder.parent / "stderr").open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "bitttt_jax", "studio", f"--runs={folder}", *FLAGS, *flags],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        base = url.partition("?")[0]
        headers = {"origin": base.rstrip("/")}
        with httpx2.Client(
            base_url=base, headers=headers, timeout=60, follow_redirects=True
        ) as client:
            assert client.get(url).status_code == 200
            yield process, client
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def lines_until(
    client: httpx2.Client, params: dict, stop: str, headers: dict | None = None
) -> list:
    """Lines of a stream up to one that begins with a text."""
    found = []
    with client.stream("GET", "api/events", params=params, headers=headers) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            found.append(line)
            if line.startswith(stop):
                return found
    raise AssertionError(f"the stream has ended: {found}")


def test_the_streams_and_the_end(tmp_path: Path):
    folder = tmp_path / "runs"
    write_run(folder / "a")
    metrics = folder / "a" / "metrics.jsonl"
    metrics.write_text('{"step": 1}\n')
    with running(folder) as (process, client):
        cursor = client.get("api/runs/a/series").json()["cursor"]
        params = {"run": "a", "since": cursor}
        assert "event: runs" in lines_until(client, params, "event: system")
        told: list[list[str]] = [[] for _ in range(8)]  # pages in eight tabs

        def listen(index: int) -> None:
            told[index] = lines_until(client, params, 'data: {"id": "a", "rows"')

        threads = [threading.Thread(target=listen, args=[n]) for n in range(8)]
        for thread in threads:
            thread.start()
        with metrics.open("a") as file:
            file.write('{"step": 2}\n')
        for thread in threads:
            thread.join()
        data = [json.loads(lines[-1].removeprefix("data: ")) for lines in told]
        assert all(each == {"id": "a", "rows": [{"step": 2}], "reset": False} for each in data)
        # Comes back where it was, by the header that browsers send.
        last = next(line for line in reversed(told[0]) if line.startswith("id: "))
        with metrics.open("a") as file:
            file.write('{"step": 3}\n')
        header = {"last-event-id": last.removeprefix("id: ")}
        lines = lines_until(client, params, 'data: {"id": "a", "rows"', header)
        assert json.loads(lines[-1].removeprefix("data: "))["rows"] == [{"step": 3}]
        loaded = Path(f"/proc/{process.pid}/maps")
        if loaded.exists():
            assert "jaxlib" not in loaded.read_text()
        with client.stream("GET", "api/events") as stream:
            lines = stream.iter_lines()
            next(lines)
            os.kill(process.pid, signal.SIGINT)
            assert list(lines)[-1] == ""  # it is told to end, not cut off
        assert process.wait(20) == 0
    errors = (tmp_path / "stderr").read_text()
    assert errors == "" and "token" not in errors


def test_it_loads_no_jax_and_starts_light(tmp_path: Path):
    code = (
        "import sys; from bitttt_jax.studio.app import *; from bitttt_jax.studio.security import *;"
        f"from pathlib import Path; make_app(Studio(Path({str(tmp_path)!r})), Policy('t', 'c', "
        "frozenset())); import bitttt_jax.commands.studio, bitttt_jax.studio.server;"
        "print([m for m in ('jax', 'numpy', 'orbax', 'tensorboard', 'rich.table', 'grain')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_token_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BITTTT_STUDIO_TOKEN", "0123456789-abcdef")
    with running(tmp_path / "runs") as (_, client):
        headers = {"authorization": "Bearer 0123456789-abcdef"}
        base = str(client.base_url)
        assert httpx2.get(f"{base}api/info", headers=headers).status_code == 200
        assert httpx2.get(f"{base}api/info").status_code == 403


def test_a_taken_port_gives_way(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with running(tmp_path / "runs") as (_, client):
        port = client.base_url.port
        code = command.main([f"--runs={tmp_path / 'b'}", f"--port={port}", "--no_browser"])
        assert code == ExitCode.USAGE and str(port) in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--token=short", "token"),
        ("--token=with spaces and more", "token"),
        ("--data=/no/such/folder", "/no/such/folder"),
        ("--runs=/dev/null/x", "/dev/null"),
        ("--host=no.such.host.invalid", "no.such.host"),
    ],
)
def test_mistakes(capfd: pytest.CaptureFixture[str], tmp_path: Path, flag: str, told: str):
    flags = [f"--runs={tmp_path / 'runs'}", *FLAGS, flag]
    assert command.main(flags) == ExitCode.USAGE
    message = capfd.readouterr().err
    assert told in message and "Traceback" not in message


def test_a_missing_extra(tmp_path: Path):
    code = (
        "import sys; sys.modules['uvicorn'] = None; from bitttt_jax.commands.studio import main;"
        f"sys.exit(main(['--runs={tmp_path}/runs', '--no_browser']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and 'pip install "bitttt-jax[studio]"' in done.stderr


def test_closing_the_studio_leaves_its_jobs(tmp_path: Path):
    """And the next one finds them: also where the first was killed."""
    folder = tmp_path / "runs"
    with running(folder) as (process, client):
        config = client.post("api/form/check", json={"preset": "debug"}).json()["config"]
        answer = client.post("api/runs", json={"config": config, "name": "x", "device": "cpu"})
        assert answer.status_code == 201
        until(lambda: client.get("api/runs/x").json()["alive"])
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with running(folder) as (_, client):
        run = client.get("api/runs/x").json()
        assert run["alive"] and run["can_stop"]
        assert client.post("api/runs/x/stop", json={"force": True}).status_code == 200
        run = client.get("api/runs/x").json()
        assert (run["alive"], run["state"]) == (False, "stopped")
        assert not re.search(r"\btoken\b", json.dumps(run))
