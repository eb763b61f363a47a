"""What the studio answers to a request that it refuses."""

from __future__ import annotations

from bitttt_jax.errors import BittttError


class RequestError(BittttError):
    """A request that is refused with an HTTP status.

    Args:
      status: 400, 403, 404, 409, 413, 415, 429 or 500.
      what: what happened, with the value at fault.
      why: the reason, if `what` doesn't already imply it.
      fix: what to try next.
    """

    kind = "request"

    def __init__(self, status: int, what: str, why: str = "", fix: str = ""):
        super().__init__(what, why, fix)
        self.status = status


def error_body(error: BittttError) -> dict[str, dict[str, str]]:
    """The JSON of an error: what, why and fix."""
    return {"error": {"what": error.what, "why": error.why, "fix": error.fix}}
