"""The application: routes, what stands before them, and how errors look."""

from __future__ import annotations

import dataclasses
import sys
import traceback
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitttt_jax.errors import BittttError
from bitttt_jax.server.failures import ApiError, explained
from bitttt_jax.server.guard import OPEN_PATH, Guard, names_of
from bitttt_jax.server.metrics import Metrics
from bitttt_jax.server.openai import OpenAI
from bitttt_jax.server.openapi import schema
from bitttt_jax.server.playground import Playground
from bitttt_jax.server.worker import Worker


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a server answers."""

    name: str
    """Of the model."""
    host: str = "127.0.0.1"
    """What it listens on."""
    allow_host: tuple[str, ...] = ()
    """Other names by which it may be called."""
    api_key: str = ""
    cors: tuple[str, ...] = ()
    """Origins whose pages may ask; `*` for all."""
    max_body: int = 4 * 2**20
    """Most bytes of a body."""
    playground: bool = False
    """Whether there are the endpoints of the playground."""
    context: int | None = None
    """Most tokens of a playground's conversation; None for the model's own bound."""


def make_app(worker: Worker, settings: Settings) -> Starlette:
    """The ASGI application of a worker."""
    metrics = Metrics(worker)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": worker.state}, 200 if worker.state == "ready" else 503)

    async def numbers(request: Request) -> Response:
        data, content_type = metrics.text()
        return Response(data, headers={"content-type": content_type})

    async def description(request: Request) -> Response:
        return JSONResponse(schema(settings.playground, bool(settings.api_key)))

    routes = [
        Route(OPEN_PATH, health),
        Route("/metrics", numbers),
        Route("/openapi.json", description),
        *OpenAI(worker, metrics, settings.name, settings.max_body).routes(),
    ]
    if settings.playground:
        routes += Playground(worker, metrics, settings).routes()
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["retry-after"],
    )
    guard = Middleware(
        Guard,
        api_key=settings.api_key,
        hosts=names_of(settings.host, settings.allow_host),
        origins=settings.cors,
    )
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(_Counting, metrics=metrics),
            *([cors] if settings.cors else []),
            guard,
        ],
        exception_handlers={
            ApiError: _explain,
            BittttError: _explain,
            HTTPException: _explain_http,
            Exception: _explain_unexpected,
        },
    )


class _Counting:
    """Counts answers by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                self._metrics.add_answer(getattr(route, "path", ""), message["status"])
            await send(message)

        await self._app(scope, receive, counted)


async def _explain(request: Request, error: Exception) -> Response:
    return explained(error).response(request.url.path)


async def _explain_http(request: Request, error: Exception) -> Response:
    """What the router refuses: no such path, or another method."""
    assert isinstance(error, HTTPException)
    what = HTTPStatus(error.status_code).phrase.lower()
    headers = dict(error.headers or {})
    return ApiError(error.status_code, what, headers=headers).response(request.url.path)


async def _explain_unexpected(request: Request, error: Exception) -> Response:
    traceback.print_exception(error, file=sys.stderr)
    return explained(error).response(request.url.path)
