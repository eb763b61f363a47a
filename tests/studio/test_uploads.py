from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from bitttt_jax.studio import uploads
from bitttt_jax.studio.app import Studio
from tests.studio import rooms
from tests.studio.rooms import Server

LIMIT = 1_000_000


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return rooms.make_studio(tmp_path, max_upload=LIMIT)


@pytest.fixture
def folder(studio: Studio) -> Path:
    return studio.home / "uploads"


@pytest.fixture
def client(studio: Studio) -> Iterator[TestClient]:
    with rooms.client(studio) as opened:
        yield opened


def put(client: TestClient, name: str, data: bytes = b"text", **query: str) -> tuple[int, dict]:
    path = f"/api/uploads/{quote(name, safe='')}"
    answer = client.put(path, content=data, params=query, headers=rooms.BYTES)
    return answer.status_code, answer.json()


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_files_and_folders_of_files(client: TestClient, folder: Path):
    data = random.Random(0).randbytes(900_000)
    status, answer = put(client, "日本語 text.txt", data)
    assert (status, answer["bytes"]) == (201, len(data))
    assert Path(answer["path"]) == folder / "日本語 text.txt"
    assert put(client, "a.txt", b"1", folder="books")[0] == 201
    assert put(client, "b.txt", b"", folder="books")[0] == 201
    assert contents(folder) == {"日本語 text.txt": data, "books/a.txt": b"1", "books/b.txt": b""}
    listed = client.get("/api/files", params={"path": str(folder)}).json()
    assert [entry["name"] for entry in listed["entries"]] == ["books", "日本語 text.txt"]


def test_nothing_is_overwritten(client: TestClient, folder: Path):
    assert put(client, "a", b"first")[0] == 201
    assert put(client, "a", b"second")[0] == 409
    (folder / "link").symlink_to(folder / "nothing")
    assert put(client, "link")[0] == 409
    (folder / "sub").mkdir()
    assert put(client, "sub")[0] == 409
    assert put(client, "x", folder="a")[0] == 409
    assert contents(folder) == {"a": b"first"}


def test_a_link_is_no_folder_to_put_into(client: TestClient, folder: Path, tmp_path: Path):
    (folder / "out").symlink_to(tmp_path)
    assert put(client, "a", folder="out")[0] == 409
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "name",
    [
        "..", ".", "../up", "a/b", "a\\b", "/etc/passwd", ".hidden", "a\nb", "a\0b", "\x1b[2J",
        "a\u202etxt.exe", " a", "a ", "x" * 201, "é" * 101, "a\u2028b", "..%2fup",
    ],
)  # fmt: skip
def test_names_that_are_refused(client: TestClient, folder: Path, name: str):
    before = contents(folder.parent.parent)
    status, answer = put(client, name)
    assert status in (400, 404), answer
    assert put(client, "a", folder=name)[0] == 400
    assert contents(folder.parent.parent) == before


def test_addresses_that_climb(client: TestClient, folder: Path, tmp_path: Path):
    for path in ("uploads/%2e%2e", "uploads/%2e%2e%2fx", "uploads/a%2f..%2f..%2fx", "uploads/%ff"):
        answer = client.put(f"/api/{path}", content=b"x", headers=rooms.BYTES)
        assert answer.status_code in (400, 404), path
    assert contents(tmp_path) == {}


def test_sizes_are_limited(client: TestClient, folder: Path):
    assert put(client, "large", b"x" * (LIMIT + 1))[0] == 413
    pieces = (b"x" * 100_000 for _ in range(20))  # no length is announced
    answer = client.put("/api/uploads/large", content=pieces, headers=rooms.BYTES)
    assert answer.status_code == 413
    assert contents(folder) == {}


def test_a_full_disk(client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(uploads, "KEPT_FREE_BYTES", 1 << 62)
    status, answer = put(client, "a")
    assert status == 413 and "disk" in answer["error"]["what"]
    assert contents(folder) == {}


def test_a_disk_that_fills_up_meanwhile(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))  # as at the end of a disk
    try:
        status, answer = put(client, "a", b"x" * 400_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 413 and "disk" in answer["error"]["what"]
    assert contents(folder) == {}


def test_only_bytes_are_taken(client: TestClient, folder: Path):
    for kind in ("application/json", "multipart/form-data; boundary=x", "text/plain"):
        answer = client.put("/api/uploads/a", content=b"{}", headers={"content-type": kind})
        assert answer.status_code == 415, kind
    headers = rooms.BYTES | {"origin": "http://evil.example"}
    answer = client.put("/api/uploads/a", content=b"x", headers=headers)
    assert answer.status_code == 403
    assert contents(folder) == {}


def test_leftovers_of_a_killed_studio_are_removed(studio: Studio, folder: Path):
    (folder / "books").mkdir()
    for left in (folder / ".upload-0123", folder / "books" / ".upload-4567"):
        left.write_bytes(b"half")
    (folder / "a").write_bytes(b"whole")
    with rooms.client(studio):
        assert contents(folder) == {"a": b"whole"}


# --- over a socket ------------------------------------------------------------------------------


@pytest.fixture
def server(studio: Studio) -> Iterator[Server]:
    with rooms.server(studio) as running:
        yield running


def upload_head(server: Server, name: str, length: int | str) -> bytes:
    return server.head(
        "PUT",
        f"uploads/{name}",
        Content_Type=rooms.BYTES["content-type"],
        Content_Length=str(length),
    )


def status_of(connection: socket.socket) -> int:
    return int(connection.makefile("rb").readline().split()[1])


def test_what_is_cut_off_leaves_nothing(server: Server, folder: Path):
    with server.connect() as connection:
        connection.sendall(upload_head(server, "a", 500_000) + b"x" * 100_000)
        rooms.wait_until(lambda: any(folder.glob(".upload-*")))
    rooms.wait_until(lambda: not contents(folder))


def test_an_upload_that_is_cut_off_by_the_studio_s_end(studio: Studio, folder: Path):
    with rooms.server(studio) as server, server.connect() as connection:
        connection.sendall(upload_head(server, "a", 500_000) + b"x" * 100_000)
        rooms.wait_until(lambda: any(folder.glob(".upload-*")))
        server.stop()
        rooms.wait_until(lambda: not contents(folder))


def test_lengths_that_lie(server: Server, folder: Path):
    with server.connect() as connection:  # more comes than announced: the rest is no request
        connection.sendall(upload_head(server, "short", 3) + b"xyz" + b"GET / HTTP/9.9\r\n\r\n")
        assert status_of(connection) == 201
    for length in ("-1", "1e3", str(LIMIT + 1), "9" * 40, ""):
        with server.connect() as connection:
            connection.sendall(upload_head(server, "a", length) + b"x")
            assert status_of(connection) in (400, 413), length
    assert contents(folder) == {"short": b"xyz"}


def test_two_uploads_of_one_name_at_once(server: Server, folder: Path):
    first, second = server.connect(), server.connect()
    with first, second:
        for connection, letter in ((first, b"1"), (second, b"2")):
            connection.sendall(upload_head(server, "same", 200_000) + letter * 100_000)
        rooms.wait_until(lambda: len(list(folder.glob(".upload-*"))) == 2)
        second.sendall(b"2" * 100_000)
        assert status_of(second) == 201
        first.sendall(b"1" * 100_000)
        assert status_of(first) == 409
    assert contents(folder) == {"same": b"2" * 200_000}


def test_many_uploads_of_one_name_leave_one_whole_file(server: Server, folder: Path):
    statuses: list[int] = []

    def upload(letter: bytes) -> None:
        with server.connect() as connection:
            connection.sendall(upload_head(server, "same", 100_000) + letter * 100_000)
            statuses.append(status_of(connection))

    threads = [threading.Thread(target=upload, args=(bytes([65 + n]),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] + [409] * 7
    (data,) = contents(folder).values()
    assert len(data) == 100_000 and len(set(data)) == 1


def test_random_requests_never_leave_the_folder(server: Server, folder: Path, tmp_path: Path):
    """Fuzz: mutated heads and bodies; what is written is whole, and below the folder."""
    rng = random.Random(0)
    pieces = [
        b"..", b"/", b"%2e%2e", b"%2f", b"\\", b"%00", b"%0a", b"\xff", b"a", b"%ff", b"~", b"*",
        b"?folder=..", b"?folder=%2e%2e", b"?folder=b", b";", b"#", b" ", b"%20", b"\r\n",
    ]  # fmt: skip
    before = {path for path in tmp_path.rglob("*") if folder not in path.parents}
    for _ in range(300):
        name = b"".join(rng.choices(pieces, k=rng.randint(0, 6)))
        size = rng.choice([0, 1, 1000])
        head = upload_head(server, "NAME", rng.choice([size, size + 1, 0, "x"]))
        head = head.replace(b"NAME", name)
        if rng.random() < 0.3:
            at = rng.randrange(len(head))
            head = head[:at] + rng.randbytes(rng.randint(0, 3)) + head[at + 1 :]
        with server.connect() as connection:
            connection.sendall(head + b"x" * size)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1 << 16)
    rooms.wait_until(lambda: not any(folder.rglob(".upload-*")))
    after = {path for path in tmp_path.rglob("*") if folder not in path.parents}
    assert after == before
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert all(set(data) <= set(b"x") for data in contents(folder).values())
    with server.connect() as connection:  # and it still answers
        connection.sendall(upload_head(server, "last", 1) + b"x")
        assert status_of(connection) == 201


def test_files_have_ordinary_modes(client: TestClient, folder: Path):
    assert put(client, "a")[0] == 201
    assert os.stat(folder / "a").st_mode & 0o777 == 0o644 & ~_umask()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
