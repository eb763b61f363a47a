from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from bitttt_jax.studio import exports
from bitttt_jax.studio.app import Studio
from bitttt_jax.studio.processes import start_job
from tests.studio import rooms


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return rooms.make_studio(tmp_path)


@pytest.fixture
def folder(studio: Studio) -> Path:
    folder = studio.home / "exports"
    folder.mkdir()
    return folder


@pytest.fixture
def client(studio: Studio) -> Iterator[TestClient]:
    with rooms.client(studio) as opened:
        yield opened


def finished(client: TestClient, job: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = client.get(f"/api/jobs/{job}").json()
        return found if found["state"] != "running" else None

    return rooms.wait_until(look)


def test_a_run_is_packed_and_downloaded(client: TestClient, studio: Studio, folder: Path):
    rooms.with_run(studio)
    asked = {"model": "tiny", "step": 2, "name": "small one", "table": "int8"}
    job = client.post("/api/exports", json=asked).json()["job"]
    twice = client.post("/api/exports", json=asked)  # while it is being made
    assert twice.status_code == 409
    found = finished(client, job)
    assert found["state"] == "done", found["log_tail"]
    result = found["result"]
    place = folder / "small one"
    assert (result["path"], result["kind"]) == (str(place), "packed")
    assert "held-out loss" in result["verification"] and "ternary weights" in result["verification"]
    assert {file["name"]: file["bytes"] for file in result["files"]} == {
        path.name: path.stat().st_size for path in place.iterdir()
    }
    assert found["progress"]["activity"] == "evaluate packed"
    (listed,) = client.get("/api/exports").json()["exports"]
    assert listed == result
    assert client.post("/api/exports", json=asked | {"name": "Small One"}).status_code == 409

    answer = client.get("/api/exports/small%20one/file")
    assert "small%20one.zip" in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        for path in place.iterdir():
            assert archive.read(f"small one/{path.name}") == path.read_bytes()

    models = {model["id"]: model for model in client.get("/api/models").json()["models"]}
    assert models[str(place)]["kind"] == "packed" and models[str(place)]["has_ttt"]
    assert client.post("/api/exports/small%20one/delete", json={}).status_code == 200
    assert list(folder.iterdir()) == []
    assert client.get("/api/exports").json() == {"exports": []}
    assert client.get(f"/api/jobs/{job}").json()["result"] is None


@pytest.mark.slow
def test_what_can_t_be_converted_leaves_a_card(client: TestClient, studio: Studio, folder: Path):
    rooms.with_run(studio)
    asked = {"model": "tiny", "name": "ttt", "to": "gguf-tq2_0"}
    found = finished(client, client.post("/api/exports", json=asked).json()["job"])
    assert found["state"] == "failed" and found["exit_code"] in (2, 5)
    assert found["card"]["title"] and found["result"] is None
    assert list(folder.iterdir()) == []


def test_downloads_go_on_where_they_were_cut_off(client: TestClient, folder: Path):
    (folder / "m.gguf").write_bytes(bytes(range(256)) * 10)
    path = "/api/exports/m.gguf/file"
    whole = client.get(path)
    assert whole.content == bytes(range(256)) * 10
    assert 'filename="m.gguf"' in whole.headers["content-disposition"]
    part = client.get(path, headers={"range": "bytes=250-259"})
    assert (part.status_code, part.content) == (206, bytes(range(250, 256)) + bytes(range(4)))
    assert part.headers["content-range"] == "bytes 250-259/2560"
    rest = client.get(path, headers={"range": "bytes=2550-"})
    assert (rest.status_code, len(rest.content)) == (206, 10)
    assert client.get(path, headers={"range": "bytes=9999-"}).status_code == 416


@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e", "..%2f..%2fsecret", ".deleted-x", "%00", "a%0ab", "no", "out", "x" * 300],
)  # fmt: skip
def test_names_that_are_refused(client: TestClient, folder: Path, tmp_path: Path, name: str):
    (tmp_path / "secret").write_text("hush")
    (folder / ".deleted-x").write_text("going")
    (folder / "out").symlink_to(tmp_path / "secret")
    for answer in (
        client.get(f"/api/exports/{name}/file"),
        client.post(f"/api/exports/{name}/delete", json={}),
    ):
        assert answer.status_code in (400, 403, 404), answer.text
        assert "hush" not in answer.text
    assert (tmp_path / "secret").read_text() == "hush"
    assert client.get("/api/exports").json() == {"exports": []}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"name": "../x"}, 400),
        ({"name": "a/b"}, 400),
        ({"name": ""}, 400),
        ({"name": "--to=packed"}, 201),
        ({"model": "/etc"}, 403),
        ({"model": "../.."}, 404),
        ({"model": "nothing"}, 404),
        ({"step": 3}, 404),
        ({"to": "exe"}, 400),
        ({"layout": "x"}, 400),
        ({"revision": "main"}, 400),
    ],
)
def test_requests(client: TestClient, studio: Studio, changes: dict[str, Any], status: int):
    rooms.with_run(studio)
    asked = {"model": "tiny", "name": "x", **changes}
    answer = client.post("/api/exports", json=asked)
    assert answer.status_code == status, answer.text
    if status == 201:  # not a flag: the path before it is absolute
        job = answer.json()["job"]
        client.post(f"/api/jobs/{job}/stop", json={"force": True})
        assert finished(client, job)["title"] == "tiny → --to=packed"


def test_commands(tmp_path: Path):
    asked = exports.ExportRequest("m", "n", step=5, to="hf", layout="rows4")
    assert exports.convert_command(asked, tmp_path / "a", tmp_path / "b") == [
        "convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to=hf", "--step=5",
    ]  # fmt: skip


def test_a_result_that_was_removed_by_hand(studio: Studio, folder: Path):
    job = start_job(studio.jobs, "convert", "x", ["--version"], subject=str(folder / "gone"))
    assert exports.export_result(job) is None
    rooms.end_jobs(studio)
