"""Reading bodies: no more than so many bytes, and no longer than some seconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

import pydantic
from starlette.requests import ClientDisconnect, Request

from bitttt_jax.server.failures import ApiError, malformed

Body = TypeVar("Body", bound=pydantic.BaseModel)


async def parts(request: Request, most: int, seconds: float = 60) -> AsyncIterator[bytes]:
    """The parts of a body as they come.

    Raises:
      ApiError: it has more than `most` bytes, or doesn't come within some seconds.
    """
    too_large = ApiError(413, f"the body has more than {most} bytes", code="body_too_large")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > most:
        raise too_large
    total = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                total += len(part)
                if total > most:
                    raise too_large
                yield part
    except TimeoutError:
        raise ApiError(408, f"the body didn't come within {seconds:g} seconds") from None
    except ClientDisconnect:
        raise ApiError(400, "the body isn't whole") from None


async def read(request: Request, kind: type[Body], most: int) -> Body:
    """The body of a request, checked.

    Raises:
      ApiError: it is too large, or isn't what the endpoint takes.
    """
    data = b"".join([part async for part in parts(request, most)])
    try:
        return kind.model_validate_json(data)
    except pydantic.ValidationError as error:
        raise malformed(error) from None
