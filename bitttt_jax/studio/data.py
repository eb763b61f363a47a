"""Data: what is in some text, preparing it, what has been prepared, and tokenizers."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from starlette.requests import Request
from starlette.routing import BaseRoute

from bitttt_jax.config import DataConfig, SourceConfig, TrainConfig
from bitttt_jax.config_loading import FLAG_PREFIX, flatten, from_json, to_json
from bitttt_jax.data.manifest import MANIFEST_FILE, TOKENIZER_FILE, Manifest
from bitttt_jax.errors import DataError
from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.files import kind_of, locate
from bitttt_jax.studio.models import read_json, walk
from bitttt_jax.studio.paths import check_name
from bitttt_jax.studio.processes import Job, job_state, load_jobs, start_job
from bitttt_jax.studio.routing import Created, get, post

if TYPE_CHECKING:
    from bitttt_jax.studio.app import Studio

READER_SECONDS = 60.0
"""A preview that takes longer is given up."""

_PREVIEWED = 20
_MOST_SOURCES = 100
_MOST_TEXT = 20_000
_STDLIB = "python-stdlib"
_Extra: dict[str, Any] = {"extra": "forbid"}


@dataclasses.dataclass(frozen=True)
class PreviewRequest:
    """What to look at, and how it would be read."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _Extra

    sources: list[dict[str, Any]]
    clean: dict[str, Any] = dataclasses.field(default_factory=dict)
    template: str = ""
    """One of ours, a file of Jinja, or the text of one."""
    tokenizer: str = ""
    """The tokenizer.json that the text is for; by default bytes."""


@dataclasses.dataclass(frozen=True)
class PrepareRequest:
    """What to prepare under which name; `data` as in a configuration."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _Extra

    name: str
    data: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TokenizeRequest:
    """A text, and a tokenizer: that of a prepared folder, a tokenizer.json, or bytes."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _Extra

    text: str
    folder: str = ""
    tokenizer: str = ""


def read_config(studio: Studio, data: Mapping[str, Any]) -> TrainConfig:
    """A configuration of some data, whose paths are all within the roots.

    Raises:
      ConfigError: unknown keys or malformed values.
      RequestError: a path leads elsewhere, or nowhere.
    """
    config = from_json(json.dumps({"data": data}))
    found = config.data
    if len(found.sources) > _MOST_SOURCES:
        raise RequestError(400, f"{len(found.sources)} sources are more than {_MOST_SOURCES}")
    sources = tuple(_confined(studio, source) for source in found.sources)
    tokenizer = found.tokenizer
    if tokenizer.kind == "file":
        path = str(locate(tokenizer.path, tokenizer_roots(studio)))
        tokenizer = dataclasses.replace(tokenizer, path=path)
    template = found.chat_template
    if template:
        from bitttt_jax.data.chat_templates import SHIPPED  # brings numpy

        if template not in SHIPPED:
            template = str(locate(template, studio.data_roots))
    confined = dataclasses.replace(
        found, sources=sources, tokenizer=tokenizer, chat_template=template
    )
    return dataclasses.replace(config, data=confined)


def _confined(studio: Studio, source: SourceConfig) -> SourceConfig:
    if source.path == _STDLIB:
        return source
    if ".." in Path(source.glob).parts or Path(source.glob).is_absolute():
        raise RequestError(
            403, f"glob={source.glob!r:.200} leads out of its folder", fix="such as **/*.txt"
        )
    return dataclasses.replace(source, path=str(locate(source.path, studio.data_roots)))


def prepare_command(data: DataConfig, place: Path) -> list[str]:
    """The arguments of `bitttt` that prepare some data, all that isn't a default among them."""
    command = ["prepare", f"--output={place}"]
    defaults = flatten(DataConfig(sources=(SourceConfig(),) * len(data.sources)))
    for key, value in flatten(data).items():
        is_path = key.startswith("sources.") and key.endswith(".path")
        if is_path or value != defaults[key]:
            command.append(f"{FLAG_PREFIX}data.{key}={value}")
    return command


def start_prepare(studio: Studio, config: DataConfig, name: str) -> Job:
    """Starts a preparation.

    Raises:
      RequestError: 409, the name is taken.
    """
    folder = studio.home.resolve() / "data"
    place = folder / check_name(name)
    taken = {path.name.lower() for path in folder.iterdir()}
    busy = (job.subject for job in load_jobs(studio.jobs) if job_state(job).state == "running")
    if place.name.lower() in taken or str(place) in busy:
        raise RequestError(409, f"there is prepared data named {name} already", fix="another name")
    command = prepare_command(config, place)
    return start_job(studio.jobs, "prepare", f"prepare {name}", command, subject=str(place))


def prepare_result(job: Job) -> dict[str, Any] | None:
    """What a finished preparation has made; None if that is gone."""
    place = Path(job.subject)
    if not (place / MANIFEST_FILE).is_file():
        return None
    manifest = Manifest.load(place)
    tokens = sum(part.tokens for part in manifest.parts)
    skipped: collections.Counter[str] = collections.Counter()
    cleaned: collections.Counter[str] = collections.Counter()
    for source in manifest.sources:
        skipped.update(source.skipped)
        cleaned.update(source.cleaned)
    return {
        "folder": str(place),
        "tokens": tokens,
        "documents": sum(part.documents for part in manifest.parts),
        "vocab_size": manifest.vocab_size,
        "bytes_per_token": sum(part.text_bytes for part in manifest.parts) / max(tokens, 1),
        "skipped": dict(skipped),
        "cleaned": dict(cleaned),
    }


def list_prepared(studio: Studio) -> list[dict[str, Any]]:
    """The folders of tokens below the data roots, the newest first."""
    found = []
    for folder in _folders(studio):
        path = folder / MANIFEST_FILE
        if path.is_file():
            try:
                described = _prepared(folder, path.stat().st_mtime_ns)
            except (DataError, OSError):  # another program's manifest.json
                continue
            found.append(described)
    return sorted(found, key=lambda prepared: -prepared["created"])


@functools.lru_cache(256)
def _prepared(folder: Path, modified: int) -> dict[str, Any]:
    manifest = Manifest.load(folder)
    return {
        "name": folder.name,
        "path": str(folder),
        "tokens": sum(part.tokens for part in manifest.parts),
        "documents": sum(part.documents for part in manifest.parts),
        "vocab_size": manifest.vocab_size,
        "created": modified / 1e9,
        "tokenizer": manifest.config.tokenizer.kind,
    }


def _folders(studio: Studio) -> Iterator[Path]:
    seen = set()
    for root in studio.data_roots:
        for path in walk(root.resolve()) if root.is_dir() else ():
            if path not in seen and path.is_dir():
                seen.add(path)
                yield path


def tokenizer_roots(studio: Studio) -> list[Path]:
    """Folders out of which a tokenizer.json may be taken."""
    return [studio.runs, *studio.data_roots]


def list_tokenizers(studio: Studio) -> list[dict[str, Any]]:
    """Bytes, and the tokenizer.json of prepared data, of runs, and among the user's files."""
    found = {"": {"name": "bytes", "path": "", "vocab_size": 257}}
    runs = [studio.run_store.folder(run["id"]).resolve() for run in studio.run_store.runs()]
    for folder in (*_folders(studio), *runs):
        path = folder / TOKENIZER_FILE
        size = vocabulary_size(read_json(path)) if kind_of(path) == "file" else 0
        if size:
            found[str(path)] = {"name": folder.name, "path": str(path), "vocab_size": size}
    return list(found.values())


def vocabulary_size(content: Mapping[str, Any]) -> int:
    """One more than the largest id of a tokenizer.json; 0 where it has none."""
    model, added = content.get("model"), content.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids: list[Any] = [len(vocab) - 1] if isinstance(vocab, list) else []  # of unigrams
    ids += vocab.values() if isinstance(vocab, dict) else []
    ids += [token.get("id") for token in added or [] if isinstance(token, dict)]
    return max((id_ for id_ in ids if isinstance(id_, int)), default=-1) + 1


class Reader:
    """Asks `reader` processes, two at a time at most."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(2)

    async def ask(self, **request: Any) -> dict[str, Any]:
        """What a process answers to a request.

        Raises:
          RequestError: what it says is wrong, or it took too long or was ended.
        """
        async with self._turns:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "bitttt_jax.studio.reader",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(READER_SECONDS):
                    out, _ = await process.communicate(json.dumps(request).encode())
            except TimeoutError:
                raise RequestError(
                    400,
                    f"reading this takes longer than {READER_SECONDS:.0f} s",
                    "there are very many files, or they are on a slow disk",
                    "a folder further down, or a glob",
                ) from None
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        try:
            answer = json.loads(out)
        except ValueError:
            raise RequestError(
                500, "the text couldn't be read", f"its reader ended with {process.returncode}"
            ) from None
        if "error" in answer:
            raise RequestError(400, **answer["error"])
        result: dict[str, Any] = answer["result"]
        return result


def routes(studio: Studio) -> list[BaseRoute]:
    """`data` and below, and `tokenizers`."""
    studio.results["prepare"] = prepare_result
    reader = Reader()

    def roots() -> list[str]:
        return [str(root.resolve()) for root in studio.data_roots]

    async def preview(request: Request, asked: PreviewRequest) -> dict[str, Any]:
        is_text = "{" in asked.template or "\n" in asked.template
        data: dict[str, Any] = {"sources": asked.sources, "clean": asked.clean}
        data |= {"chat_template": "" if is_text else asked.template}
        if asked.tokenizer:
            data |= {"tokenizer": {"kind": "file", "path": asked.tokenizer}}
        config = await asyncio.to_thread(read_config, studio, data)
        return await reader.ask(
            operation="preview",
            config=to_json(config),
            roots=roots(),
            count=_PREVIEWED,
            template=asked.template if is_text else "",
        )

    async def prepare(request: Request, asked: PrepareRequest) -> Created:
        config = await asyncio.to_thread(read_config, studio, asked.data)
        check_name(asked.name)
        await reader.ask(operation="check", config=to_json(config), roots=roots())
        job = await asyncio.to_thread(start_prepare, studio, config.data, asked.name)
        return Created({"job": job.id})

    async def tokenize(request: Request, asked: TokenizeRequest) -> dict[str, Any]:
        if len(asked.text) > _MOST_TEXT:
            raise RequestError(413, f"the text has more than {_MOST_TEXT:,} characters")
        path = asked.tokenizer
        if asked.folder:
            path = str(Path(asked.folder) / TOKENIZER_FILE)
        if path:
            path = str(await asyncio.to_thread(locate, path, tokenizer_roots(studio)))
        return await reader.ask(operation="tokenize", tokenizer=path, text=asked.text)

    return [
        get("/data", lambda request: {"prepared": list_prepared(studio)}),
        post("/data/preview", preview, PreviewRequest),
        post("/data/prepare", prepare, PrepareRequest),
        post("/data/tokenize", tokenize, TokenizeRequest),
        get("/tokenizers", lambda request: {"tokenizers": list_tokenizers(studio)}),
    ]
