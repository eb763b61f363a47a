"""Reads what may be vast, slow or hostile, in a process of its own: `python -m …reader`.

The request comes as JSON on stdin and the answer goes as JSON to stdout. The studio ends this
process when it takes too long, and it limits its own memory, so that a preview of the wrong file
costs nobody a training run.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bitttt_jax.config import DataConfig
from bitttt_jax.config_loading import from_json
from bitttt_jax.data.cleaning import Cleaner
from bitttt_jax.data.documents import Document
from bitttt_jax.data.preview import CleaningPreview, preview_cleaning, preview_messages
from bitttt_jax.data.sources import Source
from bitttt_jax.data.tokenizers import Decoder, Tokenizer
from bitttt_jax.errors import BittttError, DataError

MEMORY_BYTES = 4 << 30
"""Of this process's own data."""
SHOWN_CHARACTERS = 2000
"""Of a document, and of a message."""

_SHOWN_SEGMENTS = 100


def preview(asked: dict[str, Any]) -> dict[str, Any]:
    """The first documents of some sources, as they are, cleaned, and as conversations.

    Args:
      asked: `config` (JSON text of a configuration), `roots`, `count` of documents, and a chat
        `template` where that isn't the configuration's.
    """
    config = from_json(asked["config"]).data
    sources = find_sources(config, asked["roots"])
    problems: list[str] = []
    documents: list[Document] = []
    for source in sources:
        if source.kind != "shards":
            documents += _first(source, -(-asked["count"] // len(sources)), problems)
    kinds = [source.kind for source in sources if source.kind != "text" or not documents]
    kinds += ["messages" if document.messages else "text" for document in documents]
    return {
        "files": sum(len(source.files) for source in sources),
        "bytes": sum(source.size for source in sources),
        "kind": ", ".join(dict.fromkeys(kinds)),
        "documents": [
            _shown(document, cleaned)
            for document, cleaned in zip(
                documents, preview_cleaning(documents, config.clean), strict=True
            )
        ],
        "messages": _conversations(documents, config, asked["template"], problems),
        "problems": problems,
    }


def _conversations(
    documents: list[Document], config: DataConfig, template: str, problems: list[str]
) -> list[dict[str, Any]]:
    if not any(document.messages for document in documents):
        return []
    cleaner = Cleaner(config.clean)
    pairs = (cleaner(document) for document in documents)
    kept = [document for document, cleaned in pairs if not cleaned.removed]
    given = Tokenizer.load(config.tokenizer.path) if config.tokenizer.kind == "file" else None
    try:
        found = preview_messages(kept, template or config.chat_template, given)
    except BittttError as error:
        problems.append(_in_words(error))
        return []
    problems += [f"{one['origin']}: {one['problem']}" for one in found if one["problem"]]
    return [
        {
            "origin": one["origin"],
            "segments": [
                segment | {"text": segment["text"][:SHOWN_CHARACTERS]}
                for segment in one["segments"][:_SHOWN_SEGMENTS]
            ],
        }
        for one in found
        if one["segments"]
    ]


def check(asked: dict[str, Any]) -> dict[str, Any]:
    """Finds the files of a configuration's sources: what `preview` does first."""
    sources = find_sources(from_json(asked["config"]).data, asked["roots"])
    return {"files": sum(len(source.files) for source in sources)}


def find_sources(config: DataConfig, roots: Sequence[str]) -> list[Source]:
    """The sources with their files, none of which leads out of the roots.

    Raises:
      DataError: one does, or there are none.
    """
    sources = [Source.find(source) for source in config.sources]
    for source in sources:
        for path in source.files if source.config.path != "python-stdlib" else ():
            place = Path(os.path.realpath(path))
            if not any(place.is_relative_to(root) for root in roots):
                raise DataError(
                    f"{path} leads out of the folders that the studio may look into",
                    f"it is a link to {place}",
                    "bitttt studio --data=FOLDER, or removing the link",
                )
    return sources


def _first(source: Source, count: int, problems: list[str]) -> list[Document]:
    """The first usable documents; what is wrong with others among them becomes a problem."""
    skipped: collections.Counter[str] = collections.Counter()
    try:
        return list(itertools.islice(source.documents("fail", skipped), count))
    except DataError as error:
        problems.append(_in_words(error))
    try:
        documents = list(itertools.islice(source.documents("skip", skipped), count))
    except DataError as error:
        problems.append(_in_words(error))
        documents = []
    problems += [f"{number} × {reason}" for reason, number in skipped.items()]
    return documents


def _in_words(error: BittttError) -> str:
    return f"{error.what}: {error.why}" if error.why else error.what


def _shown(document: Document, cleaned: CleaningPreview) -> dict[str, Any]:
    return {
        "origin": document.origin,
        "characters": len(document.text),
        "text": document.text[:SHOWN_CHARACTERS],
        "after": cleaned["after"][:SHOWN_CHARACTERS],
        "changes": cleaned["changes"],
        "removed": cleaned["removed"],
    }


def tokenize(asked: dict[str, Any]) -> dict[str, Any]:
    """The tokens of a text, and what each of them adds to what stands before it.

    Args:
      asked: `tokenizer` (path of a tokenizer.json, or empty for bytes) and `text`.
    """
    path = asked["tokenizer"]
    tokenizer = Tokenizer.load(path) if path else Tokenizer.bytes()
    decoder = Decoder(tokenizer)
    tokens: list[dict[str, Any]] = [
        {"id": int(id_), "text": decoder.push(int(id_))} for id_ in tokenizer.encode(asked["text"])
    ]
    if tokens:
        tokens[-1]["text"] += decoder.flush()
    return {"tokens": tokens, "vocab_size": tokenizer.vocab_size}


OPERATIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "preview": preview,
    "check": check,
    "tokenize": tokenize,
}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Does what a request's `operation` says.

    Returns:
      `result`, or `error` with what, why and fix.
    """
    try:
        return {"result": OPERATIONS[request["operation"]](request)}
    except BittttError as error:
        return {"error": {"what": error.what, "why": error.why, "fix": error.fix}}
    except MemoryError:
        return {
            "error": {
                "what": "reading this takes too much memory",
                "why": f"a preview may take {MEMORY_BYTES >> 30} GiB; a text file is read whole",
                "fix": "cutting the file into smaller ones, or JSON lines",
            }
        }


def main() -> int:
    """Answers the request on stdin."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
