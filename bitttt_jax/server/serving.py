"""Listening, and ending well: also while streams are open."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from bitttt_jax.errors import ConfigError, ExitCode
from bitttt_jax.server.sse import SEND_SECONDS
from bitttt_jax.server.worker import Worker

# Streams end at once when the server stops; this is for clients that don't read.
_GRACE_S = 2
_JOIN_S = 3.0
_MOST_CONNECTIONS = 512
_SEND_BUFFER = 2**18


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
      host: a name or an address.
      port: 0 for any free one.

    Raises:
      ConfigError: the host isn't this computer's, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                # Of the connections too: one whose client doesn't read is closed by the system.
                seconds = int(2 * SEND_SECONDS)
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * seconds)
            # Likewise: what may lie unread in the system.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            found.bind(address)
            found.listen(_MOST_CONNECTIONS)
        except BaseException:
            found.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"--host={host} --port={port}: can't listen there", reason, "another --port, or 0"
        ) from None
    return found


class Server(uvicorn.Server):
    """uvicorn's server, which would wait for open streams; these are ended first.

    Args:
      app: the application.
      worker: its jobs.
    """

    def __init__(self, app: ASGIApp, worker: Worker):
        # What goes wrong is told by the application, not logged.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        self._worker = worker
        self.signal: int | None = None
        """The signal that ends it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does it, but a signal that was heeded isn't raised again at the end."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to end; the second signal ends at once."""
        self.signal = self.signal or sig
        super().handle_exit(sig, frame)
        if self.force_exit:
            os._exit(_exit_code(sig))

    async def on_tick(self, counter: int) -> bool:
        """Asked by uvicorn ten times a second: whether to end."""
        if self.should_exit:
            self._worker.stop()
        return await super().on_tick(counter)


def serve(app: ASGIApp, worker: Worker, listener: socket.socket, ready: Callable[[], None]) -> int:
    """Serves until a signal comes, or the model can't be loaded.

    Args:
      app: the application.
      worker: what it runs; started and stopped here.
      listener: the socket.
      ready: told, in the engine's thread, when there is a model.

    Returns:
      The exit code.

    Raises:
      BaseException: why the model couldn't be loaded.
    """
    server = Server(app, worker)

    def end() -> None:
        server.should_exit = True

    async def run() -> None:
        worker.on_failure = end
        worker.on_model.append(lambda engine: ready())
        worker.start()
        await server.serve(sockets=[listener])
        worker.stop()

    asyncio.run(run())
    has_ended = worker.join(_JOIN_S)
    if isinstance(worker.failure, BaseException):
        raise worker.failure
    code = _exit_code(server.signal)
    if not has_ended:  # it is compiling; Python would wait for it, or crash
        sys.stderr.flush()
        os._exit(code)
    return code


def _exit_code(sig: int | None) -> int:
    return int(ExitCode.INTERRUPTED if sig == signal.SIGINT else ExitCode.OK)
