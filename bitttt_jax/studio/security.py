"""Who may ask the studio, checked before anything else looks at a request.

The studio can start processes and read folders, and any page in the user's browser can send
requests to it. So requests need the token that was printed at the start, must be addressed to a
name of this computer (another name that resolves to it is how foreign pages get in), and must
come from the studio's own pages.
"""

from __future__ import annotations

import dataclasses
import hmac
import ipaddress
import re
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitttt_jax.studio.errors import RequestError, error_body
from bitttt_jax.studio.routing import MAX_JSON_BYTES, json_response

_READS = ("GET", "HEAD")
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; font-src 'self'; form-action 'none'; frame-ancestors 'none'; "
        "base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")


@dataclasses.dataclass(frozen=True)
class Policy:
    """What is asked of a request."""

    token: str
    """The secret of this start."""
    cookie: str
    """Name of the cookie that holds it."""
    hosts: frozenset[str]
    """Names, in lower case, under which the studio may be addressed."""
    any_address: bool = False
    """Whether every IP address may be, too: a foreign page has a name, never an address."""
    max_upload: int = 20 << 30
    """Bytes of an uploaded file."""


class Security:
    """ASGI middleware that lets through what the policy allows, and adds headers to answers.

    Args:
      app: what is protected.
      policy: the rules.
    """

    def __init__(self, app: ASGIApp, policy: Policy):
        self._app, self._policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # there are no websockets here
        # Kept encoded: a run's id may contain a slash, which would end its segment.
        scope = {**scope, "path": scope.get("raw_path", scope["path"].encode()).decode("latin-1")}
        send = _with_headers(send, is_api=scope["path"].startswith("/api/"))
        try:
            answer = self._check(scope)
            if answer is None:
                limit = self._body_limit(Headers(scope=scope), scope["method"])
                await self._app(scope, _limited(receive, limit), send)
                return
        except RequestError as error:
            answer = json_response(error_body(error), error.status)
        await answer(scope, receive, send)

    def _check(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = check_host(headers.getlist("host"), self._policy)
        check_origin(headers, host, scope["method"])
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(query).get("token")
        if given is not None and scope["path"] == "/" and scope["method"] in _READS:
            return self._sign_in(given, [pair for pair in query if pair[0] != "token"])
        if not self._is_known(headers):
            if scope["path"] == "/":
                text = "Open the address that `bitttt studio` printed: it contains a token.\n"
                return PlainTextResponse(text, 403)
            raise RequestError(
                403, "the token is missing or wrong", "", "the address that bitttt studio printed"
            )
        return None

    def _is_known(self, headers: Headers) -> bool:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._matches(bearer):
            return True
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except CookieError:
            return False
        morsel = cookies.get(self._policy.cookie)
        return morsel is not None and self._matches(morsel.value)

    def _matches(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._policy.token.encode())

    def _sign_in(self, token: str, rest: list[tuple[str, str]]) -> Response:
        if not self._matches(token):
            return PlainTextResponse("The token in the address is another start's.\n", 403)
        answer = RedirectResponse("./" + (f"?{urlencode(rest)}" if rest else ""), 303)
        # Without a path the browser takes the page's folder, whatever proxies have put before it.
        answer.set_cookie(
            self._policy.cookie, self._policy.token, path=None, httponly=True, samesite="strict"
        )
        return answer

    def _body_limit(self, headers: Headers, method: str) -> int:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        length = headers.get("content-length", "")
        has_body = length not in ("", "0") or "transfer-encoding" in headers
        is_upload = method == "PUT" and kind == "application/octet-stream"
        limit = self._policy.max_upload if is_upload else MAX_JSON_BYTES
        if (method not in (*_READS, "DELETE") or has_body) and not (
            is_upload or kind == "application/json"
        ):
            raise RequestError(415, f"bodies are application/json, not {kind!r:.99}")
        if length and not (length.isascii() and length.isdecimal()):
            raise RequestError(400, "Content-Length is no number")
        if length and int(length[:20]) > limit:
            raise _too_large(limit)
        return limit


def check_host(hosts: list[str], policy: Policy) -> str:
    """Refuses requests that are addressed to a name that isn't the studio's.

    Args:
      hosts: all Host headers of the request.
      policy: the rules.

    Returns:
      The header.

    Raises:
      RequestError: 400.
    """
    found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    name = found[1].lower().rstrip(".") if found else ""
    if name not in policy.hosts and not (policy.any_address and _is_address(name)):
        raise RequestError(
            400,
            f"the studio isn't at {', '.join(hosts)!r:.99}",
            f"it answers as {', '.join(sorted(policy.hosts))}",
            "bitttt studio --host=NAME",
        )
    return hosts[0]


def check_origin(headers: Mapping[str, str], host: str, method: str) -> None:
    """Refuses requests of other sites' pages.

    Args:
      headers: of the request.
      host: its Host header.
      method: its method.

    Raises:
      RequestError: 403.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    is_own = site == "same-origin"
    if origin is not None:
        parts = urlsplit(origin) if _is_plain(origin) else None
        is_own = parts is not None and parts.scheme in ("http", "https")
        is_own = is_own and parts is not None and parts.netloc.lower() == host.lower()
        if not is_own:
            raise RequestError(403, f"a page of {origin!r:.99} asked", "only the studio's own may")
    if method not in _READS and not is_own:
        raise RequestError(
            403, "the request doesn't say which page sent it", fix="an Origin header"
        )


def allowed_hosts(host: str, names: tuple[str, ...] = ()) -> tuple[frozenset[str], bool]:
    """Names under which a server that listens on `host` may be addressed.

    Args:
      host: what it listens on.
      names: of this computer, counted where it listens on all addresses.

    Returns:
      The names, and whether any IP address will do too.
    """
    loopback = {"localhost", "127.0.0.1", "[::1]"}
    everywhere = host in ("0.0.0.0", "::", "")
    own = names if everywhere else (f"[{host}]" if ":" in host else host,)
    return frozenset(loopback | {name.lower() for name in own}), everywhere


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _is_plain(origin: str) -> bool:
    return re.fullmatch(r"https?://[A-Za-z0-9._:\[\]-]+", origin) is not None


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"the body has more than {limit:,} bytes")


def _limited(receive: Receive, limit: int) -> Receive:
    read = 0

    async def limited() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > limit:
            raise _too_large(limit)
        return message

    return limited


def _with_headers(send: Send, *, is_api: bool) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers["cache-control"] = "no-store" if is_api else "no-cache"
        await send(message)

    return sending
