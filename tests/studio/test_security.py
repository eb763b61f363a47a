"""Attacks on the studio, each of which must come to nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from bitttt_jax.studio.app import Studio, make_app
from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.paths import check_name, confine
from bitttt_jax.studio.security import Policy, allowed_hosts
from tests.studio.conftest import TOKEN, write_run

OWN = {"origin": "http://127.0.0.1:8701"}
BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def stranger(studio: Studio, policy: Policy) -> TestClient:
    """Somebody who sends nothing of his own."""
    return TestClient(make_app(studio, policy), "http://127.0.0.1:8701", follow_redirects=False)


def test_a_page_signs_in_with_the_printed_address(stranger: TestClient):
    answer = stranger.get(f"/?token={TOKEN}&lang=ja")
    assert (answer.status_code, answer.headers["location"]) == (303, "./?lang=ja")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "path" not in cookie
    assert stranger.get("/").status_code == 200
    assert stranger.get("/api/info").status_code == 200
    assert TOKEN not in stranger.get("/").text + str(stranger.get("/").headers)


@pytest.mark.parametrize("path", ["/", "/api/info", "/api/runs", "/static/index.html", "/api/nix"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": "Bearer "},
        {"cookie": "bitttt_studio_8701=wrong"},
        {"cookie": f"bitttt_studio_8702={TOKEN}"},
        {"cookie": "bitttt_studio_8701=" + "é" * 9},
        {"cookie": "\x00=;;;=="},
        {"x-forwarded-for": "127.0.0.1"},
    ],
    ids=str,
)
def test_without_the_token_nothing_is_told(stranger: TestClient, path: str, headers: dict):
    raw = {name: value.encode("utf-8") for name, value in headers.items()}
    answer = stranger.get(path, headers=raw)
    assert answer.status_code == 403 and str(Path.cwd()) not in answer.text


def test_a_wrong_token_signs_nobody_in(stranger: TestClient):
    answer = stranger.get("/?token=wrong")
    assert answer.status_code == 403 and "set-cookie" not in answer.headers
    assert stranger.get(f"/api/info?token={TOKEN}").status_code == 403  # only the page takes it


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8701",
        "127.0.0.1.evil.example:8701",
        "localhost.evil.example",
        "127.0.0.1:8701@evil.example",
        "evil.example#127.0.0.1",
        "192.168.0.7:8701",
        "[::2]:8701",
        "",
        "127.0.0.1:8701:1",
        "127.0.0.1 evil",
    ],
)
def test_dns_rebinding(stranger: TestClient, host: str):
    """The attacker's name resolves to this computer, the browser sends the page's own origin."""
    origin = {"origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    answer = stranger.get("/api/runs", headers={**BEARER, "host": host, **origin})
    assert answer.status_code in (400, 403) and "runs" not in answer.json()


@pytest.mark.parametrize(
    "host", ["localhost:8701", "LOCALHOST", "[::1]:1", "127.0.0.1", "127.0.0.1."]
)
def test_own_names(stranger: TestClient, host: str):
    assert stranger.get("/api/runs", headers={**BEARER, "host": host}).status_code == 200


def test_names_of_a_studio_for_others():
    assert allowed_hosts("studio.lan")[0] >= {"studio.lan", "localhost"}
    assert allowed_hosts("fe80::1")[0] >= {"[fe80::1]"}
    names, any_address = allowed_hosts("0.0.0.0", ("Box",))
    assert "box" in names and any_address and not allowed_hosts("127.0.0.1", ("box",))[1]


def test_addresses_need_no_name_where_all_are_listened_on(studio: Studio):
    app = make_app(studio, Policy(TOKEN, "c", *allowed_hosts("0.0.0.0", ("box",))))
    client = TestClient(app, headers=BEARER)
    status = lambda host: client.get("/api/runs", headers={"host": host}).status_code
    assert [status(h) for h in ("192.168.0.7:8701", "[fe80::1]:8701", "box")] == [200] * 3
    assert [status(h) for h in ("evil.example", "192.168.0.7.evil.example")] == [400] * 2


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8702"},
        {"origin": "http://127.0.0.1:8701.evil.example"},
        {"origin": "http://127.0.0.1:8701@evil.example"},
        {"origin": "file://127.0.0.1:8701"},
        {"origin": "http://localhost:8701"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "http://evil.example", "sec-fetch-site": "same-origin"},
        {"referer": "http://127.0.0.1:8701/"},
    ],
    ids=str,
)
def test_cross_site_requests(stranger: TestClient, headers: dict[str, str]):
    """A foreign page's POST, also if the browser should send the cookie with it."""
    cookie = {"cookie": f"bitttt_studio_8701={TOKEN}"}
    body = {"config": {}, "name": "x"}
    answer = stranger.post("/api/runs", json=body, headers={**cookie, **headers})
    assert answer.status_code == 403


def test_reading_by_foreign_pages(stranger: TestClient):
    answer = stranger.get("/api/runs", headers={**BEARER, "origin": "http://evil.example"})
    assert answer.status_code == 403
    answer = stranger.get("/api/runs", headers=BEARER)
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "",
     "application/json5", "text/plain; application/json", "application/octet-stream"],
)  # fmt: skip
def test_forms_of_other_pages_cannot_post(client: TestClient, kind: str):
    answer = client.post("/api/form/check", content=b"{}", headers={"content-type": kind})
    assert answer.status_code == 415


def test_own_requests_pass(client: TestClient):
    for headers in (OWN, {"origin": "https://127.0.0.1:8701"}):
        body = {"preset": "debug"}
        assert client.post("/api/form/check", json=body, headers=headers).status_code == 200
    del client.headers["origin"]
    headers = {"sec-fetch-site": "same-origin", "content-type": "application/json; charset=utf-8"}
    answer = client.post("/api/form/check", content=b'{"preset": "debug"}', headers=headers)
    assert answer.status_code == 200


def test_oversized_bodies(client: TestClient):
    big = b'{"command": "' + b"x" * (4 << 20) + b'"}'
    headers = {"content-type": "application/json"}
    assert client.post("/api/form/check", content=big, headers=headers).status_code == 413
    chunks = (big[i : i + 65536] for i in range(0, len(big), 65536))  # says no length
    assert client.post("/api/form/check", content=chunks, headers=headers).status_code == 413
    lying = {**headers, "content-length": "99999999999999999999999"}
    assert client.post("/api/form/check", content=b"{}", headers=lying).status_code == 413
    deep = b'{"values": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert client.post("/api/form/check", content=deep, headers=headers).status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/%2e%2e%2fapp.py",
        "/static//etc/passwd",
        "/static/..\\app.py",
        "/static/index.html/../../app.py",
        "/static/%00",
        "//etc/passwd",
    ],
)
def test_static_files_stay_in_their_folder(client: TestClient, path: str):
    answer = client.request("GET", "http://127.0.0.1:8701" + path)
    assert answer.status_code in (404, 405) and "import" not in answer.text


@pytest.mark.parametrize(
    "id",
    ["..", "../outside", "%2e%2e", "a/../../outside", ".studio", ".studio/jobs", "/etc", "\0",
     "link", "link/below", "a//b", "~", "\ud800", pytest.param("x" * 5000, id="long")],
)  # fmt: skip
def test_runs_outside_of_their_folder(client: TestClient, studio: Studio, tmp_path: Path, id: str):
    write_run(tmp_path / "outside")
    write_run(tmp_path / "outside" / "below")
    os.symlink(tmp_path / "outside", studio.runs / "link")
    word = quote(id, safe="", errors="surrogatepass")
    for path in ("", "/log", "/series", "/log/file", "/samples", "/clone"):
        assert client.get(f"/api/runs/{word}{path}").status_code == 404
    for path in ("/stop", "/resume", "/delete"):
        assert client.post(f"/api/runs/{word}{path}", json={}).status_code == 404
    if id.isprintable() and id not in ("~", "%2e%2e") and len(id) < 99:
        assert client.get("/api/poll", params={"run": id}).status_code == 404
    assert (tmp_path / "outside" / "status.json").exists()


def test_a_link_to_another_folder_is_no_run(client: TestClient, studio: Studio, tmp_path: Path):
    write_run(tmp_path / "outside")
    os.symlink(tmp_path / "outside", studio.runs / "link")
    write_run(studio.runs / "own")
    assert [run["id"] for run in client.get("/api/runs").json()["runs"]] == ["own"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", ".a", "a\nb", "a\0", " a", "é" * 150]
)
def test_names_of_new_runs(client: TestClient, studio: Studio, name: str):
    config = client.post("/api/form/check", json={"preset": "debug"}).json()["config"]
    answer = client.post("/api/runs", json={"config": config, "name": name})
    assert answer.status_code == 400
    assert [path.name for path in studio.runs.iterdir()] == [".studio"]
    with pytest.raises(RequestError):
        check_name(name)


def test_paths_are_confined(tmp_path: Path):
    root, outside = tmp_path / "root", tmp_path / "root-beside"
    (root / "in").mkdir(parents=True)
    outside.mkdir()
    os.symlink(outside, root / "out")
    os.symlink(root / "in", tmp_path / "entry")
    os.symlink("loop", root / "loop")
    assert confine(root / "in" / "new.txt", [root]) == root / "in" / "new.txt"
    assert confine(tmp_path / "entry", [root]) == root / "in"
    for path in ("out", "out/x", "../root-beside", "in/../../x", "/etc/passwd", "in/\0", "loop"):
        with pytest.raises(RequestError) as caught:
            confine(root / path, [root])
        assert caught.value.status in (400, 403)


def test_a_command_reads_no_other_files(client: TestClient, tmp_path: Path):
    script = tmp_path / "evil.py"
    script.write_text(f"open({str(tmp_path / 'proof')!r}, 'w')\ndef get_config(): pass")
    secret = tmp_path / "secret.json"
    secret.write_text('{"name": "secret"}')
    flags = [
        f"--config={script}", f"--config {script}", f"-config={script}", f"-config {script}",
        f"--config=debug --config={script}", f"--config={script} --config=debug",
        f"--config={secret}", f"--config=debug --flagfile={secret}",
        f"--config=debug --flagfile {secret}", f"--flagfile={secret} --config=debug",
        "--config=debug --help", "--config=debug --print_config",
    ]  # fmt: skip
    for flag in flags:
        answer = client.post("/api/form/check", json={"command": f"bitttt train {flag}"})
        assert answer.status_code in (400, 403) and '"secret"' not in answer.text, flag
    answer = client.post("/api/form/check", json={"preset": str(script)})
    assert answer.status_code == 400
    assert client.post("/api/form/check", json={"preset": str(secret)}).status_code == 403
    assert not (tmp_path / "proof").exists()


def test_text_stays_text(client: TestClient, studio: Studio):
    evil = "<script>alert(1)</script>"
    folder = studio.runs / evil.replace("/", "_")
    write_run(folder)
    (folder / "train.log").write_text(f"{evil}\x1b]0;title\x07\x1b[2J\n")
    (folder / "events.jsonl").write_text(json.dumps({"kind": "sample", "text": evil}) + "\n")
    answers = [client.get("/api/runs")]
    for path in ("", "/log", "/log/file", "/samples"):
        answers.append(client.get(f"/api/runs/{folder.name}{path}"))
    answers.append(client.get(f"/api/{evil}"))
    for answer in answers:
        kind = answer.headers["content-type"]
        assert kind == "application/json" or kind.startswith("text/plain")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert "attachment" in answers[3].headers["content-disposition"]
    assert "\x1b" not in answers[2].json()["lines"][0]


@pytest.mark.parametrize("path", ["/", "/api/runs", "/api/nix", "/static/index.html", "/?token=x"])
def test_headers_of_every_answer(client: TestClient, stranger: TestClient, path: str):
    for answer in (client.get(path), stranger.get(path)):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == ("no-store" if "/api" in path else "no-cache")


def test_methods_are_those_that_are_meant(client: TestClient):
    ask: Any = client.request
    json_type = {"content-type": "application/json"}
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        answer = ask(method, "/api/runs", headers=json_type)
        assert answer.status_code == 405, method
    answer = client.get("/api/runs/x/stop", headers={"x-http-method-override": "POST"})
    assert answer.status_code in (404, 405)
