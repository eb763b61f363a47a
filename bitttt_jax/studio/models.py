"""The models that can be talked to or converted: runs, exports, and files of other programs.

Only names and small headers are read, and only so many of them: folders of data may be vast.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from starlette.routing import BaseRoute

from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.files import kind_of, locate
from bitttt_jax.studio.routing import get

if TYPE_CHECKING:
    from bitttt_jax.studio.app import Studio

Kind = Literal["run", "packed", "hf", "gguf"]

_DEEPEST = 4
_MOST_ENTRIES = 20_000
_MOST_JSON_BYTES = 16 << 20
_GGUF_MAGIC = b"GGUF"
# A key in a file's header, with its length in front. Headers hold vocabularies, of some megabytes.
_GGUF_TEMPLATE = len(b"tokenizer.chat_template").to_bytes(8, "little") + b"tokenizer.chat_template"
_GGUF_HEADER_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Model:
    """A model on the disk."""

    id: str
    """A run's id, else the path."""
    path: str
    name: str
    kind: Kind
    steps: tuple[int, ...]
    """Of a run's complete checkpoints, ascending."""
    has_ttt: bool
    has_chat_template: bool
    bytes: int
    """On the disk; of a run, its newest checkpoint."""


def kind_of_model(path: Path) -> Kind | None:
    """What kind of model is at a path; None for everything else."""
    if path.is_dir():
        if (path / "packed.json").is_file():
            return "packed"
        config = read_json(path / "config.json")
        if "model_type" in config and any(path.glob("*.safetensors")):
            return "hf"
        return "run" if "model" in config and (path / "ckpt").is_dir() else None
    return "gguf" if path.suffix == ".gguf" and _starts_with(path, _GGUF_MAGIC) else None


def describe(path: Path, id_: str | None = None) -> Model | None:
    """Describes the model at a path; None if there is none, or a run without a checkpoint."""
    kind = kind_of_model(path)
    if kind is None:
        return None
    steps: tuple[int, ...] = ()
    weights = path
    if kind == "run":
        steps = tuple(RunDirectory(path).checkpoint_steps())
        if not steps:
            return None
        weights = path / "ckpt" / str(steps[-1])
    return Model(
        id=id_ or str(path),
        path=str(path),
        name=id_ or path.name,
        kind=kind,
        steps=steps,
        has_ttt=_has_ttt(path, kind),
        has_chat_template=_has_template(path, kind),
        bytes=_size(weights),
    )


def _has_ttt(path: Path, kind: Kind) -> bool:
    if kind == "gguf":
        return False  # the format knows no such model
    config = read_json(path / "config.json")
    if kind == "hf":
        return config["model_type"] == "ttt"
    model = config.get("model")
    mixers = model.get("mixers") if isinstance(model, dict) else None
    return isinstance(mixers, list) and any(str(mixer).startswith("ttt") for mixer in mixers)


def _has_template(path: Path, kind: Kind) -> bool:
    if kind == "gguf":
        status = path.stat()
        return _gguf_has_template(path, status.st_mtime_ns, status.st_size)
    if kind == "packed" and read_json(path / "packed.json").get("chat_template"):
        return True
    if (path / "chat_template.jinja").is_file():
        return True
    return kind == "hf" and "chat_template" in read_json(path / "tokenizer_config.json")


@functools.lru_cache(256)
def _gguf_has_template(path: Path, modified: int, size: int) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(_GGUF_TEMPLATE, 0, _GGUF_HEADER_BYTES) >= 0


def read_json(path: Path) -> dict[str, Any]:
    """A small file's JSON object; empty where there is none."""
    try:
        status = path.stat()
    except OSError:
        return {}
    if kind_of(path) != "file" or status.st_size > _MOST_JSON_BYTES:
        return {}
    return _read_json(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(64)
def _read_json(path: Path, modified: int, size: int) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        if kind_of(path) != "file":
            return False
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    total = 0
    for place, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # it went meanwhile
                continue
    return total


def walk(root: Path) -> Iterator[Path]:
    """Folders and *.gguf files below a root, itself included: so deep, so many, and no links."""
    left = _MOST_ENTRIES
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop()
        yield folder
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            left -= 1
            if left < 0:
                return
            if entry.name.startswith(".") or entry.is_symlink():
                continue
            if entry.is_dir():
                if depth < _DEEPEST:
                    waiting.append((Path(entry.path), depth + 1))
            elif entry.name.endswith(".gguf"):
                yield Path(entry.path)


def model_roots(studio: Studio) -> list[Path]:
    """Folders in which models that aren't runs are looked for."""
    folders = [studio.home / "exports", *studio.data_roots]
    return [folder.resolve() for folder in folders if folder.is_dir()]


def list_models(studio: Studio) -> list[Model]:
    """All models: runs first, the newest before the others."""
    found: dict[Path, Model | None] = {}
    for run in studio.run_store.runs():
        path = studio.run_store.folder(run["id"]).resolve()
        found[path] = describe(path, run["id"])
    for root in model_roots(studio):
        for path in walk(root):
            if path not in found:
                found[path] = describe(path)
    return [model for model in found.values() if model]


def find_model(studio: Studio, id_: str) -> Model:
    """The model with an id.

    Raises:
      RequestError: 404, there is none; 403, it is outside of the studio's folders.
    """
    if Path(id_).is_absolute():
        model = describe(locate(id_, model_roots(studio)))
    else:
        path = locate(studio.run_store.folder(id_), [studio.runs])
        model = describe(path, id_)
    if model is None:
        raise RequestError(
            404,
            f"{id_!r:.200} is no model, or has no checkpoint yet",
            fix="waiting for the run's first checkpoint",
        )
    return model


def routes(studio: Studio) -> list[BaseRoute]:
    """`GET models`."""
    return [
        get(
            "/models",
            lambda request: {"models": [dataclasses.asdict(m) for m in list_models(studio)]},
        )
    ]
