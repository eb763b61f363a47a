from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.studio import rooms


@pytest.fixture
def books(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt").write_text("text")
    (folder / "b" / "c.txt").write_text("more")
    (folder / ".hidden").write_text("not shown")
    return folder


@pytest.fixture
def client(tmp_path: Path, books: Path) -> Iterator[TestClient]:
    with rooms.client(rooms.make_studio(tmp_path, data=(books,))) as opened:
        yield opened


def names(client: TestClient, path: Path | str, **query: int) -> list[str]:
    answer = client.get("/api/files", params={"path": str(path), **query})
    assert answer.status_code == 200, answer.text
    return [entry["name"] for entry in answer.json()["entries"]]


def test_roots_and_folders(client: TestClient, books: Path, tmp_path: Path):
    top = client.get("/api/files").json()
    assert top["roots"] == [
        str(tmp_path / "runs/.studio/uploads"),
        str(tmp_path / "runs/.studio/data"),
        str(books),
    ]
    assert [entry["path"] for entry in top["entries"]] == top["roots"]
    root = client.get("/api/files", params={"path": str(books)}).json()
    assert (root["parent"], root["total"]) == ("", 2)
    assert [(e["name"], e["kind"], e["bytes"]) for e in root["entries"]] == [
        ("b", "folder", None),
        ("a.txt", "file", 4),
    ]
    assert client.get("/api/files", params={"path": str(books / "b")}).json()["parent"] == str(
        books
    )


def test_big_folders_come_in_pages(client: TestClient, books: Path):
    big = books / "big"
    big.mkdir()
    for n in range(1500):
        (big / f"{n:04}").touch()
    assert names(client, big) == [f"{n:04}" for n in range(1000)]
    assert names(client, big, offset=1000) == [f"{n:04}" for n in range(1000, 1500)]
    assert names(client, big, offset=7, limit=2) == ["0007", "0008"]
    assert client.get("/api/files", params={"path": str(big)}).json()["total"] == 1500


@pytest.mark.parametrize("there", ["/etc/passwd", "/", "/proc/self/environ", "/nothing/here"])
def test_paths_outside_are_refused_whether_or_not_they_exist(client: TestClient, there: str):
    answer = client.get("/api/files", params={"path": there})
    assert answer.status_code == 403
    assert "outside" in answer.json()["error"]["what"]


def test_dots_and_links_count_by_where_they_lead(client: TestClient, books: Path, tmp_path: Path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").touch()
    (books / "out").symlink_to(tmp_path / "secret")
    (books / "in").symlink_to(books / "b")
    (books / "loop").symlink_to(books / "loop")
    (books / "broken").symlink_to(books / "nothing")
    for path in ("../secret", "out", "b/../../secret", "out/key"):
        answer = client.get("/api/files", params={"path": f"{books}/{path}"})
        assert answer.status_code == 403, path
    assert names(client, books) == ["b", "in", "a.txt"]
    assert names(client, books / "in") == ["c.txt"]
    assert client.get("/api/files", params={"path": f"{books}/loop"}).status_code in (400, 403, 404)


def test_pipes_devices_and_sockets_are_nothing(client: TestClient, books: Path):
    os.mkfifo(books / "pipe")
    (books / "null").symlink_to("/dev/null")
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(books)  # names of sockets are short
    try:
        listener.bind("socket")
    finally:
        os.chdir(here)
        listener.close()
    assert names(client, books) == ["b", "a.txt"]
    assert client.get("/api/files", params={"path": f"{books}/pipe"}).status_code == 400


def test_names_of_another_encoding_are_left_out(client: TestClient, books: Path):
    with open(os.fsencode(books) + b"/\xff.txt", "w") as file:
        file.write("no UTF-8")
    assert names(client, books) == ["b", "a.txt"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"path": "a\0b"}, 400),
        ({"path": "x" * 10_000}, 403),
        ({"path": "~root"}, 403),
        ({"offset": "-1"}, 200),
        ({"offset": "many"}, 400),
        ({"limit": "9" * 30}, 200),
    ],
)
def test_odd_questions(client: TestClient, query: dict[str, str], status: int):
    assert client.get("/api/files", params=query).status_code == status


def test_files_are_no_folders(client: TestClient, books: Path):
    assert client.get("/api/files", params={"path": str(books / "a.txt")}).status_code == 400
    assert client.get("/api/files", params={"path": str(books / "no")}).status_code == 404


def test_strangers_see_nothing(client: TestClient):
    assert client.get("/api/files", headers={"authorization": "Bearer no"}).status_code == 403
