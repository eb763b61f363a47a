"""Attacks: other sites' pages, guessed keys, bodies and paths that are meant to do harm."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from bitttt_jax.server.guard import host_name, is_loopback, names_of
from tests.server.live import NAME, Live, model, running

KEY = "sk-\u00e4-secret"
BODY = {"prompt": "a", "max_tokens": 1}


@pytest.fixture(scope="module")
def locked() -> Iterator[Live]:
    """A server with a key, whose pages of one other site may ask."""
    site = "https://chat.example"
    with running(model, api_key=KEY, cors=(site,), max_body=10_000, playground=True) as found:
        yield found


@pytest.fixture
def http(live: Live) -> Iterator[httpx.Client]:
    with live.client() as client:
        yield client


def raw(port: int, request: bytes) -> bytes:
    """The answer to some bytes, however malformed."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "localhost@evil",
     "evil#localhost", "", "[::1", "127.1", "localhost:x", "localhost, evil"],
)  # fmt: skip
def test_other_names_for_this_computer_are_refused(http: httpx.Client, host: str):
    found = http.get("/v1/models", headers={"host": host})
    assert (found.status_code, found.json()["error"]["code"]) == (403, "host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:80"])
def test_its_own_names_are_right(http: httpx.Client, host: str):
    assert http.get("/v1/models", headers={"host": host}).status_code == 200


def test_names_depend_on_where_it_listens():
    assert names_of("127.0.0.1", []) == {"localhost", "127.0.0.1", "::1"}
    assert "model.example" in names_of("localhost", ["Model.Example"])
    assert names_of("0.0.0.0", []) == set()
    assert names_of("0.0.0.0", ["a.example"]) == {"a.example"}
    assert [is_loopback(host) for host in ("127.3.2.1", "::1", "localhost", "0.0.0.0", "x")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert host_name("a.example:80") == "a.example"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", "file://"])
def test_pages_of_other_sites_may_not_ask(live: Live, origin: str):
    with live.client(headers={"origin": origin}) as client:
        # What a page may send without asking first.
        plain = {"content-type": "text/plain"}
        found = client.post("/v1/completions", content=json.dumps(BODY), headers=plain)
        assert found.status_code == 403
        assert "access-control-allow-origin" not in found.headers
        asked = {"access-control-request-method": "POST"}
        assert client.options("/v1/completions", headers=asked).status_code in (403, 405)
    with live.client(headers={"origin": live.url}) as client:
        assert client.post("/v1/completions", json=BODY).status_code == 200


def test_pages_of_a_declared_site_may(locked: Live):
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    for origin, status in (("https://chat.example", 200), ("https://evil.example", 400)):
        with locked.client(headers={"origin": origin}) as client:
            assert client.options("/v1/completions", headers=asked).status_code == status
            key = {"authorization": f"Bearer {KEY}".encode()}
            found = client.post("/v1/completions", json=BODY, headers=key)
            assert found.status_code == (200 if status == 200 else 403)
            allowed = found.headers.get("access-control-allow-origin")
            assert allowed == (origin if status == 200 else None)


@pytest.mark.parametrize(
    "path",
    ["/v1/models", "/metrics", "/openapi.json", "/bitttt/model", "/nothing", "//health",
     "/health/", "/health/../v1/models", "/%68ealth", "/HEALTH", "/v1/../health"],
)  # fmt: skip
def test_nothing_without_the_key(locked: Live, path: str):
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = raw(locked.port, request.encode())
    status = int(answer.split()[1])
    is_health = path == "/%68ealth"  # the same path, in other words
    assert status == (200 if is_health else 401), answer
    assert is_health or b"www-authenticate: Bearer" in answer


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", KEY,
     f"Bearer x {KEY}", f"Bearer {KEY.upper()}"],
)  # fmt: skip
def test_wrong_keys(locked: Live, value: str):
    with locked.client() as client:
        for path in ("/v1/models", "/bitttt/model"):
            found = client.get(path, headers={"authorization": value.encode()})
            assert found.status_code == 401
            assert KEY not in found.text
        assert client.get("/health").json() == {"status": "ready"}
        right = {"authorization": f"bearer {KEY}".encode()}
        assert client.get("/v1/models", headers=right).status_code == 200


def test_bodies_that_are_too_large(locked: Live):
    key = {"authorization": f"Bearer {KEY}".encode()}
    with locked.client(headers=key) as client:
        found = client.post("/v1/completions", json={"prompt": "a" * 10_000})
        assert (found.status_code, found.json()["error"]["code"]) == (413, "body_too_large")
        parts = (b"a" * 1000 for _ in range(11))
        assert client.post("/v1/completions", content=parts).status_code == 413
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999999\r\n"
    answer = raw(locked.port, head + b"Authorization: Bearer " + KEY.encode() + b"\r\n\r\n{")
    assert b" 413 " in answer.split(b"\r\n")[0]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe", b'{"prompt": NaN}', b"[" * 100_000,
        b'{"prompt":' * 50_000, b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "max_tokens": 1e3}', b'{"prompt": "a", "max_tokens": 99999999999999}',
        b'{"prompt": [-1]}', b'{"prompt": [300]}', b'{"prompt": []}', b'{"prompt": [1, "a"]}',
        b'{"prompt": "\\ud800"}', b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}",
    ],
)  # fmt: skip
def test_malformed_bodies(http: httpx.Client, content: bytes):
    found = http.post("/v1/completions", content=content)
    assert found.status_code == 400, found.text
    assert set(found.json()["error"]) == {"message", "type", "param", "code"}
    assert len(found.text) < 1000


def test_a_body_that_isn_t_whole(live: Live):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
    answer = raw(live.port, head + b'{"prompt":')
    assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]
    with live.client() as client:
        assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    "line",
    [b"Host: localhost\r\nHost: evil", b"Host: localhost\r\nX: a\r\n b: c", b"Host : localhost",
     b"Host: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 3"],
)  # fmt: skip
def test_ambiguous_headers_are_refused(live: Live, line: bytes):
    answer = raw(live.port, b"POST /v1/completions HTTP/1.1\r\n" + line + b"\r\n\r\nabc")
    assert answer == b"" or 400 <= int(answer.split()[1]) < 500, answer


def test_names_don_t_get_into_headers(http: httpx.Client):
    for path in ("/v1/models/a%0d%0aSet-Cookie:%20x=1", "/bitttt/streams/a%0d%0aX:1", "/%0d%0aX:1"):
        found = http.get(path)
        assert found.status_code == 404
        assert "set-cookie" not in found.headers and "x" not in found.headers


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/bitttt/streams/..%2fx"]
)
def test_paths_lead_nowhere(live: Live, path: str):
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert b" 404 " in raw(live.port, request.encode()).split(b"\r\n")[0]


def test_other_methods(http: httpx.Client):
    assert http.get("/v1/completions").status_code == 405
    assert http.delete("/v1/models").status_code == 405
    assert http.post("/health").status_code == 405
    assert http.get("/v1/completions").json()["error"]["type"] == "invalid_request_error"
    assert http.patch("/bitttt/streams").json()["error"]["what"] == "method not allowed"


def test_metrics_count_routes_not_paths(http: httpx.Client):
    http.get("/secret-path")
    http.post("/v1/completions", json=BODY | {"model": NAME})
    text = http.get("/metrics").text
    assert "secret-path" not in text
    assert 'bitttt_requests_total{path="/v1/completions",status="200"}' in text
    assert "bitttt_first_token_seconds_count" in text
    assert "process_resident_memory_bytes" in text
    assert "bitttt_ready 1.0" in text
