"""The studio's web application: its state, and all routes joined behind the security checks."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import importlib
import importlib.util
import logging
import mimetypes
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from bitttt_jax.errors import BittttError
from bitttt_jax.studio.errors import RequestError, error_body
from bitttt_jax.studio.processes import Job, forget_old_jobs
from bitttt_jax.studio.routing import json_response
from bitttt_jax.studio.run_store import RunStore
from bitttt_jax.studio.schema import schema
from bitttt_jax.studio.security import Policy, Security

MODULES = (
    "info", "run_routes", "job_routes", "form_routes", "events",
    "files", "uploads", "data", "models", "playground", "exports", "tensorboard",
)  # fmt: skip
"""Modules of this package whose `routes(studio)` make up the API, with paths below `api/`."""

_NO_FILE = (errno.ENOENT, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)
_STATIC = Path(__file__).parent / "static"
# Browsers run scripts of these types only; the system's own table may say something else.
mimetypes.add_type("text/javascript", ".js")
mimetypes.add_type("image/svg+xml", ".svg")


@dataclasses.dataclass
class Studio:
    """What all parts of the studio share."""

    runs: Path
    """Folder of the runs."""
    data: tuple[Path, ...] = ()
    """Folders of data that the user declared."""
    max_upload: int = 20 << 30
    """Bytes of an uploaded file."""
    stopping: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """Set when the server is to end: streams end then."""
    on_shutdown: list[Callable[[], Awaitable[None]]] = dataclasses.field(default_factory=list)
    """Called when the server ends."""
    results: dict[str, Callable[[Job], Any]] = dataclasses.field(default_factory=dict)
    """By kind of job, what reads the result of one that is done; JSON values."""

    def __post_init__(self) -> None:
        for folder in (self.jobs, self.home / "uploads", self.home / "data"):
            folder.mkdir(parents=True, exist_ok=True)
        forget_old_jobs(self.jobs)
        self.run_store = RunStore(self.runs, self.jobs)

    @property
    def home(self) -> Path:
        """Folder of the studio's own things."""
        return self.runs / ".studio"

    @property
    def jobs(self) -> Path:
        """Folder of the jobs' folders."""
        return self.home / "jobs"

    @property
    def data_roots(self) -> list[Path]:
        """Folders that text may be read from: uploads, prepared data, and the declared ones."""
        return [self.home / "uploads", self.home / "data", *self.data]


def make_app(studio: Studio, policy: Policy) -> Security:
    """The application.

    Args:
      studio: what it serves.
      policy: who may ask it.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        threading.Thread(target=_warm_up, daemon=True).start()
        yield
        studio.stopping.set()
        for close in studio.on_shutdown:
            await close()

    app = Starlette(
        routes=[
            Mount("/api", routes=api_routes(studio)),
            Route("/", _index),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ],
        exception_handlers={
            BittttError: _refuse,
            HTTPException: _refuse_http,
            OSError: _refuse_system,
            Exception: _fail,
        },
        lifespan=lifespan,
    )
    app.state.studio = studio
    return Security(app, policy)


def api_routes(studio: Studio) -> list[BaseRoute]:
    """The routes of all modules."""
    routes: list[BaseRoute] = []
    for name in MODULES:
        full = f"bitttt_jax.studio.{name}"
        if importlib.util.find_spec(full):
            routes += importlib.import_module(full).routes(studio)
    return routes


def _warm_up() -> None:
    """Loads what the first page with curves and a form needs, while it is being opened."""
    importlib.import_module("bitttt_jax.runs.series")
    schema()


def _index(request: Request) -> Response:
    return FileResponse(_STATIC / "index.html")


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, BittttError)
    status = error.status if isinstance(error, RequestError) else 400
    return json_response(error_body(error), status)


def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = json_response(error_body(BittttError(error.detail)), error.status_code)
    answer.headers.update(error.headers or {})
    return answer


def _refuse_system(request: Request, error: Exception) -> Response:
    """What the disk refuses: names that no file can have, folders of others, no room."""
    assert isinstance(error, OSError)
    status = 404 if error.errno in _NO_FILE else 500
    problem = BittttError(error.strerror or str(error), str(error.filename or ""))
    return json_response(error_body(problem), status)


def _fail(request: Request, error: Exception) -> Response:
    logging.getLogger(__name__).error("%s %s failed", request.method, request.scope["path"])
    problem = BittttError("the studio failed", f"{type(error).__name__}: {error}"[:500])
    return json_response(error_body(problem), 500)
