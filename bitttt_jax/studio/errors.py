"""What the studio answers to a request that it refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bitttt_jax.errors import BittttError


class RequestError(BittttError):
    """A request that is refused with an HTTP status.

    Args:
      status: 400, 403, 404, 409, 413, 415, 429 or 500.
      what: what happened, with the value at fault.
      why: the reason, if `what` doesn't already imply it.
      fix: what to try next.
      problems: `key` and `message` of each value of a form that is wrong.
    """

    kind = "request"

    def __init__(
        self,
        status: int,
        what: str,
        why: str = "",
        fix: str = "",
        problems: Sequence[Mapping[str, Any]] = (),
    ):
        super().__init__(what, why, fix)
        self.status, self.problems = status, problems


def error_body(error: BittttError) -> dict[str, Any]:
    """The JSON of an error: what, why and fix, and a form's problems."""
    body: dict[str, Any] = {"what": error.what, "why": error.why, "fix": error.fix}
    if isinstance(error, RequestError) and error.problems:
        return {"error": body, "problems": list(error.problems)}
    return {"error": body}
