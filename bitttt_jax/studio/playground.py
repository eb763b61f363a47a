"""The playground's part of the API: players, and what passes between them and the browser."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, ClassVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from bitttt_jax.studio import loopback, states
from bitttt_jax.studio.cards import job_card
from bitttt_jax.studio.errors import RequestError, error_body
from bitttt_jax.studio.loopback import Answer, ChildError
from bitttt_jax.studio.models import find_model
from bitttt_jax.studio.players import Player, Players
from bitttt_jax.studio.processes import job_state
from bitttt_jax.studio.routing import ApiRoute, Created, get, post

if TYPE_CHECKING:
    from bitttt_jax.studio.app import Studio

_DEVICE = re.compile(r"(cpu|gpu|tpu)(:[0-9]{1,3})?")
_BELOW_STREAMS = re.compile(r"(/[A-Za-z0-9_-]{1,100}){0,2}")
_METHODS = ("GET", "POST", "PUT", "DELETE")
_EVENT_STREAM = "text/event-stream"


@dataclasses.dataclass(frozen=True)
class PlayRequest:
    """Which model to run, and on what."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    model: str
    step: int | None = None
    device: str = "cpu"


async def describe(players: Players, player: Player) -> dict[str, Any]:
    """A player as JSON values."""
    state = await players.look(player)
    own = player.description or {}
    step, newest = own.get("step", player.step), own.get("newest_step")
    ended = await asyncio.to_thread(job_state, player.job)
    return {
        "id": player.id,
        "model": player.model.id,
        "name": player.model.name,
        "kind": player.model.kind,
        "step": step,
        "newer_step": newest if newest != step else None,
        "pinned": player.step is not None,
        "device": player.device,
        "state": state,
        "card": await asyncio.to_thread(job_card, player.job, ended),
        "description": player.description,
    }


class PassOn(Response):
    """Sends a request to a player, and its answer to the browser while it comes.

    The connection to the player is closed when the browser goes or the studio ends, which ends a
    reply that is being written.

    Args:
      request: the browser's.
      players: the players.
      player: the one that is asked.
      target: path of the player's API.
      stopping: set when the studio ends.
    """

    def __init__(
        self,
        request: Request,
        players: Players,
        player: Player,
        target: str,
        stopping: asyncio.Event,
    ):
        self._request, self._target, self._stopping = request, target, stopping
        self._players, self._player = players, player
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers."""
        length = self._request.headers.get("content-length", "")
        has_body = self._request.method in ("POST", "PUT")
        async with (
            self._players.in_use(self._player) as child,
            _whole_requests(),
            loopback.send(
                child,
                self._request.method,
                self._target,
                self._request.stream() if has_body else b"",
                self._request.headers.get("content-type", "application/json"),
                int(length) if length.isascii() and length.isdecimal() else None,
            ) as answer,
        ):
            ending = asyncio.create_task(_end_with(self._stopping, answer))
            try:
                response = StreamingResponse(
                    _words_at_the_end(answer),
                    answer.status,
                    media_type=answer.content_type,
                    headers={"X-Accel-Buffering": "no"},
                )
                with contextlib.suppress(ClientDisconnect):
                    await response(scope, receive, send)
            finally:
                ending.cancel()


@contextlib.asynccontextmanager
async def _whole_requests() -> AsyncIterator[None]:
    try:
        yield
    except ClientDisconnect:
        raise RequestError(400, "the request was cut off") from None


async def _end_with(stopping: asyncio.Event, answer: Answer) -> None:
    await stopping.wait()
    await answer.end()


async def _words_at_the_end(answer: Answer) -> AsyncIterator[bytes]:
    """An answer's bytes; if it is cut off, an event stream still says so."""
    try:
        async for chunk in answer.chunks:
            yield chunk
    except ChildError as error:
        if not answer.content_type.startswith(_EVENT_STREAM):
            raise
        told = RequestError(500, "the model has ended while it was answering", str(error))
        yield f"\n\nevent: error\ndata: {json.dumps(error_body(told)['error'])}\n\n".encode()


def routes(studio: Studio) -> list[BaseRoute]:
    """`play` and below."""
    players = Players(studio.jobs)
    studio.on_shutdown.append(players.close_all)

    async def show(request: Request) -> dict[str, Any]:
        return {"players": [await describe(players, player) for player in players.all()]}

    async def start(request: Request, asked: PlayRequest) -> Created:
        if not _DEVICE.fullmatch(asked.device):
            raise RequestError(400, f"{asked.device!r:.99} is no device", fix="cpu, gpu, gpu:1, …")
        model = await asyncio.to_thread(find_model, studio, asked.model)
        if asked.step is not None and asked.step not in model.steps:
            raise RequestError(404, f"{model.name} has no checkpoint of step {asked.step}")
        return Created({"id": (await players.start(model, asked.step, asked.device)).id})

    async def close(request: Request, _: Any) -> dict[str, Any]:
        await players.close(players.find(request.path_params["id"]))
        return {}

    async def streams(request: Request) -> Response:
        rest = request.path_params["rest"]
        if not _BELOW_STREAMS.fullmatch(rest):
            raise RequestError(404, f"streams{rest!r:.200} is no address of the playground")
        player = players.find(request.path_params["id"])
        return PassOn(request, players, player, f"/bitttt/streams{rest}", studio.stopping)

    return [
        get("/play", show),
        post("/play", start, PlayRequest),
        post("/play/{id}/close", close),
        *states.routes(studio, players),
        *(ApiRoute("/play/{id}/streams{rest:path}", method, streams, None) for method in _METHODS),
    ]
