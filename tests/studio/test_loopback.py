from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from bitttt_jax.studio import loopback
from bitttt_jax.studio.loopback import Child, ChildError

Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def child(handle: Handler) -> AsyncIterator[Child]:
    """A server that is given each request's head."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await handle(await reader.readuntil(b"\r\n\r\n"), writer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield Child(server.sockets[0].getsockname()[1], "s3cret")


def test_json_goes_both_ways():
    heads = []

    async def handle(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 9\r\n\r\n" + b'{"id": 1}')

    async def main() -> None:
        async with child(handle) as there:
            assert await loopback.ask(there, "POST", "/x", {"a": 1}) == (201, {"id": 1})

    asyncio.run(main())
    assert heads[0].startswith(b"POST /x HTTP/1.1\r\n")
    assert b"\r\nauthorization: bearer s3cret\r\n" in heads[0].lower()
    assert b"\r\ncontent-length: 8\r\n" in heads[0].lower()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{{{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
    ],
)
def test_a_child_that_speaks_nonsense(data: bytes):
    async def handle(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    async def main() -> None:
        async with child(handle) as there:
            with pytest.raises(ChildError):
                await loopback.ask(there, "GET", "/")

    asyncio.run(main())


def test_nobody_there():
    port = loopback.free_port()
    with pytest.raises(ChildError):
        asyncio.run(loopback.ask(Child(port), "GET", "/"))
    assert not asyncio.run(loopback.is_listening(port))


def test_chunks_come_while_they_are_written_and_leaving_closes():
    async def main() -> None:
        gone = asyncio.Event()

        async def handle(head: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            try:
                while True:
                    writer.write(b"data: x\n\n")
                    await writer.drain()
                    await asyncio.sleep(0.001)
            finally:
                gone.set()

        async with child(handle) as there:
            async with loopback.send(there, "GET", "/") as answer:
                assert answer.content_type == "text/event-stream"
                assert (await anext(answer.chunks)).startswith(b"data: x\n\n")
                assert not gone.is_set()
            await asyncio.wait_for(gone.wait(), 30)

    asyncio.run(main())


def test_an_answer_before_the_whole_body_was_sent():
    """As of a server that refuses what is too long."""

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    async def handle(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()

    async def main() -> None:
        async with child(handle) as there, asyncio.timeout(30):
            with contextlib.suppress(ChildError):  # the system may have dropped the answer
                async with loopback.send(there, "PUT", "/", endless(), length=1 << 40) as answer:
                    assert answer.status == 413

    asyncio.run(main())
