"""Names of the Hub, with a server of a test's own in its place."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitttt_jax.errors import ConfigError
from bitttt_jax.interop import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORIES: dict[str, dict[str, bytes]] = {
    "some/model": {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "tokenizer.json": b"{}",
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"copy",
        "onnx/model.json": b"other",
    },
    "some/quantised": {"README.md": b"", "model-q4.gguf": b"GGUF"},
    "some/choice": {"README.md": b"", "a.gguf": b"GGUFa", "b.gguf": b"GGUFb"},
    "some/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
}


def digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """The part of the Hub that downloads use."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        for name, files in REPOSITORIES.items():
            if path in (f"/api/models/{name}", f"/api/models/{name}/revision/main"):
                siblings = [{"rfilename": file} for file in files]
                body = json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
                return self._reply(200, body)
            if path.startswith(f"/api/models/{name}/tree/"):
                tree = [
                    {"type": "file", "path": file, "size": len(data), "oid": digest(data)}
                    for file, data in files.items()
                ]
                return self._reply(200, json.dumps(tree).encode())
            if path.startswith(f"/api/models/{name}/revision/"):
                return self._reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            if path.startswith(f"/{name}/resolve/"):
                file = path.split("/", 5)[5]
                etag = hashlib.sha256(files[file]).hexdigest()
                return self._reply(200, files[file], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        self._reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def find(home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the library reads its settings once."""
    script = (
        "import sys; from bitttt_jax.errors import run_main; from bitttt_jax.interop import hub;"
        "run = lambda args: print(hub.find(*args)); sys.exit(run_main(run, sys.argv[1:]))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=kept | {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | settings,
        capture_output=True,
        text=True,
    )


def test_what_is_needed_is_downloaded_once(tmp_path: Path, endpoint: str):
    done = find(tmp_path, "some/model", HF_ENDPOINT=endpoint)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    names = sorted(path.name for path in folder.rglob("*") if path.is_file())
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    for settings in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        again = find(tmp_path, "some/model", **settings)
        assert again.stdout == done.stdout, again.stderr


@pytest.mark.parametrize(
    "name", ["some/quantised", "some/quantised/model-q4.gguf", "some/choice/b.gguf"]
)
def test_gguf_files(tmp_path: Path, endpoint: str, name: str):
    done = find(tmp_path, name, HF_ENDPOINT=endpoint)
    assert Path(done.stdout.strip()).read_bytes()[:4] == b"GGUF", done.stderr
    assert find(tmp_path, name, HF_HUB_OFFLINE="1").stdout == done.stdout


def test_a_repository_without_weights_is_left_to_the_reader(tmp_path: Path, endpoint: str):
    done = find(tmp_path, "some/pickled", HF_ENDPOINT=endpoint)
    assert [path.name for path in Path(done.stdout.strip()).iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["some/choice"], "some/choice has 2 GGUF files"),
        (["some/other"], "the Hub has no model some/other"),
        (["some/model", "v9"], "some/model has no revision v9"),
    ],
)
def test_what_the_hub_lacks_is_said(
    tmp_path: Path, endpoint: str, arguments: list[str], message: str
):
    done = find(tmp_path, *arguments, HF_ENDPOINT=endpoint)
    assert done.returncode in (2, 5)
    assert done.stderr.startswith(f"error: {message}") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "settings", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}]
)
def test_offline_and_absent_is_one_message(tmp_path: Path, settings: dict[str, str]):
    done = find(tmp_path, "some/model", **settings)
    assert done.returncode == 5
    assert done.stderr.startswith("error: some/model isn't in the local cache")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "name", ["model", "a/b/c", "../b", "a/../b.gguf", "a b/c", "", "a/b/c.bin"]
)
def test_what_cannot_be_a_name(name: str):
    assert not hub.is_name(name)
    with pytest.raises(ConfigError, match="names no model"):
        hub.find(name)
