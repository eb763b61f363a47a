"""One studio with a real player or two, shared by most tests here: they take seconds to start."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from bitttt_jax.studio import players as players_module
from bitttt_jax.studio.app import Studio
from bitttt_jax.studio.loopback import Child
from bitttt_jax.studio.models import find_model
from bitttt_jax.studio.players import IDLE_SECONDS, Player, Players, serve_command
from bitttt_jax.studio.processes import Job, job_state, load_jobs, start_job, stop_job
from tests.studio import rooms
from tests.studio.rooms import Server


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    studio = rooms.make_studio(tmp_path_factory.mktemp("playground"))
    rooms.with_run(studio)
    return studio


@pytest.fixture(scope="module")
def server(studio: Studio) -> Iterator[Server]:
    with rooms.server(studio) as running:
        yield running


def client_of(server: Server) -> httpx.Client:
    address = f"http://127.0.0.1:{server.port}"
    headers = rooms.HEADERS | {"origin": address}
    return httpx.Client(base_url=f"{address}/api/", headers=headers, timeout=90)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with client_of(server) as opened:
        yield opened


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code < 300, answer.text
    return answer.json()


def look(client: httpx.Client, id_: str) -> dict[str, Any]:
    return next(p for p in client.get("play").json()["players"] if p["id"] == id_)


def settled(client: httpx.Client, id_: str) -> dict[str, Any]:
    """A player once it isn't loading any more."""

    def settled() -> dict[str, Any] | None:
        found = look(client, id_)
        return found if found["state"] != "loading" else None

    return rooms.wait_until(settled)


@pytest.fixture(scope="module")
def player(client: httpx.Client) -> str:
    """A player of the newest checkpoint."""
    id_ = post(client, "play", model="tiny")["id"]
    assert look(client, id_)["state"] in ("loading", "ready")
    found = settled(client, id_)
    assert found["state"] == "ready", found["card"]
    return id_


@pytest.fixture(scope="module")
def older(client: httpx.Client) -> str:
    """A player of the checkpoint before, beside the other."""
    id_ = post(client, "play", model="tiny", step=2)["id"]
    assert settled(client, id_)["state"] == "ready"
    return id_


def new_stream(client: httpx.Client, player: str, learn: bool = True) -> str:
    return post(client, f"play/{player}/streams", mode="completion", system="", learn=learn)["id"]


def events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def write(client: httpx.Client, player: str, stream: str, text: str, most: int = 8) -> list[Any]:
    body = {"text": text, "max_tokens": most, "temperature": 0, "seed": 0}
    with client.stream("POST", f"play/{player}/streams/{stream}/write", json=body) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        return list(events(response))


def processes_of(job: Job) -> list[psutil.Process]:
    first = psutil.Process(job.pid)
    return [first, *first.children(recursive=True)]


def job_of(studio: Studio, flag: str) -> Job:
    """The newest job of a player with a flag."""
    return [job for job in load_jobs(studio.jobs) if flag in job.argv][-1]


def test_a_player_says_what_it_runs(client: httpx.Client, player: str, studio: Studio):
    found = look(client, player)
    assert (found["model"], found["kind"], found["step"]) == ("tiny", "run", 4)
    assert (found["device"], found["newer_step"], found["card"]) == ("cpu", None, None)
    assert found["pinned"] is False
    assert found["description"]["uses_ttt"] is True


def test_its_key_is_seen_by_nobody(client: httpx.Client, player: str, studio: Studio):
    job = job_of(studio, "--watch")
    (port,) = [arg.removeprefix("--port=") for arg in job.argv if arg.startswith("--port=")]
    refused = httpx.get(f"http://127.0.0.1:{port}/bitttt/model")
    assert refused.status_code in (401, 403)
    key = processes_of(job)[0].environ()["BITTTT_API_KEY"]
    allowed = httpx.get(
        f"http://127.0.0.1:{port}/bitttt/model", headers={"authorization": f"Bearer {key}"}
    )
    assert allowed.status_code == 200 and len(key) > 30
    assert all(key not in " ".join(process.cmdline()) for process in processes_of(job))
    told = (path.read_text() for path in studio.home.rglob("*") if path.is_file())
    assert all(key not in text for text in told)
    assert key not in client.get("play").text


def test_text_comes_with_what_is_learned_from_it(client: httpx.Client, player: str):
    stream = new_stream(client, player)
    found = write(client, player, stream, "return def " * 10, 12)
    names = [name for name, _ in found]
    assert names[-1] == "done" and "inner" in names and "piece" in names
    assert found[-1][1]["tokens"] == 12
    described = client.get(f"play/{player}/streams/{stream}").json()
    assert described["mode"] == "completion" and described["learn"] is True
    assert client.delete(f"play/{player}/streams/{stream}").status_code == 200
    assert client.get(f"play/{player}/streams/{stream}").status_code == 404


def test_two_side_by_side(client: httpx.Client, player: str, older: str):
    assert (look(client, older)["step"], look(client, older)["pinned"]) == (2, True)
    texts = [write(client, one, new_stream(client, one), "def x") for one in (player, older)]
    assert all(found[-1][0] == "done" for found in texts)


def test_states_are_saved_and_loaded(
    client: httpx.Client, player: str, older: str, studio: Studio, tmp_path: Path
):
    stream = new_stream(client, player)
    write(client, player, stream, "return def " * 10)
    base = f"play/{player}/streams/{stream}"
    saved = post(client, f"{base}/save", name="after reading")
    again = client.post(f"{base}/save", json={"name": "after reading"})
    assert again.status_code == 409
    path = studio.home / "states" / "after reading.safetensors"
    assert saved["name"] == path.name and saved["bytes"] == path.stat().st_size
    assert saved["tokens"] > 50
    assert client.get("states").json() == {"states": [saved]}
    before = client.get(base).json()
    expected = write(client, player, stream, "and")

    other = new_stream(client, player, learn=False)
    post(client, f"play/{player}/streams/{other}/load", name="after reading")
    after = client.get(f"play/{player}/streams/{other}").json()
    assert after | {"model_step": 4} == before | {"model_step": 4}
    pieces = lambda found: "".join(data["text"] for name, data in found if name == "piece")
    assert pieces(write(client, player, other, "and")) == pieces(expected)

    stranger = new_stream(client, older)
    refused = client.post(f"play/{older}/streams/{stranger}/load", json={"name": "after reading"})
    assert refused.status_code == 409 and refused.json()["error"]["what"]

    data = client.get("states/after%20reading/file").content
    assert data == path.read_bytes()
    for name, content, status in (
        ("copy", data, 201),
        ("copy", data, 409),
        ("cut", data[:-1], 400),
        ("empty", b"", 400),
        ("zip", b"PK" * 500, 400),
        ("%2e%2e%2fup", data, 400),
    ):
        answer = client.put(f"states/{name}", content=content, headers=rooms.BYTES)
        assert answer.status_code == status, (name, answer.text)
    post(client, f"play/{player}/streams/{other}/load", name="copy")
    post(client, "states/copy.safetensors/delete")
    assert client.post("states/copy/delete", json={}).status_code == 404
    assert [one.name for one in (studio.home / "states").iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["..", "../../x", "/etc/passwd", ".x", "a\nb", "", "no"])
def test_states_that_are_refused(client: httpx.Client, player: str, studio: Studio, name: str):
    stream = new_stream(client, player)
    before = sorted(studio.home.rglob("*"))
    base = f"play/{player}/streams/{stream}"
    assert client.post(f"{base}/load", json={"name": name}).status_code in (400, 404)
    if name != "no":
        assert client.post(f"{base}/save", json={"name": name}).status_code == 400
    assert sorted(studio.home.rglob("*")) == before


def test_a_browser_that_goes_ends_the_reply(client: httpx.Client, player: str):
    stream = new_stream(client, player, learn=False)
    body = {"text": "def x", "max_tokens": 1_000_000, "temperature": 1, "seed": 0}
    path = f"play/{player}/streams/{stream}/write"
    with client.stream("POST", path, json=body) as response:
        assert any(name == "piece" for name, _ in events(response))
    base = f"play/{player}/streams/{stream}"

    def is_free() -> bool:
        return client.post(f"{base}/system", json={"text": ""}).status_code == 200

    rooms.wait_until(is_free)
    before = client.get(base).json()["turns"]
    assert len(before) >= 2 and client.get(base).json()["turns"] == before


@pytest.mark.parametrize(
    "rest",
    [
        "/../../v1/models", "/%2e%2e/%2e%2e/v1/models", "/a/b/c", "x", "/a%20b", "/a%0d%0aX:%20y",
        "/a?x=1&y=2", "/a%3fx", "/a%23x", "//v1/models", "/" + "a" * 300,
    ],
)  # fmt: skip
def test_only_streams_are_passed_on(client: httpx.Client, player: str, rest: str):
    answer = client.get(httpx.URL(f"{client.base_url}play/{player}/streams{rest}"))
    assert answer.status_code == 404, answer.text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "nothing"}, 404),
        ({"model": "/etc/passwd"}, 403),
        ({"model": "tiny", "step": 3}, 404),
        ({"model": "tiny", "device": "cpu --host=0.0.0.0"}, 400),
        ({"model": "tiny", "device": "/dev/null"}, 400),
        ({"model": "tiny", "extra": 1}, 400),
        ({}, 400),
    ],
)
def test_players_that_are_refused(client: httpx.Client, body: dict[str, Any], status: int):
    assert client.post("play", json=body).status_code == status
    assert client.post("play/nothing/close", json={}).status_code == 404


def test_at_most_a_few(client: httpx.Client, player: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(players_module, "MOST_PLAYERS", 1)
    answer = client.post("play", json={"model": "tiny"})
    assert answer.status_code == 429
    assert "closing" in answer.json()["error"]["fix"]


def test_a_player_that_is_killed_gets_a_card(client: httpx.Client, older: str, studio: Studio):
    stream = new_stream(client, older)
    job = job_of(studio, "--step=2")
    body = {"text": "def x", "max_tokens": 1_000_000, "temperature": 1, "seed": 0}
    path = f"play/{older}/streams/{stream}/write"
    with client.stream("POST", path, json=body) as response:
        found = events(response)
        next(one for one in found if one[0] == "piece")
        processes_of(job)[-1].kill()
        name, error = list(found)[-1]  # words, and no end without a reason
    assert name == "error" and error["what"]
    rooms.wait_until(lambda: look(client, older)["state"] == "failed")
    card = rooms.wait_until(lambda: look(client, older)["card"])
    assert card["kind"] == "killed" and "SIGKILL" in card["title"]
    assert client.get(f"play/{older}/streams/{stream}").status_code == 409
    post(client, f"play/{older}/close")
    assert older not in [one["id"] for one in client.get("play").json()["players"]]


@pytest.mark.slow
def test_a_damaged_model_gets_a_card(client: httpx.Client, studio: Studio):
    run = rooms.with_run(studio, "damaged")
    for path in (run / "ckpt").rglob("*"):
        if path.is_file() and not path.name.startswith("_"):
            path.write_bytes(b"")
    id_ = post(client, "play", model="damaged")["id"]
    found = settled(client, id_)
    assert found["state"] == "failed" and found["card"]["title"]
    post(client, f"play/{id_}/close")


def test_the_studio_s_end_ends_replies_and_players(tmp_path: Path):
    """Also while one of them writes; and nothing of them is left."""
    studio = rooms.make_studio(tmp_path)
    rooms.with_run(studio)
    with rooms.server(studio) as server, client_of(server) as client:
        player = post(client, "play", model="tiny")["id"]
        assert settled(client, player)["state"] == "ready"
        stream = new_stream(client, player, learn=False)
        body = {"text": "def x", "max_tokens": 1_000_000, "temperature": 1, "seed": 0}
        members = processes_of(job_of(studio, "--watch"))
        path = f"play/{player}/streams/{stream}/write"
        with client.stream("POST", path, json=body) as response:
            found = events(response)
            next(one for one in found if one[0] == "piece")
            studio.stopping.set()
            assert list(found)[-1][0] in ("error", "piece", "inner", "done")
        server.stop()
    assert not [process for process in members if process.is_running()]


# --- without a model ----------------------------------------------------------------------------


def waiting_job(studio: Studio) -> Job:
    return start_job(studio.jobs, "serve", "a child", ["0"], module="http.server")


def test_players_end_with_a_studio_that_is_killed(tmp_path: Path):
    script = f"""
import os, pathlib
from bitttt_jax.studio.processes import start_job
for tied in (False, True):
    start_job(pathlib.Path({str(tmp_path)!r}), "serve", "", ["0"], module="http.server", tied=tied)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    goes_on, ends = load_jobs(tmp_path)
    if "--tied" in " ".join(psutil.Process(goes_on.pid).cmdline()):
        goes_on, ends = ends, goes_on
    rooms.wait_until(lambda: job_state(ends).state != "running")
    assert job_state(goes_on).state == "running"  # a training, say
    stop_job(goes_on, True)


def test_idle_players_are_closed(tmp_path: Path, studio: Studio):
    own = rooms.make_studio(tmp_path)
    now = [100.0]
    players = Players(own.jobs, clock=lambda: now[0])
    model = find_model(studio, "tiny")
    idle, busy = (
        Player(name, model, None, "cpu", waiting_job(own), Child(1), now[0], requests)
        for name, requests in (("idle", 0), ("busy", 1))
    )
    players._players |= {player.id: player for player in (idle, busy)}

    async def main() -> None:
        now[0] += IDLE_SECONDS - 1
        await players.close_idle()
        assert players.all() == [idle, busy]
        now[0] += 2
        await players.close_idle()
        assert players.all() == [busy]
        await players.close_all()

    asyncio.run(main())
    assert "running" not in [job_state(player.job).state for player in (idle, busy)]


def test_commands(studio: Studio):
    model = find_model(studio, "tiny")
    command = serve_command(model, None, "gpu:1", 99)
    assert command == [
        "serve", f"--model={model.path}", "--host=127.0.0.1", "--port=99", "--playground",
        "--device=gpu:1", "--watch",
    ]  # fmt: skip
    assert serve_command(model, 2, "cpu", 99)[-1] == "--step=2"
