"""Saved states: what a model has kept of what it read, as files that outlive the playground."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute

from bitttt_jax.errors import DataError
from bitttt_jax.studio import loopback
from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.files import locate
from bitttt_jax.studio.loopback import Answer
from bitttt_jax.studio.paths import check_name
from bitttt_jax.studio.players import Players
from bitttt_jax.studio.routing import ApiRoute, Created, get, post
from bitttt_jax.studio.uploads import receive_body, receive_file, remove_partial_uploads

if TYPE_CHECKING:
    from bitttt_jax.studio.app import Studio

SUFFIX = ".safetensors"

_READ_BYTES = 1 << 20
_MOST_ERROR_BYTES = 1 << 16
_STREAM = "/play/{id}/streams/{stream}"


@dataclasses.dataclass(frozen=True)
class NameBody:
    """The name of a state."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    name: str


def state_name(text: object) -> str:
    """The name of a state's file.

    Raises:
      RequestError: it can't be a name.
    """
    name = check_name(text if isinstance(text, str) else "")
    return name if name.endswith(SUFFIX) else check_name(name + SUFFIX)


def describe(path: Path) -> dict[str, Any]:
    """A state as JSON values.

    Raises:
      DataError: it isn't one.
    """
    from bitttt_jax.data.safetensors import File

    file = File(path)
    tokens = file.entries.get("tokens")
    if not file.metadata.get("format", "").startswith("bitttt-memory") or tokens is None:
        raise DataError(f"{path.name} is no saved state", "it is another program's safetensors")
    status = path.stat()
    return {
        "name": path.name,
        "bytes": status.st_size,
        "model": file.metadata.get("description", ""),
        "tokens": int(tokens.shape[0]),
        "time": status.st_mtime,
    }


def check_state(partial: Path) -> None:
    """Refuses files that are no saved states.

    Raises:
      RequestError: 400.
    """
    try:
        describe(partial)
    except DataError as error:
        raise RequestError(
            400, "the file is no saved state", error.why, "a file that the playground has saved"
        ) from None


def list_states(folder: Path) -> list[dict[str, Any]]:
    """All states, newest first."""
    found = []
    for path in folder.glob(f"[!.]*{SUFFIX}"):
        try:
            found.append(describe(path))
        except (DataError, OSError):
            continue
    return sorted(found, key=lambda state: -state["time"])


def routes(studio: Studio, players: Players) -> list[BaseRoute]:
    """`states`, and saving and loading a stream's."""
    folder = studio.home.resolve() / "states"
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial_uploads(folder)

    def place_of(name: str) -> Path:
        return locate(folder / state_name(name), [folder])

    def state_of(request: Request) -> str:
        stream = request.path_params["stream"]
        if not (stream.isascii() and stream.replace("-", "").replace("_", "").isalnum()):
            raise RequestError(404, f"there is no stream {stream!r:.99}")
        return f"/bitttt/streams/{stream}/state"

    async def save(request: Request, body: NameBody) -> dict[str, Any]:
        place = folder / state_name(body.name)
        target = state_of(request)
        async with (
            players.in_use(players.find(request.path_params["id"])) as child,
            loopback.send(child, "GET", target) as answer,
        ):
            if answer.status != 200:
                raise await _refusal(answer)
            most = studio.max_upload
            await receive_file(answer.chunks, place, expected=None, most=most, check=check_state)
        return describe(place)

    async def load(request: Request, body: NameBody) -> dict[str, Any]:
        place, target = place_of(body.name), state_of(request)
        async with (
            players.in_use(players.find(request.path_params["id"])) as child,
            loopback.send(
                child, "PUT", target, _read(place), "application/octet-stream", place.stat().st_size
            ) as answer,
        ):
            if answer.status >= 400:
                raise await _refusal(answer)
        return describe(place)

    async def upload(request: Request) -> Created:
        place = folder / state_name(request.path_params["name"])
        await receive_body(request, place, studio.max_upload, check_state)
        return Created(describe(place))

    def download(request: Request) -> Response:
        place = place_of(request.path_params["name"])
        return FileResponse(place, media_type="application/octet-stream", filename=place.name)

    def delete(request: Request, _: Any) -> dict[str, Any]:
        place_of(request.path_params["name"]).unlink()
        return {}

    return [
        get("/states", lambda request: {"states": list_states(folder)}),
        get("/states/{name}/file", download),
        post("/states/{name}/delete", delete),
        ApiRoute("/states/{name}", "PUT", upload, None),
        post(f"{_STREAM}/save", save, NameBody),
        post(f"{_STREAM}/load", load, NameBody),
    ]


async def _read(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _READ_BYTES):
            yield chunk


async def _refusal(answer: Answer) -> RequestError:
    """What the child says is wrong, in its words."""
    data = bytearray()
    async for chunk in answer.chunks:
        data += chunk
        if len(data) > _MOST_ERROR_BYTES:
            break
    try:
        error = json.loads(data)["error"]
        what, why, fix = (str(error[key]) for key in ("what", "why", "fix"))
    except (ValueError, KeyError, TypeError):
        what, why, fix = f"the model answers with status {answer.status}", "", ""
    status = answer.status if answer.status in (400, 404, 409, 413, 429) else 500
    return RequestError(status, what, why, fix)
