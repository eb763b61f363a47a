from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from bitttt_jax.config import DataConfig, TrainConfig
from bitttt_jax.config_loading import apply_overrides, from_json
from bitttt_jax.data.manifest import Manifest
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.studio import data
from bitttt_jax.studio.app import Studio
from tests.studio import rooms

CHAT = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
    {"instruction": "add 1 and 2", "input": "", "output": "3"},
]


@pytest.fixture
def books(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    for n in range(20):
        (folder / f"{n:02}.txt").write_text(f"document {n}: naïve 日本語 words  \n\n\n\n" + "x" * n)
    return folder


@pytest.fixture
def studio(tmp_path: Path, books: Path) -> Studio:
    return rooms.make_studio(tmp_path, data=(books,))


@pytest.fixture
def client(studio: Studio) -> Iterator[TestClient]:
    with rooms.client(studio) as opened:
        yield opened


def post(client: TestClient, path: str, **body: Any) -> Any:
    answer = client.post(f"/api/{path}", json=body)
    assert answer.status_code < 300, answer.text
    return answer.json()


def finished(client: TestClient, job: str, api: str = "/api/") -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = client.get(f"{api}jobs/{job}").json()
        return found if found["state"] != "running" else None

    return rooms.wait_until(look)


def test_a_preview_shows_what_cleaning_does(client: TestClient, books: Path):
    (books / "00.txt").write_text((books / "01.txt").read_text())
    clean = {"whitespace": True, "duplicates": True}
    found = post(client, "data/preview", sources=[{"path": str(books)}], clean=clean)
    assert (found["files"], found["kind"], found["problems"]) == (20, "text", [])
    assert found["bytes"] == sum(path.stat().st_size for path in books.iterdir())
    first, second, third = found["documents"][:3]
    assert first["text"].endswith("words  \n\n\n\nx") and first["after"].endswith("words\n\nx")
    assert first["changes"] == ["whitespace"] and not first["removed"]
    assert "duplicate" in second["removed"]
    assert third["origin"] == str(books / "02.txt") and third["characters"] == len(third["text"])


def test_a_preview_is_short(client: TestClient, books: Path):
    (books / "00.txt").write_text("long " * 100_000)
    found = post(client, "data/preview", sources=[{"path": str(books)}] * 3)
    assert len(found["documents"]) <= 21
    assert found["documents"][0]["characters"] == 500_000
    assert max(len(document["text"]) for document in found["documents"]) == 2000


def test_a_preview_tells_which_messages_count(client: TestClient, books: Path):
    path = books / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CHAT))
    found = post(client, "data/preview", sources=[{"path": str(path)}], template="chatml")
    assert found["kind"] == "messages" and found["problems"] == []
    first, second = found["messages"]
    learned = "".join(s["text"] for s in first["segments"] if s["learned"])
    whole = "".join(segment["text"] for segment in first["segments"])
    assert "hello" in learned and "hi" not in learned and "<|im_start|>user" in whole
    assert "3" in "".join(s["text"] for s in second["segments"] if s["learned"])
    jinja = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    own = post(client, "data/preview", sources=[{"path": str(path)}], template=jinja)
    shown = "".join(segment["text"] for segment in own["messages"][0]["segments"])
    assert shown.endswith("hi|hello|")
    broken = post(client, "data/preview", sources=[{"path": str(path)}], template="{{ nonsense")
    assert broken["messages"] == [] and broken["problems"]


def test_a_preview_names_what_is_wrong(client: TestClient, books: Path):
    path = books / "rows.jsonl"
    path.write_text('{"text": "good"}\n{broken\n{"other": 1}\n')
    found = post(client, "data/preview", sources=[{"path": str(path), "kind": "jsonl"}])
    assert [document["text"] for document in found["documents"]] == ["good"]
    assert f"{path}:2: invalid JSON" in found["problems"][0]
    assert "1 × invalid JSON" in found["problems"]


def test_texts_that_are_too_large_to_read_cost_no_memory(client: TestClient, books: Path):
    path = books / "huge.txt"
    with path.open("wb") as file:
        file.truncate(40 << 30)  # sparse
    answer = client.post("/api/data/preview", json={"sources": [{"path": str(path)}]})
    assert answer.status_code == 400
    assert "memory" in answer.json()["error"]["what"]


def test_a_preview_that_takes_too_long_is_ended(
    client: TestClient, books: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(data, "READER_SECONDS", 0.01)
    answer = client.post("/api/data/preview", json={"sources": [{"path": str(books)}]})
    assert answer.status_code == 400
    assert "longer" in answer.json()["error"]["what"]


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ({"path": "/etc/passwd"}, 403),
        ({"path": "ROOT/../../../../etc"}, 403),
        ({"path": "ROOT/nothing"}, 404),
        ({"path": "ROOT/*/../.."}, 403),
        ({"path": "ROOT/[0-9]*.txt"}, 404),
        ({"path": "ROOT", "glob": "../**/*"}, 403),
        ({"path": "ROOT", "glob": "/etc/*"}, 403),
        ({"path": "ROOT", "unknown": 1}, 400),
        ({"path": "ROOT", "kind": "exe"}, 400),
        ({"path": "ROOT", "weight": -1}, 400),
        ({"path": 5}, 400),
        ({"path": "/dev/zero"}, 403),
        ({"path": "ROOT/pipe"}, 400),
        ({"path": "ROOT/zero"}, 403),
        ({"path": "ROOT/out"}, 403),
        ({"path": "ROOT\0"}, 400),
    ],
)
def test_sources_that_are_refused(
    client: TestClient, books: Path, source: dict[str, Any], status: int
):
    os.mkfifo(books / "pipe")
    (books / "zero").symlink_to("/dev/zero")
    (books / "out").symlink_to("/etc/passwd")
    source = {k: v.replace("ROOT", str(books)) if k == "path" and isinstance(v, str) else v
              for k, v in source.items()}  # fmt: skip
    for path, body in (
        ("preview", {"sources": [source]}),
        ("prepare", {"name": "x", "data": {"sources": [source]}}),
    ):
        answer = client.post(f"/api/data/{path}", json=body)
        assert answer.status_code == status, answer.text
    assert client.get("/api/jobs").json()["jobs"] == []


def test_links_inside_a_folder_that_lead_out_are_refused(client: TestClient, books: Path):
    (books / "secret.txt").symlink_to("/etc/passwd")
    for path, body in (
        ("preview", {"sources": [{"path": str(books)}]}),
        ("prepare", {"name": "x", "data": {"sources": [{"path": str(books)}]}}),
    ):
        answer = client.post(f"/api/data/{path}", json=body)
        assert answer.status_code == 400 and "leads out" in answer.json()["error"]["what"]


def test_other_paths_are_confined_too(client: TestClient, books: Path):
    sources = [{"path": str(books)}]
    for extra in (
        {"tokenizer": {"kind": "file", "path": "/etc/passwd"}},
        {"chat_template": "/etc/passwd"},
        {"chat_template": "../../x.jinja"},
    ):
        body = {"name": "x", "data": {"sources": sources, **extra}}
        assert client.post("/api/data/prepare", json=body).status_code == 403, extra
    body = {"text": "x", "tokenizer": "/etc/passwd"}
    assert client.post("/api/data/tokenize", json=body).status_code == 403
    body = {"text": "x", "folder": str(books)}
    assert client.post("/api/data/tokenize", json=body).status_code == 404


def test_prepare(client: TestClient, studio: Studio, books: Path):
    config = {
        "sources": [{"path": str(books), "glob": "*.txt", "weight": 2.0}],
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "clean": {"whitespace": True, "min_characters": 30},
        "validation_fraction": 0.2,
    }
    job = post(client, "data/prepare", name="my books", data=config)["job"]
    again = client.post("/api/data/prepare", json={"name": "my books", "data": config})
    assert again.status_code == 409  # while it is being made
    found = finished(client, job)
    assert found["state"] == "done", found["log_tail"]
    result = found["result"]
    place = studio.home / "data" / "my books"
    assert Path(result["folder"]) == place and (place / "manifest.json").is_file()
    assert result["documents"] + sum(result["skipped"].values()) == 20
    assert result["tokens"] > 100 and result["bytes_per_token"] > 1
    progress = found["progress"]
    assert progress["activity"].startswith("encode") and progress["done"] == progress["total"]
    assert "bytes/token" in found["report"]
    assert Manifest.load(place).config == from_json(json.dumps({"data": config})).data
    for name in ("my books", "My Books"):
        again = client.post("/api/data/prepare", json={"name": name, "data": config})
        assert again.status_code == 409
    (prepared, *_) = [
        p for p in client.get("/api/data").json()["prepared"] if p["name"] == "my books"
    ]
    assert (prepared["tokens"], prepared["path"]) == (result["tokens"], str(place))
    listed = client.get("/api/tokenizers").json()["tokenizers"]
    assert {"name": "bytes", "path": "", "vocab_size": 257} in listed
    sizes = {one["name"]: one["vocab_size"] for one in listed}
    assert (
        sizes["my books"]
        == prepared["vocab_size"]
        == Tokenizer.load(place / "tokenizer.json").vocab_size
    )
    shown = post(client, "data/tokenize", folder=str(place), text="document naïve")
    assert "".join(token["text"] for token in shown["tokens"]) == "document naïve"
    assert len(shown["tokens"]) < len("document naïve".encode())


def test_a_failed_preparation_leaves_a_card(client: TestClient, books: Path):
    for path in books.iterdir():
        path.write_bytes(b"\xff\xfe not UTF-8")
    job = post(client, "data/prepare", name="bad", data={"sources": [{"path": str(books)}]})["job"]
    found = finished(client, job)
    assert (found["state"], found["exit_code"], found["result"]) == ("failed", 5, None)
    assert found["card"]["kind"] == "data" and "invalid UTF-8" in found["card"]["title"]


def test_the_command_gives_the_same_configuration(studio: Studio, books: Path, tmp_path: Path):
    """Through flags and back: every value that isn't a default is on the command line."""
    given = {
        "sources": [
            {"path": str(books), "kind": "text", "glob": "*.txt"},
            {"path": str(books / "00.txt"), "weight": 0.5, "field": "a=b"},
        ],
        "tokenizer": {"kind": "bpe", "vocab_size": 400},
        "clean": {"unicode": True, "max_repeated_lines": 0.25},
        "chat_template": "chatml",
        "validation_fraction": 0.0,
        "on_error": "skip",
    }
    config = data.read_config(studio, given).data
    command = data.prepare_command(config, tmp_path / "out")
    assert command[:2] == ["prepare", f"--output={tmp_path / 'out'}"]
    assert apply_overrides(TrainConfig(), command[2:]).data == config
    assert from_json(json.dumps({"data": given})).data == config
    assert data.prepare_command(DataConfig(), tmp_path / "out")[2:] == [
        "--config.data.sources.0.path=python-stdlib"
    ]


@pytest.mark.parametrize("name", ["", "..", "a/b", ".x", "a\nb", "x" * 201])
def test_names_of_prepared_data(client: TestClient, books: Path, name: str):
    body = {"name": name, "data": {"sources": [{"path": str(books)}]}}
    assert client.post("/api/data/prepare", json=body).status_code == 400


def test_bytes_as_tokens(client: TestClient):
    tokens = post(client, "data/tokenize", text="aé")["tokens"]
    assert tokens == [{"id": 97, "text": "a"}, {"id": 195, "text": ""}, {"id": 169, "text": "é"}]
    assert post(client, "data/tokenize", text="")["tokens"] == []
    too_long = {"text": "x" * 30_000}
    assert client.post("/api/data/tokenize", json=too_long).status_code == 413


def test_damaged_tokenizers_are_refused_and_not_listed(client: TestClient, books: Path):
    for n, text in enumerate(("", "{}", "[1", '{"model": {"vocab": 5}}', "[" * 100_000)):
        folder = books / f"t{n}"
        folder.mkdir()
        (folder / "tokenizer.json").write_text(text)
        body = {"text": "x", "tokenizer": str(folder / "tokenizer.json")}
        assert client.post("/api/data/tokenize", json=body).status_code == 400
    assert [one["name"] for one in client.get("/api/tokenizers").json()["tokenizers"]] == ["bytes"]


def test_other_programs_manifests_are_left_out(client: TestClient, books: Path):
    (books / "manifest.json").write_text('{"format_version": 1}')
    assert client.get("/api/data").json() == {"prepared": []}


def test_the_studio_stays_light(client: TestClient):
    script = (
        "import sys, bitttt_jax.studio.app as app, pathlib, tempfile\n"
        "runs = pathlib.Path(tempfile.mkdtemp())\n"
        "app.api_routes(app.Studio(runs=runs))\n"
        "print([m for m in ('jax', 'numpy', 'tokenizers', 'orbax') if m in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_example_in_the_documentation(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = Path(__file__).parents[2]
    page = root / "docs" / "studio_api.md"
    monkeypatch.setenv("PYTHONPATH", str(root))  # found from another folder, as if installed
    (example,) = re.findall(r"^```py\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("some text for a small book\n" * 100)
    with rooms.server(studio) as server:
        example = example.replace(":8701", f":{server.port}")
        names: dict[str, Any] = {"token": rooms.TOKEN}
        exec(compile(example, page.name, "exec"), names)
        with contextlib.closing(names["studio"]) as client:
            found = finished(client, names["job"], api="")
    assert found["state"] == "done" and found["result"]["tokens"] > 0
