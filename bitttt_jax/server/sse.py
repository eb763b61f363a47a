"""Streams of server-sent events, which end when the client goes, stops reading, or is done."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from bitttt_jax.server.failures import ApiError, explained
from bitttt_jax.server.worker import Ticket

_HEARTBEAT_S = 15.0
SEND_SECONDS = 30.0
"""Within which a client must read what is sent to it."""


def frame(data: Any, event: str = "") -> str:
    """One event.

    >>> frame({"a": "1\\n2"}, "piece")
    'event: piece\\ndata: {"a":"1\\\\n2"}\\n\\n'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return (f"event: {event}\n" if event else "") + f"data: {text}\n\n"


class EventStream(StreamingResponse):
    """What a job tells, as it comes.

    Args:
      ticket: the job's; it is cancelled when the stream ends, however it ends.
      begin: frames before the first event.
      render: frames of an event.
      fail: frame of an error, after which nothing comes.
      end: the last frames.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        ticket: Ticket,
        *,
        render: Callable[[Any], Iterable[str]],
        fail: Callable[[ApiError], str],
        end: Callable[[], Iterable[str]] = lambda: (),
    ):
        self._ticket, self._render, self._fail, self._end = ticket, render, fail, end
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(self._frames(), headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.cancel()

    async def stream_response(self, send: Send) -> None:
        """Sends the frames; gives up on a client that doesn't read."""

        async def send_soon(message: Message) -> None:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        try:
            await super().stream_response(send_soon)
        except TimeoutError:
            return

    async def _frames(self) -> AsyncIterator[str]:
        try:
            while True:
                try:
                    async with asyncio.timeout(_HEARTBEAT_S):
                        event = await anext(self._ticket)
                except TimeoutError:
                    yield ": waiting\n\n"
                    continue
                except StopAsyncIteration:
                    break
                if text := "".join(self._render(event)):
                    yield text
            yield "".join(self._end())
        except Exception as error:
            yield self._fail(explained(error))
