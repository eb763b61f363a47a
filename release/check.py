"""Installs a wheel into a fresh environment, away from the repository, and uses it.

    python release/check.py dist/*.whl
    python release/check.py dist/*.whl --python=python3.11 --python=python3.13

A tiny model is trained, looked at, talked with, served, and trained again from the studio. Needs
nothing but Python's standard library. It ends with 1 and what was printed where something fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

COMMAND_SECONDS, START_SECONDS, RUN_SECONDS, STOP_SECONDS = 600, 120, 300, 60
TEXT = "It was a dark and stormy night; the rain fell in torrents. " * 20
TINY = (
    "--config=debug", "--config.steps=6", "--config.optim.warmup_steps=2",
    "--config.data.sources=texts",
    "--config.log.every_steps=2",
    "--config.checkpoint.every_steps=3", "--config.eval.every_steps=3", "--config.eval.batches=1",
)  # fmt: skip


class CheckError(Exception):
    """Something that doesn't work as it should."""


class Place:
    """A folder with a fresh environment, in which the installed commands are run.

    Args:
      folder: empty, outside of the repository.
      python: interpreter that the environment is made with.
    """

    def __init__(self, folder: Path, python: str):
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "BITTTT", "JAX", "XLA", "VIRTUAL_ENV", "MAKE"))
        } | {
            "PATH": os.pathsep.join([str(self.bin), "/usr/bin", "/bin"]),
            "JAX_PLATFORMS": "cpu",
            "BITTTT_STUDIO_TOKEN": secrets.token_urlsafe(24),
            "NO_COLOR": "1",
            # Nothing may be compiled, and nothing remembered from another installation.
            "CC": "false",
            "CXX": "false",
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        texts = folder / "texts"
        texts.mkdir()
        for number in range(20):
            (texts / f"{number}.txt").write_text(f"Chapter {number}. {TEXT}")

    def run(self, *command: str, stdin: str = "") -> str:
        """Runs a command of the environment; returns what it printed.

        Raises:
          CheckError: it failed.
        """
        began = time.monotonic()
        done = subprocess.run(
            [self.bin / command[0], *command[1:]], cwd=self.folder, env=self.environment,
            input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=COMMAND_SECONDS,
        )  # fmt: skip
        if done.returncode:
            raise CheckError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        print(f"  {time.monotonic() - began:6.1f} s  {' '.join(command)}", flush=True)
        return done.stdout

    @contextlib.contextmanager
    def running(self, *command: str) -> Iterator[Callable[[], None]]:
        """Runs a server within `with`, and ends it with Ctrl-C.

        Yields:
          A function that raises CheckError if the server isn't running any more.
        """
        log = self.folder / f"{command[1]}.log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                [self.bin / command[0], *command[1:]], cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

        def check() -> None:
            if server.poll() is not None:
                text = log.read_text(errors="replace")
                raise CheckError(f"{' '.join(command)} ended with {server.returncode}:\n{text}")

        try:
            yield check
            check()
            server.send_signal(signal.SIGINT)
            server.wait(STOP_SECONDS)
        finally:
            server.kill()


def main() -> int:
    """Checks the wheel with every interpreter asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--python", action="append", help="interpreter, by default this one")
    flags = parser.parse_args()
    for python in flags.python or [sys.executable]:
        with tempfile.TemporaryDirectory(prefix="bitttt-release-") as folder:
            try:
                check(Place(Path(folder), python), flags.wheel.resolve())
            except CheckError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
    return 0


def check(place: Place, wheel: Path) -> None:
    """Walks through what a new user does.

    Raises:
      CheckError: something doesn't work.
    """
    print(f"{wheel.name} in a new environment of {place.run('python', '--version').strip()}")
    # From inside the environment's folder, with the configuration of pip that this user has.
    place.run("python", "-m", "pip", "install", "--quiet", "--no-input", f"{wheel}[studio,serve]")
    where = place.run("python", "-c", "import bitttt_jax; print(bitttt_jax.__file__)").strip()
    expect(Path(where).is_relative_to(place.folder), f"imported from {where}")
    kernels = "from bitttt_jax import native; print(native.instruction_set())"
    expect(place.run("python", "-c", kernels).strip() != "None", "the native kernels don't load")
    place.run("bitttt", "doctor")
    place.run("bitttt", "train", *TINY, "--workdir=runs/first")
    expect(
        "finished" in place.run("bitttt", "watch", "runs/first", "--once"), "watch: not finished"
    )
    check_studio(place)
    for run in ("first", "second"):
        spoken = place.run(
            "bitttt", "chat", f"--model=runs/{run}", "--max_tokens=8", stdin="Hello\n"
        )
        expect(spoken.strip() != "", f"chat with runs/{run} said nothing")
    check_server(place)
    print("all is well", flush=True)


def check_studio(place: Place) -> None:
    """Starts a run from the studio and sees it end."""
    began, port = time.monotonic(), free_port()
    base = f"http://127.0.0.1:{port}"

    def ask(path: str, body: Any = None) -> Any:
        return request(f"{base}/api/{path}", place.environment["BITTTT_STUDIO_TOKEN"], body, base)

    with place.running("bitttt", "studio", "--no_browser", f"--port={port}") as alive:
        wait_for(lambda: ask("info")["version"], START_SECONDS, alive)
        page = request(f"{base}/", place.environment["BITTTT_STUDIO_TOKEN"])
        expect("<html" in page, "the studio's page isn't in the wheel")
        names = [run["id"] for run in ask("runs")["runs"]]
        expect(names == ["first"], f"the studio shows the runs {names}")
        config = ask("runs/first")["config"] | {"steps": 4}
        ask("runs", {"config": config, "name": "second", "device": "cpu"})

        def state() -> bool:
            found = {run["id"]: run for run in ask("runs")["runs"]}["second"]
            if found["state"] in ("failed", "lost", "stopped"):
                raise CheckError(f"the studio's run: {json.dumps(ask('runs/second'), indent=1)}")
            return bool(found["state"] == "finished")

        wait_for(state, RUN_SECONDS, alive)
        losses = ask("runs/second/series?tags=train/loss")["tags"]["train/loss"]
        expect(losses["step"] == [2, 4], f"the studio's run has losses at {losses['step']}")
    print(f"  {time.monotonic() - began:6.1f} s  bitttt studio: a run started, watched, finished")


def check_server(place: Place) -> None:
    """Asks the server for its models and for a completion."""
    began, port = time.monotonic(), free_port()
    base = f"http://127.0.0.1:{port}/v1"
    with place.running("bitttt", "serve", "--model=runs/first", f"--port={port}") as alive:
        wait_for(lambda: request(f"{base}/models")["data"], START_SECONDS, alive)
        (model,) = request(f"{base}/models")["data"]
        asked = {"model": model["id"], "prompt": "It was", "max_tokens": 5}
        answer = wait_for(lambda: request(f"{base}/completions", "", asked), START_SECONDS, alive)
        expect(answer["usage"]["completion_tokens"] <= 5, f"the server answered {answer}")
    print(f"  {time.monotonic() - began:6.1f} s  bitttt serve: /v1/models and a completion")


def request(url: str, token: str = "", body: Any = None, origin: str = "") -> Any:
    """Sends a request: POST with a body of JSON, else GET; returns the JSON or the text.

    Raises:
      CheckError: the server answered with an error, 503 aside.
      ConnectionError: it isn't there, or not ready yet.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    headers |= {"Origin": origin} if origin else {}
    data = None
    if body is not None:
        data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
    asked = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(asked, timeout=COMMAND_SECONDS) as answer:
            text = answer.read().decode()
            is_json = answer.headers.get_content_type() == "application/json"
    except urllib.error.HTTPError as error:
        if error.code == 503:
            raise ConnectionError(url) from None
        raise CheckError(f"{url}: {error.code} {error.read().decode()}") from None
    except urllib.error.URLError as error:
        raise ConnectionError(str(error)) from None
    return json.loads(text) if is_json else text


def wait_for(condition: Callable[[], Any], seconds: float, alive: Callable[[], None]) -> Any:
    """Asks again and again until the answer is true; returns it."""
    deadline = time.monotonic() + seconds
    while True:
        alive()
        with contextlib.suppress(ConnectionError):
            if found := condition():
                return found
        if time.monotonic() > deadline:
            raise CheckError(f"nothing came of it in {seconds} s")
        time.sleep(0.2)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def expect(condition: bool, message: str) -> None:
    """Raises CheckError with a message if the condition doesn't hold."""
    if not condition:
        raise CheckError(message)


if __name__ == "__main__":
    sys.exit(main())
