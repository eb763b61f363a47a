"""Runs over HTTP: the list, one of them, its log and samples; starting, stopping, removing."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute

from bitttt_jax.studio.app import Studio
from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.logs import tail_lines
from bitttt_jax.studio.routing import get, number


def routes(studio: Studio) -> list[BaseRoute]:
    """GET runs and below."""
    store = studio.run_store

    def log(request: Request) -> dict[str, Any]:
        path = store.facts(request.path_params["id"]).folder / "train.log"
        lines, size = tail_lines(path, number(request, "lines", 500, low=1, high=5000))
        return {"lines": lines, "bytes": size}

    def log_file(request: Request) -> Response:
        path = store.facts(request.path_params["id"]).folder / "train.log"
        if not path.is_file():
            raise RequestError(404, "this run has no log")
        return FileResponse(path, media_type="text/plain", filename="train.log")

    return [
        get("/runs", lambda _: {"runs": store.runs()}),
        get("/runs/{id}/log", log),
        get("/runs/{id}/log/file", log_file),
    ]
