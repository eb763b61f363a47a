"""What is new, pushed to pages as it happens, or answered to those that ask again and again."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from bitttt_jax.studio.app import Studio
from bitttt_jax.studio.cursors import Cursor, decode
from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.routing import get
from bitttt_jax.studio.system import System
from bitttt_jax.studio.watcher import LOOK_SECONDS, Event, View, Watcher

HEARTBEAT_SECONDS = 15.0
_MOST_STREAMS = 64
_MOST_RUNS = 32


class Hub:
    """Runs the watcher while pages are there, and wakes their streams.

    Args:
      watcher: what looks.
      stopping: set when streams are to end.
    """

    def __init__(self, watcher: Watcher, stopping: asyncio.Event):
        self._watcher, self._stopping = watcher, stopping
        self._news = asyncio.Event()
        self._streams = 0
        self._task: asyncio.Task[None] | None = None

    async def stream(self, view: View) -> AsyncIterator[str]:
        """A page's events in the format of server-sent events, until the server ends."""
        watcher = self._watcher
        watcher.watch(view.ids)  # here, where nothing can come between it and its end
        self._enter()
        try:
            watcher.resume(view)
            yield "retry: 1000\n\n"
            while not self._stopping.is_set():
                news = self._news
                events = watcher.news(view, may_read=False)
                if events is None:
                    events = await run_in_threadpool(watcher.news, view, may_read=True)
                if events:
                    yield "".join(map(_format, events))
                if not await self._wait(news):
                    yield ":\n\n"
        finally:
            self._leave()
            watcher.unwatch(view.ids)

    def is_full(self) -> bool:
        """Whether there are as many streams as there may be."""
        return self._streams >= _MOST_STREAMS

    async def _wait(self, news: asyncio.Event) -> bool:
        """Waits for news or the end; false if neither comes for some time."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (news, self._stopping)]
        try:
            done, _ = await asyncio.wait(
                waiting, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            return bool(done)
        finally:
            for task in waiting:
                task.cancel()

    def _enter(self) -> None:
        self._streams += 1
        if self._task is None:
            self._task = asyncio.create_task(self._look())

    def _leave(self) -> None:
        self._streams -= 1
        if not self._streams and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _look(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # a disk that is away for a moment
                if await run_in_threadpool(self._watcher.look):
                    self._news, news = asyncio.Event(), self._news
                    news.set()
            await asyncio.sleep(LOOK_SECONDS)


def routes(studio: Studio) -> list[BaseRoute]:
    """GET events (server-sent), GET poll, GET system."""
    system = System(studio.runs)
    watcher = Watcher(studio, system)
    hub = Hub(watcher, studio.stopping)

    async def events(request: Request) -> Response:
        if hub.is_full():
            raise RequestError(429, f"{_MOST_STREAMS} pages are open already", fix="close some")
        view = _view(request, studio)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(hub.stream(view), 200, headers, "text/event-stream")

    def poll(request: Request) -> dict[str, Any]:
        view = _view(request, studio)
        watcher.resume(view)
        watcher.watch(view.ids)
        try:
            watcher.look()
            found = watcher.news(view, may_read=True) or []
        finally:
            watcher.unwatch(view.ids)
        return {"events": [_as_json(event) for event in found]}

    return [
        Route("/events", events),
        get("/poll", poll),
        get("/system", lambda _: system.reading()),
    ]


def _view(request: Request, studio: Studio) -> View:
    ids = request.query_params.getlist("run")
    if len(ids) > _MOST_RUNS:
        raise RequestError(400, f"{len(ids)} runs are too many to watch", f"at most {_MOST_RUNS}")
    for id in ids:
        studio.run_store.folder(id)
    last = request.headers.get("last-event-id")
    return View(ids, _merged([last] if last else request.query_params.getlist("since")))


def _merged(words: Sequence[str]) -> Cursor:
    cursor: Cursor = {}
    for word in words:
        cursor |= decode(word)
    return cursor


def _format(event: Event) -> str:
    id = f"id: {event.id}\n" if event.id else ""
    return f"event: {event.event}\n{id}data: {event.data}\n\n"


def _as_json(event: Event) -> dict[str, Any]:
    return {"event": event.event, "data": json.loads(event.data), "id": event.id}
