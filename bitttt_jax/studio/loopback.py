"""Requests to the studio's own children: HTTP over a loopback port, streaming both ways.

Bytes are parsed by h11, which uvicorn brings. Each request has a connection of its own: closing it
is how a child learns that nobody listens any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import h11

HOST = "127.0.0.1"

_READ_BYTES = 64 << 10
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
    end: Callable[[], None]
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
    try:
        reader, writer = await asyncio.open_connection(HOST, child.port)
    except OSError as error:
        raise ChildError(str(error)) from None
    try:
        connection = h11.Connection(h11.CLIENT)
        headers = _headers(child, body, content_type, length)
        request = h11.Request(method=method, target=target, headers=headers)
        await _write_request(connection, request, body, writer)
        status, kind = await _read_start(connection, reader)
        yield Answer(status, kind, _read_body(connection, reader), writer.close)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


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


def _headers(
    child: Child, body: AsyncIterator[bytes] | bytes, content_type: str, length: int | None
) -> list[tuple[str, str]]:
    headers = [("Host", f"{HOST}:{child.port}"), ("Connection", "close")]
    if child.key:
        headers.append(("Authorization", f"Bearer {child.key}"))
    if isinstance(body, bytes):
        length = len(body)
    if length != 0:
        headers.append(("Content-Type", content_type))
    if length is None:
        return [*headers, ("Transfer-Encoding", "chunked")]
    return [*headers, ("Content-Length", str(length))]


async def _write_request(
    connection: h11.Connection,
    request: h11.Request,
    body: AsyncIterator[bytes] | bytes,
    writer: asyncio.StreamWriter,
) -> None:
    writer.write(connection.send(request) or b"")
    # A child that refuses a body may answer and close before it has all of it.
    with contextlib.suppress(ConnectionError):
        async for chunk in _pieces(body):
            writer.write(connection.send(h11.Data(data=chunk)) or b"")
            await writer.drain()
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await writer.drain()


async def _pieces(body: AsyncIterator[bytes] | bytes) -> AsyncIterator[bytes]:
    if isinstance(body, bytes):
        if body:
            yield body
        return
    async for chunk in body:
        if chunk:
            yield chunk


async def _read_start(connection: h11.Connection, reader: asyncio.StreamReader) -> tuple[int, str]:
    while True:
        event = await _next_event(connection, reader)
        if isinstance(event, h11.Response):
            break
        if not isinstance(event, h11.InformationalResponse):
            raise ChildError("the connection was closed before an answer")
    kinds: Sequence[bytes] = [value for name, value in event.headers if name == b"content-type"]
    content_type = kinds[0].decode("latin-1") if kinds else "application/octet-stream"
    return event.status_code, content_type


async def _read_body(
    connection: h11.Connection, reader: asyncio.StreamReader
) -> AsyncIterator[bytes]:
    while True:
        event = await _next_event(connection, reader)
        if isinstance(event, h11.Data):
            yield bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return
        else:
            raise ChildError("the answer was cut off")


async def _next_event(connection: h11.Connection, reader: asyncio.StreamReader) -> Any:
    try:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ_BYTES))
    except (h11.ProtocolError, OSError) as error:
        raise ChildError(str(error)) from None
    return event
