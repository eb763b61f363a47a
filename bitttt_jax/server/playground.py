"""The playground's endpoints: streams that keep their state from turn to turn."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from bitttt_jax.errors import DataError
from bitttt_jax.server import bodies
from bitttt_jax.server.failures import ApiError
from bitttt_jax.server.metrics import Metrics
from bitttt_jax.server.schema import Learn, NewStream, Text, Write
from bitttt_jax.server.sse import EventStream, frame
from bitttt_jax.server.worker import Job, Ticket, Worker

if TYPE_CHECKING:
    from bitttt_jax.inference.engine import Engine
    from bitttt_jax.server.streams import Stream

_MOST_STREAMS = 64
_MOST_STATE_BYTES = 4 * 2**30


class Limits(Protocol):
    """What bounds the playground."""

    @property
    def name(self) -> str:
        """Of the model."""

    @property
    def context(self) -> int | None:
        """Most tokens of a conversation; None for the model's own bound."""

    @property
    def max_body(self) -> int:
        """Most bytes of a body."""


@dataclasses.dataclass
class _Open:
    """A stream, and the job that it is busy with."""

    stream: Stream
    ticket: Ticket | None = None


class Playground:
    """The endpoints.

    Args:
      worker: runs the model.
      metrics: counts.
      limits: the server's settings.
    """

    def __init__(self, worker: Worker, metrics: Metrics, limits: Limits):
        self._worker, self._metrics, self._limits = worker, metrics, limits
        self._streams: dict[str, _Open] = {}
        worker.on_model.append(self._take_up)

    def routes(self) -> list[Route]:
        """The endpoints' routes."""
        one = "/bitttt/streams/{id}"
        return [
            Route("/bitttt/model", self._model),
            Route("/bitttt/streams", self._create, methods=["POST"]),
            Route(one, self._describe, methods=["GET"]),
            Route(one, self._delete, methods=["DELETE"]),
            Route(f"{one}/write", self._write, methods=["POST"]),
            Route(f"{one}/read", self._read, methods=["POST"]),
            Route(f"{one}/stop", self._stop, methods=["POST"]),
            Route(f"{one}/reset", self._reset, methods=["POST"]),
            Route(f"{one}/learn", self._learn, methods=["POST"]),
            Route(f"{one}/system", self._system, methods=["POST"]),
            Route(f"{one}/state", self._save, methods=["GET"]),
            Route(f"{one}/state", self._load, methods=["PUT"]),
        ]

    def _take_up(self, engine: Engine) -> None:
        """In the engine's thread: the streams go on with newer weights."""
        for one in list(self._streams.values()):
            one.stream.take_up(engine)

    # --- streams come and go --------------------------------------------------------------------

    async def _model(self, request: Request) -> Response:
        engine = self._worker.ready_engine()
        model, config = engine.model, engine.model.config
        known = {
            "name": self._limits.name,
            "description": model.description,
            "step": model.step,
            "newest_step": max(filter(None, (self._worker.newest_step, model.step)), default=None),
            "uses_ttt": config.uses_ttt,
            "has_chat_template": model.chat_template is not None,
            "context": self._limits.context or model.context,
            "vocab_size": model.tokenizer.vocab_size,
            "mixers": list(config.mixers),
            "window": config.window,
            "loaded_at": self._worker.loaded_at,
            "packed": model.is_packed,
        }
        return JSONResponse(known)

    async def _create(self, request: Request) -> Response:
        self._worker.ready_engine()
        body = await bodies.read(request, NewStream, self._limits.max_body)
        if len(self._streams) >= _MOST_STREAMS:
            raise ApiError(429, f"there are {_MOST_STREAMS} streams", fix="deleting one")

        def make(engine: Engine) -> Stream:
            from bitttt_jax.server.streams import Stream

            context = self._limits.context or engine.model.context
            learn = body.learn and engine.model.config.uses_ttt
            return Stream(engine, body.mode, body.system, learn, context)

        stream = await self._worker.result(_at_once(make))
        id_ = secrets.token_hex(8)
        self._streams[id_] = _Open(stream)
        return JSONResponse({"id": id_}, 201)

    async def _delete(self, request: Request) -> Response:
        one = self._find(request)
        if one.ticket:
            one.ticket.cancel()
        del self._streams[request.path_params["id"]]
        return JSONResponse({})

    async def _describe(self, request: Request) -> Response:
        stream = self._find(request).stream
        return JSONResponse(await self._worker.result(_at_once(lambda _: stream.describe())))

    def _find(self, request: Request) -> _Open:
        self._worker.ready_engine()
        one = self._streams.get(request.path_params["id"])
        if one is None:
            raise ApiError(404, "there is no such stream")
        return one

    # --- turns ----------------------------------------------------------------------------------

    async def _write(self, request: Request) -> Response:
        one = self._find(request)
        body = await bodies.read(request, Write, self._limits.max_body)
        return self._events(one, lambda _: one.stream.write(body, self._metrics))

    async def _read(self, request: Request) -> Response:
        one = self._find(request)
        body = await bodies.read(request, Text, self._limits.max_body)
        return self._events(one, lambda _: one.stream.read(body.text, self._metrics))

    async def _stop(self, request: Request) -> Response:
        self._find(request).stream.stop()
        return JSONResponse({})

    def _events(self, one: _Open, job: Job) -> Response:
        one.ticket = self._submit(one, job)
        return EventStream(
            one.ticket,
            render=lambda event: [frame(event[1], event[0])],
            fail=lambda error: frame(error.own()["error"], "error"),
        )

    def _submit(self, one: _Open, job: Job) -> Ticket:
        if one.ticket and not one.ticket.is_left:
            raise ApiError(409, "the stream is busy", "it reads or writes", "waiting, or stop")
        return self._worker.submit(job)

    # --- settings and files -----------------------------------------------------------------------

    async def _reset(self, request: Request) -> Response:
        return await self._change(request, lambda stream: stream.reset())

    async def _learn(self, request: Request) -> Response:
        one = self._find(request)
        body = await bodies.read(request, Learn, self._limits.max_body)
        if body.on and not self._worker.ready_engine().model.config.uses_ttt:
            raise ApiError(400, "the model has no test-time training layers", "nothing learns")
        return await self._change(request, lambda stream: stream.set_learning(body.on), one)

    async def _system(self, request: Request) -> Response:
        one = self._find(request)
        body = await bodies.read(request, Text, self._limits.max_body)
        return await self._change(request, lambda stream: stream.set_system(body.text), one)

    async def _change(
        self, request: Request, change: Callable[[Stream], None], one: _Open | None = None
    ) -> Response:
        one = one or self._find(request)
        one.ticket = self._submit(one, _at_once(lambda _: change(one.stream)))
        _ = [event async for event in one.ticket]
        return await self._describe(request)

    async def _save(self, request: Request) -> Response:
        one = self._find(request)
        folder = tempfile.TemporaryDirectory(prefix="bitttt-state-")
        path = Path(folder.name) / "state"
        try:
            one.ticket = self._submit(one, _at_once(lambda _: one.stream.save(path)))
            _ = [event async for event in one.ticket]
        except BaseException:
            folder.cleanup()
            raise
        return FileResponse(
            path,
            media_type="application/octet-stream",
            filename="stream.safetensors",
            background=BackgroundTask(folder.cleanup),
        )

    async def _load(self, request: Request) -> Response:
        one = self._find(request)
        with tempfile.TemporaryDirectory(prefix="bitttt-state-") as folder:
            path = Path(folder) / "state"
            with path.open("wb") as file:
                async for part in bodies.parts(request, _MOST_STATE_BYTES, seconds=600):
                    await asyncio.to_thread(file.write, part)

            def load(engine: Engine) -> None:
                with _about_the_file(path):
                    one.stream.load(path)

            one.ticket = self._submit(one, _at_once(load))
            _ = [event async for event in one.ticket]
        return await self._describe(request)


def _at_once(do: Callable[[Engine], Any]) -> Job:
    """A job of one turn, which tells what it returns."""

    def job(engine: Engine) -> Iterator[Sequence[Any]]:
        yield [do(engine)]

    return job


@contextlib.contextmanager
def _about_the_file(path: Path) -> Iterator[None]:
    """Says of an error that it is about what was sent, not about where it lies here."""
    from bitttt_jax.inference.memory import OtherModelError

    try:
        yield
    except DataError as error:
        status = 409 if isinstance(error, OtherModelError) else 400
        parts = (error.what, error.why, error.fix)
        what, why, fix = (part.replace(str(path), "the file") for part in parts)
        raise ApiError(status, what, why, fix) from None
