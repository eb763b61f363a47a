"""Refusals and failures as clients see them."""

from __future__ import annotations

from typing import Any

import pydantic
from starlette.responses import JSONResponse

from bitttt_jax.errors import BittttError, OutOfMemoryError

# Below it errors say what, why and what to try; elsewhere they have OpenAI's form.
OWN_PATH = "/bitttt/"
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An answer that isn't what was asked for.

    Args:
      status: of HTTP.
      what: what happened.
      why: the reason.
      fix: what to try.
      param: which parameter is at fault.
      code: what programs tell it by.
      headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        what: str,
        why: str = "",
        fix: str = "",
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(what)
        self.status, self.what, self.why, self.fix = status, what, why, fix
        self.param, self.code, self.headers = param, code, headers or {}

    def openai(self) -> dict[str, Any]:
        """As OpenAI's clients expect it."""
        parts = (self.what, self.why, self.fix and f"Try: {self.fix}")
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "")
        return {
            "error": {
                "message": ". ".join(part.rstrip(".") for part in parts if part),
                "type": kind or "invalid_request_error",
                "param": self.param,
                "code": self.code,
            }
        }

    def own(self) -> dict[str, Any]:
        """As the studio expects it."""
        return {"error": {"what": self.what, "why": self.why, "fix": self.fix}}

    def response(self, path: str) -> JSONResponse:
        """The answer to a request for a path."""
        content = self.own() if path.startswith(OWN_PATH) else self.openai()
        # Repeating what took too long, or was refused, makes nothing better.
        headers = {"x-should-retry": "false"} if self.status == 504 else {}
        return JSONResponse(content, self.status, {**headers, **self.headers})


def explained(error: BaseException) -> ApiError:
    """What went wrong in words for the client; what it can't help stays with the server."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OutOfMemoryError):
        return ApiError(503, error.what, error.why, error.fix, code="out_of_memory")
    if isinstance(error, BittttError):
        code = "context_length_exceeded" if "context" in error.what else None
        return ApiError(400, error.what, error.why, error.fix, code=code)
    return ApiError(500, "the server failed", "its log says how", code="internal_error")


def malformed(error: pydantic.ValidationError) -> ApiError:
    """A body that isn't what the endpoint takes; the first fault counts."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # Of a union each member's fault is told; the parameter is what stands before it.
    param = ".".join(str(part) for part in first["loc"][:1]) or None
    return ApiError(400, f"{param or 'the body'}: {first['msg']}", param=param)
