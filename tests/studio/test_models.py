from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from bitttt_jax.interop import gguf_writer
from bitttt_jax.studio import models
from bitttt_jax.studio.app import Studio
from bitttt_jax.studio.errors import RequestError
from tests.studio import rooms


@pytest.fixture
def books(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    return folder


@pytest.fixture
def studio(tmp_path: Path, books: Path) -> Studio:
    return rooms.make_studio(tmp_path, data=(books,))


@pytest.fixture
def client(studio: Studio) -> Iterator[TestClient]:
    with rooms.client(studio) as opened:
        yield opened


def listed(client: TestClient) -> dict[str, dict[str, Any]]:
    return {model["id"]: model for model in client.get("/api/models").json()["models"]}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_a_run_with_its_steps(client: TestClient, studio: Studio):
    run = rooms.with_run(studio, "deep")
    (studio.runs / "nested").mkdir()
    run.rename(studio.runs / "nested" / "tiny")
    (model,) = listed(client).values()
    assert (model["id"], model["kind"], model["steps"]) == ("nested/tiny", "run", [2, 4])
    assert model["has_ttt"] and not model["has_chat_template"] and model["bytes"] > 1000
    (studio.runs / "nested/tiny/chat_template.jinja").write_text("{{ messages }}")
    assert listed(client)["nested/tiny"]["has_chat_template"]


def test_a_run_without_a_checkpoint_is_no_model(client: TestClient, studio: Studio):
    run = rooms.with_run(studio)
    (run / "ckpt").rename(run / "elsewhere")
    assert listed(client) == {}


def test_other_programs_models(client: TestClient, books: Path):
    write_json(books / "llama" / "config.json", {"model_type": "llama"})
    write_json(books / "llama" / "tokenizer_config.json", {"chat_template": "x"})
    assert listed(client) == {}  # without weights
    (books / "llama" / "model.safetensors").write_bytes(b"x" * 10)
    write_json(books / "a" / "b" / "ttt" / "config.json", {"model_type": "ttt"})
    (books / "a" / "b" / "ttt" / "model.safetensors").touch()
    found = listed(client)
    llama, ttt = found[str(books / "llama")], found[str(books / "a/b/ttt")]
    assert (llama["kind"], llama["has_chat_template"], llama["has_ttt"]) == ("hf", True, False)
    assert (ttt["kind"], ttt["has_chat_template"], ttt["has_ttt"]) == ("hf", False, True)


def test_gguf_files(client: TestClient, books: Path):
    for name, metadata in (("plain", {}), ("chat", {"tokenizer.chat_template": "{{ x }}"})):
        gguf_writer.write(books / f"{name}.gguf", {"general.architecture": "llama", **metadata}, [])
    (books / "text.gguf").write_text("no such file")
    (books / "empty.gguf").touch()
    os.mkfifo(books / "pipe.gguf")
    found = listed(client)
    assert {Path(id_).name: m["has_chat_template"] for id_, m in found.items()} == {
        "plain.gguf": False,
        "chat.gguf": True,
    }


def test_vast_and_odd_folders_cost_little(
    client: TestClient, books: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(models, "_MOST_ENTRIES", 50)
    for n in range(100):
        (books / f"{n:03}").mkdir()
    (books / "loop").symlink_to(books)
    write_json(books / "000" / "packed.json", [1])
    (books / "001" / "config.json").write_text("[" * 100_000)
    write_json(books / "002" / "config.json", {"model": 5, "model_type": ["x"]})
    os.mkfifo(books / "003" / "config.json")
    assert len(list(models.walk(books))) <= 51
    assert client.get("/api/models").status_code == 200


@pytest.mark.parametrize(
    "id_",
    ["/etc", "../../etc", "a/../../..", "tiny/../../secret", ".studio", "", "\0", "no", "out"],
)
def test_models_that_are_refused(studio: Studio, id_: str, tmp_path: Path):
    rooms.with_run(studio)
    (tmp_path / "secret").mkdir()
    rooms.with_run(rooms.make_studio(tmp_path / "secret"), "x")
    (studio.runs / "out").symlink_to(tmp_path / "secret/runs/x")
    with pytest.raises(RequestError) as caught:
        models.find_model(studio, id_)
    assert caught.value.status in (400, 403, 404)
    assert models.find_model(studio, "tiny").steps == (2, 4)
