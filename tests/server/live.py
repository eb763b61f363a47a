"""A server in a thread of this process, on a port of its own, with a small random model."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from bitttt_jax.inference.engine import Engine
from bitttt_jax.inference.model import Model
from bitttt_jax.server.app import Settings, make_app
from bitttt_jax.server.serving import Server, listen
from bitttt_jax.server.worker import Worker
from tests.inference import samples

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
NAME = "random"
DEADLINE_S = 120


@dataclasses.dataclass(frozen=True)
class Live:
    """A server that runs."""

    url: str
    port: int
    worker: Worker
    server: Server

    def client(self, **values: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=DEADLINE_S, **values)


@functools.cache
def model(name: str = "hybrid", context: int | None = None) -> Model:
    """One whose likeliest tokens are ASCII: what it writes, greedily, is what is read again."""
    found = samples.model(name, context)
    kernel_DV = found.params["head"]["kernel"].copy()
    kernel_DV[:, 128:] = 0  # others' logits are larger
    params = found.params | {"head": {"kernel": kernel_DV}}
    return dataclasses.replace(found, params=params, chat_template=TEMPLATE)


@contextlib.contextmanager
def running(
    load: Callable[[], Model] = model,
    *,
    slots: int = 4,
    queue: int = 64,
    timeout: float = DEADLINE_S,
    wait: bool = True,
    engine: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Live]:
    """Serves a model until the end of the block."""
    worker = Worker(
        load,
        lambda model: Engine(model, slots=slots, **(engine or {})),
        most=slots + queue,
        timeout=timeout,
        slots=slots,
    )
    server = Server(make_app(worker, Settings(NAME, **settings)), worker)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]

    async def serve() -> None:
        worker.start()
        await server.serve(sockets=[listener])
        worker.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    live = Live(f"http://127.0.0.1:{port}", port, worker, server)
    try:
        until(lambda: server.started)
        if wait:
            until(lambda: worker.state == "ready")
        yield live
    finally:
        server.should_exit = True
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        assert worker.join(DEADLINE_S)


def until(condition: Callable[[], bool]) -> None:
    """Waits for something to become true."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it didn't come"
        time.sleep(0.005)
