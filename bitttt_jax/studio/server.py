"""The studio's process: an address, a server on it, and an end that open streams don't delay."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from bitttt_jax.errors import ConfigError

_TRIED_PORTS = 20
_GOODBYE_SECONDS = 3


def listen(host: str, port: int, *, search: bool) -> socket.socket:
    """Opens the address.

    Args:
      host: name or address.
      port: 0 for any free one.
      search: if the port is taken, try those after it.

    Raises:
      ConfigError: it can't be had.
    """
    tried = range(port, port + _TRIED_PORTS) if search else (port,)
    for number in tried:
        try:
            infos = socket.getaddrinfo(host or None, number, type=socket.SOCK_STREAM)
            family, kind, protocol, _, address = infos[0]
            opened = socket.socket(family, kind, protocol)
        except OSError as error:
            raise ConfigError(f"--host={host} can't be used", str(error)) from None
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.listen(128)
            return opened
        except OSError as error:
            opened.close()
            problem = error
            if error.errno != errno.EADDRINUSE:
                break
    raise ConfigError(
        f"can't listen on {host} port {port}",
        problem.strerror or str(problem),
        "another --port, or 0 for any free one",
    )


class _Server(uvicorn.Server):
    """Tells the open streams when it is asked to end; they would keep it waiting otherwise."""

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event):
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Uvicorn's own raises the signal once more at the end, where it would be an error.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self._stopping.set()


def serve(app: ASGIApp, opened: socket.socket, stopping: asyncio.Event, **options: Any) -> None:
    """Answers requests until a signal; then sets `stopping`, and waits a little for answers.

    Args:
      app: the application.
      opened: from `listen`.
      stopping: watched by the application's streams.
      **options: of `uvicorn.Config`.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # the first address of a page contains the token
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GOODBYE_SECONDS,
        **options,
    )
    server = _Server(config, stopping)
    asyncio.run(server.serve(sockets=[opened]))
