"""Clients that come, go, don't read, are too many; and the server's own end."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitttt_jax.errors import ConfigError, DataError, ExitCode
from bitttt_jax.inference.model import Model
from bitttt_jax.server import worker as worker_module
from bitttt_jax.server.serving import listen
from tests.server import live as live_server
from tests.server.live import DEADLINE_S, Live, until

ROOT = Path(__file__).parent.parent.parent
LONG = {"prompt": "a", "max_tokens": 2**20, "temperature": 0, "stream": True}


def model() -> Model:
    """One without bounds, whose replies take no more memory the longer they become."""
    return live_server.model("ttt_linear")


def running(load: Any = model, **values: Any) -> Any:
    return live_server.running(load, **values)


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with running() as found:
        yield found


def opened(live: Live, body: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
    """A connection on which something was asked, and nothing is read."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=DEADLINE_S)
    connection.sendall(head.encode() + data)
    return connection


def is_idle(live: Live) -> bool:
    """Whether nothing is left of any request: no ticket, and no row of the engine."""
    engine = live.worker.engine
    assert engine
    return live.worker.waiting == 0 and not engine._at_work() and not engine._waiting


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_frees_the_slot(live: Live, stream: bool):
    for _ in range(6):  # more than there are slots
        connection = opened(live, LONG | {"stream": stream})
        until(lambda: live.worker.waiting > 0)
        if stream:
            assert connection.recv(1000)
        connection.close()
    until(lambda: is_idle(live))
    with live.client() as client:
        found = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3})
        assert found.json()["usage"]["completion_tokens"] == 3


def test_who_doesn_t_read_is_given_up(live: Live, monkeypatch: pytest.MonkeyPatch):
    """However much is written to it, only so much waits; and others go on."""
    monkeypatch.setattr(worker_module, "MOST_WAITING", 5)
    with socket.socket() as slow, live.client() as client:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(DEADLINE_S)
        slow.connect(("127.0.0.1", live.port))
        data = json.dumps(LONG | {"logprobs": 20}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}"
        slow.sendall(head.encode() + b"\r\n\r\n" + data)
        until(lambda: live.worker.waiting == 1)
        found = client.post("/v1/completions", json={"prompt": "b", "max_tokens": 5})
        assert found.json()["usage"]["completion_tokens"] == 5
        until(lambda: is_idle(live))


def test_too_many_are_turned_away():
    with running(slots=1, queue=2) as live, live.client() as client:
        body = {"prompt": "a", "max_tokens": 1}
        client.post("/v1/completions", json=body)
        connections = [opened(live, LONG) for _ in range(3)]
        until(lambda: live.worker.waiting == 3)
        found = client.post("/v1/completions", json=body)
        assert (found.status_code, found.json()["error"]["code"]) == (429, "queue_full")
        assert found.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(found.headers["retry-after"]) <= 60
        assert client.get("/health").status_code == 200
        for connection in connections:
            connection.close()
        until(lambda: is_idle(live))
        assert client.post("/v1/completions", json=body).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_replies_that_take_too_long(stream: bool):
    with running(timeout=0.3, slots=1) as live, live.client() as client:
        found = client.post("/v1/completions", json=LONG | {"stream": stream})
        if stream:
            last = json.loads(found.text.strip().split("data: ")[-1])
            assert "more than 0.3 seconds" in last["error"]["message"]
        else:
            assert (found.status_code, found.headers["x-should-retry"]) == (504, "false")
        until(lambda: is_idle(live))


def test_an_error_of_the_model_ends_its_requests_only(monkeypatch: pytest.MonkeyPatch, capsys):
    from bitttt_jax.inference import steps

    with running() as live, live.client() as client:
        body = {"prompt": "a", "max_tokens": 2}

        def fail(*_: Any) -> Any:
            raise RuntimeError("the secret inside")

        with monkeypatch.context() as patch:
            patch.setattr(steps, "write_tokens", fail)
            found = client.post("/v1/completions", json=body)
            assert found.status_code == 500 and "secret" not in found.text
            streamed = client.post("/v1/completions", json=body | {"stream": True})
            assert "secret" not in streamed.text and '"server_error"' in streamed.text
        assert client.post("/v1/completions", json=body).status_code == 200
    assert "the secret inside" in capsys.readouterr().err


# --- loading ----------------------------------------------------------------------------------


def test_while_it_loads_it_says_so():
    go_on = threading.Event()

    def load() -> Model:
        assert go_on.wait(DEADLINE_S)
        return model()

    with running(load, wait=False) as live, live.client() as client:
        found = client.get("/health")
        assert (found.status_code, found.json()) == (503, {"status": "loading"})
        for path in ("/v1/models", "/v1/completions", "/v1/chat/completions"):
            found = client.get(path) if path == "/v1/models" else client.post(path, json={})
            assert (found.status_code, found.json()["error"]["code"]) == (503, "loading")
            assert "retry-after" in found.headers
        assert client.get("/metrics").status_code == 200
        go_on.set()
        until(lambda: client.get("/health").status_code == 200)
        assert client.get("/v1/models").status_code == 200


def test_a_taken_port_is_a_message():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port={port}: can't listen there"):
            listen("127.0.0.1", port)
    for host in ("no such host", "192.0.2.1"):
        with pytest.raises(ConfigError, match="can't listen there"):
            listen(host, 0)


# --- the end ------------------------------------------------------------------------------------


def test_open_streams_end_with_the_server():
    with running() as live:
        answers: list[str] = []

        def ask() -> None:
            with live.client() as client:
                answers.append(client.post("/v1/completions", json=LONG).text)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: live.worker.waiting == 3)
    for thread in threads:
        thread.join(DEADLINE_S)
    assert [answer.count("the server is shutting down") for answer in answers] == [1, 1, 1]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder that another process can load."""
    from bitttt_jax.config import TrainConfig
    from bitttt_jax.data.tokenizers import Tokenizer
    from bitttt_jax.inference import packed_model, speed
    from tests.inference import samples

    folder = tmp_path_factory.mktemp("packed") / "tiny"
    config, tokenizer = samples.CONFIGS["ttt_linear"], Tokenizer.bytes()
    params = speed.random_params(config, "int8")
    # The logit of the token that ends a text is 0, and another one's always larger.
    kernel = params["head"]["kernel"]
    scale = kernel.scale.at[tokenizer.eos_id].set(0)
    params["head"]["kernel"] = dataclasses.replace(kernel, scale=scale)
    packed_model.save(
        folder,
        TrainConfig(model=config),
        params,
        tokenizer,
        step=0,
        layout="i2_s",
        table="int8",
        context=None,
        chat_template=None,
        card="# tiny\n",
    )
    return folder


def started(*flags: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bitttt_jax", "serve", "--port=0", *flags],
        cwd=ROOT,
        env=os.environ | env,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stderr
    yield from process.stderr


@pytest.mark.parametrize(
    ("signal_", "code"), [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.OK)]
)
def test_a_signal_ends_the_command_with_streams_open(packed: Path, signal_: int, code: ExitCode):
    process = started(f"--model={packed}", BITTTT_API_KEY="key")
    try:
        told = lines(process)
        url = next(told).split()[0].removesuffix("/v1")
        assert "loading" in next(told)
        assert "ready" in next(told)
        headers = {"authorization": "Bearer key"}
        with httpx.stream(
            "POST", f"{url}/v1/completions", json=LONG, headers=headers, timeout=DEADLINE_S
        ) as answer:
            parts = answer.iter_text()
            assert "text_completion" in next(parts)
            process.send_signal(signal_)
            began = time.monotonic()
            text = "".join(parts)
        assert "the server is shutting down" in text
        assert process.wait(DEADLINE_S) == code
        assert time.monotonic() - began < 60
        assert "".join(told) == ""
    finally:
        process.kill()
        process.communicate()


def test_a_model_that_can_t_be_loaded_ends_the_command(tmp_path: Path):
    process = started(f"--model={tmp_path}")
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == ExitCode.DATA
    assert "isn't a run directory" in errors
    assert "Traceback" not in errors


def test_mistakes_in_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from bitttt_jax.commands.serve import main

    for flag, what in (
        ("--slots=0", "--slots must be positive"),
        ("--queue=-1", "--queue and --reuse must not be negative"),
        ("--port=70000", "--port be below"),
        ("--context=1", "--context must be at least 2"),
        ("--watch", "is no run"),
    ):
        assert main([f"--model={tmp_path}", flag]) == ExitCode.USAGE
        assert what in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys):
    from bitttt_jax.commands import serve

    monkeypatch.setattr(serve, "_NEEDED", ("starlette", "no_such_package"))
    assert serve.main(["--model=x"]) == ExitCode.USAGE
    assert 'pip install "bitttt-jax[serve]"' in capsys.readouterr().err


def test_a_failing_load_ends_the_server():
    def load() -> Model:
        raise DataError("no such model")

    with running(load, wait=False) as live:
        until(lambda: live.worker.state == "failed")
        with live.client() as client:
            assert client.get("/health").json() == {"status": "failed"}
