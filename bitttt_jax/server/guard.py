"""Who may ask: the API key, and no pages of other sites."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from bitttt_jax.server.failures import ApiError

# Says whether the server works, and nothing else.
OPEN_PATH = "/health"


class Guard:
    """Refuses requests before anything is done for them.

    Args:
      app: what answers the others.
      api_key: what each request must have, other than for `/health`; empty for none.
      hosts: names under which the server may be called; empty for any. Otherwise a page of another
        site, whose name is made to lead here, would be let in.
      origins: other sites whose pages may ask, or `*`.
    """

    def __init__(
        self, app: ASGIApp, *, api_key: str, hosts: Collection[str], origins: Collection[str]
    ):
        self._app, self._key = app, api_key.encode()
        self._hosts, self._origins = hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] == "http" and (error := self._refusal(scope)):
            await error.response(scope["path"])(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts and host_name(host) not in self._hosts:
            return ApiError(
                403,
                "the server isn't called by this name",
                "a page that leads its own name here could ask in its user's stead",
                "--allow_host=NAME",
                code="host",
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_allowed(origin, host):
            return ApiError(
                403, "pages of other sites may not ask", fix=f"--cors={origin}", code="origin"
            )
        if self._key and scope["path"] != OPEN_PATH and not self._has_key(headers):
            return ApiError(
                401,
                "the API key is missing or wrong",
                fix="the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return None

    def _is_allowed(self, origin: str, host: str) -> bool:
        is_same = origin.partition("://")[2].lower() == host.lower() != ""
        return is_same or "*" in self._origins or origin in self._origins

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # Headers were read as Latin-1; keys are sent as UTF-8.
        is_right = hmac.compare_digest(key.strip().encode("latin-1"), self._key)
        return is_right and scheme.lower() == "bearer"


def host_name(host: str) -> str:
    """The name in a Host header, without the port; empty if it is malformed.

    >>> host_name("LocalHost:80"), host_name("[::1]:80"), host_name("localhost:80@evil.org")
    ('localhost', '::1', '')
    """
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return ""
    is_bare = parts.netloc == host and "@" not in host and not parts.path
    return (parts.hostname or "") if is_bare else ""


def is_loopback(host: str) -> bool:
    """Whether a host to listen on is reached from this computer only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def names_of(host: str, others: Collection[str]) -> set[str]:
    """Names by which a server may be called that listens on a host; none for any name.

    Args:
      host: what it listens on.
      others: names that were declared.
    """
    if not is_loopback(host):
        return {name.lower() for name in others}
    return {"localhost", "127.0.0.1", "::1", host, *(name.lower() for name in others)}
