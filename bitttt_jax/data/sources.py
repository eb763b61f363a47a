"""Documents out of files: text, JSON lines, and Hugging Face datasets saved on disk.

`Source.find` decides which files a source consists of, `Source.documents` reads them. A document
that can't be used names its file and line, and either stops the reading or is counted.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from bitttt_jax.config import SourceConfig
from bitttt_jax.data import files
from bitttt_jax.data.manifest import MANIFEST_FILE, SourceFiles
from bitttt_jax.errors import ConfigError, DataError

STDLIB = "python-stdlib"

_JSON_LINES = (".jsonl", ".ndjson")
_DATASET_FILES = ("dataset_info.json", "dataset_dict.json")


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One text, and where it came from."""

    text: str
    """The text; not empty."""
    origin: str
    """File, and line or row if it has several documents."""
    size: int
    """Bytes of the source that it took, for progress."""


class UnusableDocumentError(DataError):
    """A document that `on_error=skip` leaves out.

    Args:
      origin: file, and line or row.
      reason: a few words that are the same for all documents with this fault.
      why: what exactly is wrong.
      fix: what to try besides skipping.
    """

    def __init__(self, origin: str, reason: str, why: str = "", fix: str = ""):
        self.reason = reason
        skip = "data.on_error=skip (--on_error=skip) to leave such documents out"
        super().__init__(f"{origin}: {reason}", why, f"{fix}, or {skip}" if fix else skip)


@dataclasses.dataclass(frozen=True)
class Source:
    """A configured source whose files have been found."""

    config: SourceConfig
    """As configured."""
    kind: Literal["text", "jsonl", "huggingface", "shards"]
    """How to read it; a `text` source with kind=auto reads its *.jsonl files as JSON lines."""
    root: Path
    """The file itself, or the folder that `files` are in."""
    files: tuple[Path, ...]
    """What it consists of, sorted."""

    @classmethod
    def find(cls, config: SourceConfig) -> Source:
        """Finds a source's files.

        Raises:
          MissingSourceError: there is nothing at its path.
          DataError: there is, but nothing that the kind can read.
          ConfigError: a malformed glob.
        """
        if config.path == STDLIB:
            if config.kind not in ("auto", "text"):
                raise ConfigError(f"{STDLIB} is text, not data.sources.kind={config.kind}")
            root, found = files.find_stdlib()
            return cls(config, "text", root, found)
        root = Path(config.path).expanduser()
        kind = _kind(config, root)
        if kind == "huggingface":
            return cls(config, kind, root, files.find_all(root))
        if kind == "shards":
            files.require(root)
            return cls(config, kind, root, (root / MANIFEST_FILE,))
        root, found = files.find(config.path, config.glob)
        return cls(config, kind, root, found)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)

    def summary(self) -> SourceFiles:
        """The files by name below the root, size and time of modification."""
        digest = hashlib.sha256()
        for path in self.files:
            status, name = path.stat(), path.relative_to(self.root).as_posix()
            digest.update(f"{name}\t{status.st_size}\t{status.st_mtime_ns}\n".encode())
        return SourceFiles(len(self.files), self.size, digest.hexdigest())

    def documents(
        self, on_error: Literal["fail", "skip"], skipped: collections.Counter[str]
    ) -> Iterator[Document]:
        """Reads the documents in the order of the files.

        Args:
          on_error: `fail` raises at the first unusable document, `skip` leaves it out.
          skipped: counts the documents left out by reason.

        Raises:
          UnusableDocumentError: with on_error=fail.
          DataError: there is no usable document at all.
          ConfigError: the extra that the kind needs isn't installed.
        """
        count = 0
        for item in self._items():
            if isinstance(item, Document):
                count += 1
                yield item
            elif on_error == "fail":
                raise item
            else:
                skipped[item.reason] += 1
        if not count:
            reasons = ", ".join(f"{n} {reason}" for reason, n in skipped.items())
            raise DataError(
                f"{self.config.path} has no usable document",
                f"left out: {reasons}" if reasons else "it is empty",
                "another data.sources.path (--source)",
            )

    def _items(self) -> Iterator[Document | UnusableDocumentError]:
        if self.kind == "huggingface":
            yield from _read_dataset(self.root, self.config.field)
            return
        for path in self.files:
            if self.kind == "jsonl" or (
                self.config.kind == "auto" and path.suffix.lower() in _JSON_LINES
            ):
                yield from _read_json_lines(path, self.config.field)
            else:
                yield _read_text(path)


def _kind(config: SourceConfig, root: Path) -> Literal["text", "jsonl", "huggingface", "shards"]:
    if config.kind != "auto":
        return config.kind
    if (root / MANIFEST_FILE).is_file():
        return "shards"
    if any((root / name).is_file() for name in _DATASET_FILES):
        return "huggingface"
    return "text"


def _read_text(path: Path) -> Document | UnusableDocumentError:
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        return UnusableDocumentError(str(path), "unreadable", error.strerror or str(error))
    except UnicodeDecodeError as error:
        return UnusableDocumentError(str(path), "invalid UTF-8", str(error))
    if "\0" in text:
        return UnusableDocumentError(str(path), "binary", "it contains zero bytes")
    return _document(text, str(path), len(data))


def _read_json_lines(path: Path, field: str) -> Iterator[Document | UnusableDocumentError]:
    empty = True
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    empty = False
                    yield _read_json_line(line, f"{path}:{number}", field)
    except OSError as error:
        yield UnusableDocumentError(str(path), "unreadable", error.strerror or str(error))
    else:
        if empty:
            yield UnusableDocumentError(str(path), "empty")


def _read_json_line(line: bytes, origin: str, field: str) -> Document | UnusableDocumentError:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return UnusableDocumentError(origin, "invalid UTF-8", str(error))
    except (ValueError, RecursionError) as error:
        return UnusableDocumentError(origin, "invalid JSON", str(error))
    if not isinstance(row, dict):
        return UnusableDocumentError(origin, "not a JSON object", f"it is {line[:60]!r}")
    return _field(row, field, origin, len(line))


def _read_dataset(root: Path, field: str) -> Iterator[Document | UnusableDocumentError]:
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"{root} is a Hugging Face dataset, which the package `datasets` reads",
            "it is not installed",
            'pip install "bitttt-jax[hf]"',
        ) from None
    try:
        rows = datasets.load_from_disk(str(root))
        if isinstance(rows, datasets.DatasetDict):
            if "train" not in rows:
                raise DataError(
                    f"the dataset in {root} has no split named train",
                    f"it has {', '.join(sorted(rows))}",
                    f"one of them as data.sources.path, such as {root / min(rows)}",
                )
            rows = rows["train"]
        if field in rows.column_names:
            rows = rows.select_columns([field])
        for number, row in enumerate(rows):
            text = row.get(field)
            size = len(text) if isinstance(text, str) else 0
            yield _field(row, field, f"{root} row {number}", size)
    except (OSError, ValueError) as error:
        raise DataError(f"can't read the dataset in {root}", str(error)) from None


def _field(
    row: dict[str, Any], field: str, origin: str, size: int
) -> Document | UnusableDocumentError:
    if field not in row:
        names = ", ".join(map(repr, row)) or "none"
        return UnusableDocumentError(
            origin,
            f"no field {field!r}",
            f"its fields are {names}",
            "the right data.sources.field (--field)",
        )
    text = row[field]
    if not isinstance(text, str):
        kind = type(text).__name__
        return UnusableDocumentError(origin, f"field {field!r} is not text", f"it is a {kind}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return UnusableDocumentError(origin, "invalid Unicode", str(error))
    return _document(text, origin, size)


def _document(text: str, origin: str, size: int) -> Document | UnusableDocumentError:
    return Document(text, origin, size) if text else UnusableDocumentError(origin, "empty")
