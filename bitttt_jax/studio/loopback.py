"""Requests to the studio's own children: HTTP over a loopback port, streaming both ways.

Each request has a connection of its own: closing it is how a child learns that nobody listens any
more.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx

HOST = "127.0.0.1"

_CONNECT_SECONDS = 10.0
_MOST_ANSWER_BYTES = 4 << 20


class ChildError(Exception):
    """A child can't be reached, or doesn't speak HTTP."""


@dataclasses.dataclass(frozen=True)
class Child:
    """Where a child listens."""

    port: int
    key: str = dataclasses.field(default="", repr=False)
    """Sent as bearer token."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A child's answer, whose body is still to come."""

    status: int
    content_type: str
    chunks: AsyncIterator[bytes]
    """Raises ChildError if they are cut off."""
    end: Callable[[], Awaitable[None]]
    """Closes the connection; what waits for the next chunk is told so at once."""


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


async def is_listening(port: int) -> bool:
    """Whether somebody accepts connections on a loopback port."""
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


@contextlib.asynccontextmanager
async def send(
    child: Child,
    method: str,
    target: str,
    body: AsyncIterator[bytes] | bytes = b"",
    content_type: str = "application/json",
    length: int | None = None,
) -> AsyncIterator[Answer]:
    """Asks a child; leaving the context closes the connection, whatever is still to come.

    Args:
      child: where it is.
      method: such as `POST`.
      target: path and query.
      body: in one piece, or as it comes.
      content_type: of the body.
      length: of a body that comes in pieces, if known.

    Raises:
      ChildError: nobody is there, or the answer is no HTTP.
    """
    headers = {"accept-encoding": "identity"}
    if child.key:
        headers["authorization"] = f"Bearer {child.key}"
    if body != b"":
        headers["content-type"] = content_type
    if length is not None and not isinstance(body, bytes):
        headers["content-length"] = str(length)
    # The environment's proxies aren't asked: they may be on another computer.
    timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
    # Nothing here is encrypted, and certificates take long to load.
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=timeout) as client:
        url = f"http://{HOST}:{child.port}{target}"
        request = client.build_request(method, url, content=body, headers=headers)
        try:
            response = await client.send(request, stream=True)
        except httpx.TransportError as error:
            raise ChildError(str(error)) from None
        try:
            kind = response.headers.get("content-type", "application/octet-stream")
            yield Answer(response.status_code, kind, _chunks(response), response.aclose)
        finally:
            await response.aclose()


async def ask(child: Child, method: str, target: str, content: Any = None) -> tuple[int, Any]:
    """A request with JSON, or no body, and a short answer.

    Returns:
      The status, and the JSON of the answer; None if it has none.

    Raises:
      ChildError: nobody is there, or the answer isn't JSON.
    """
    body = b"" if content is None else json.dumps(content).encode()
    async with send(child, method, target, body) as answer:
        data = bytearray()
        async for chunk in answer.chunks:
            data += chunk
            if len(data) > _MOST_ANSWER_BYTES:
                raise ChildError("the answer is too long")
    try:
        return answer.status, json.loads(data) if data else None
    except ValueError:
        raise ChildError("the answer isn't JSON") from None


async def _chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_raw():
            yield chunk
    except (httpx.TransportError, httpx.StreamError) as error:
        raise ChildError(str(error) or "the connection was closed") from None
