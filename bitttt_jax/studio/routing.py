"""Routes of the studio's API: plain functions in, JSON out.

A handler is an ordinary function that runs in a thread, so that none of them can hold up the
event streams, or a coroutine that waits for something. What it returns is the JSON answer; a
`BittttError` that it raises becomes an error with the same words.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable
from typing import Any, ClassVar
from urllib.parse import unquote

import pydantic
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bitttt_jax.runs.files import finite
from bitttt_jax.studio.errors import RequestError

MAX_JSON_BYTES = 4 << 20
"""Of a request's body."""


@dataclasses.dataclass(frozen=True)
class Empty:
    """The body of a request that says nothing."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}


@dataclasses.dataclass(frozen=True)
class Created:
    """An answer with status 201."""

    content: Any


class ApiRoute(Route):
    """A route that knows what its body looks like.

    Args:
      path: below `api/`, with `{names}` of single segments.
      method: `GET` or `POST`.
      handler: the function.
      body: dataclass of a POST's body.
    """

    def __init__(self, path: str, method: str, handler: Callable[..., Any], body: type | None):
        self.handler, self.body = handler, body
        super().__init__(path, _endpoint(handler, body), methods=[method])


def get(path: str, handler: Callable[[Request], Any]) -> ApiRoute:
    """A route that reads.

    Args:
      path: below `api/`, such as `/runs/{id}`; `request.path_params` has the decoded segments.
      handler: given the request, returns JSON values, a `Created` or a `Response`.
    """
    return ApiRoute(path, "GET", handler, None)


def post(path: str, handler: Callable[[Request, Any], Any], body: type = Empty) -> ApiRoute:
    """A route that changes something.

    Args:
      path: below `api/`.
      handler: given the request and its body.
      body: a dataclass; other bodies are refused with all that is wrong with them.
    """
    return ApiRoute(path, "POST", handler, body)


def json_response(content: Any, status: int = 200) -> Response:
    """An answer in JSON that browsers can parse: NaN and infinities become null."""
    try:
        text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(finite(content), allow_nan=False, separators=(",", ":"))
    return Response(text, status, media_type="application/json")


def number(request: Request, name: str, default: int, *, low: int, high: int) -> int:
    """A whole number in the query, brought into its range.

    Raises:
      RequestError: it isn't one.
    """
    text = request.query_params.get(name, "")
    try:
        return min(high, max(low, int(text))) if text else default
    except ValueError:
        raise RequestError(400, f"{name}={text!r:.99} is not a whole number") from None


def _endpoint(handler: Callable[..., Any], body: type | None) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        params = request.path_params
        try:
            decoded = {name: unquote(text, errors="strict") for name, text in params.items()}
        except UnicodeDecodeError:
            raise RequestError(404, "the address isn't UTF-8") from None
        request.scope["path_params"] = decoded
        given = () if body is None else (_parse(await request.body(), body),)
        if inspect.iscoroutinefunction(handler):
            answer = await handler(request, *given)
        else:
            answer = await run_in_threadpool(handler, request, *given)
        if isinstance(answer, Response):
            return answer
        if isinstance(answer, Created):
            return json_response(answer.content, 201)
        return json_response(answer)

    return endpoint


@functools.cache
def _adapter(body: type) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(body)


def _parse(data: bytes, body: type) -> Any:
    try:
        return _adapter(body).validate_json(data or b"{}")
    except pydantic.ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'the body'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise RequestError(400, "the request isn't understood", "\n".join(problems)) from None
