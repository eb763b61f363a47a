"""Documents out of files: text, JSON, and Hugging Face datasets saved on disk.

`Source.find` decides which files a source consists of, `Source.documents` reads them. A document
that can't be used names its file and line, and either stops the reading or is counted.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from bitttt_jax.config import SourceConfig
from bitttt_jax.data import files, saved_datasets
from bitttt_jax.data.conversations import is_conversation, read_conversation
from bitttt_jax.data.documents import Document, UnusableDocumentError, read_field
from bitttt_jax.data.json_rows import first_row, read_rows
from bitttt_jax.data.manifest import MANIFEST_FILE, SourceFiles
from bitttt_jax.errors import ConfigError, DataError

STDLIB = "python-stdlib"

_JSON = frozenset({".json", ".jsonl", ".ndjson"})
_DATASET_FILES = ("dataset_info.json", "dataset_dict.json")


Kind = Literal["text", "jsonl", "messages", "huggingface", "shards"]


@dataclasses.dataclass(frozen=True)
class Source:
    """A configured source whose files have been found."""

    config: SourceConfig
    """As configured."""
    kind: Kind
    """How to read it; a `text` source with kind=auto reads its files of JSON as such."""
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
          ConfigError: a malformed glob, or an address for a path.
        """
        if config.path == STDLIB:
            if config.kind not in ("auto", "text"):
                raise ConfigError(f"{STDLIB} is text, not data.sources.kind={config.kind}")
            root, found = files.find_stdlib()
            return cls(config, "text", root, found)
        files.refuse_remote(config.path)
        root = Path(config.path).expanduser()
        kind = _kind(config, root)
        if kind == "huggingface":
            return cls(config, kind, root, files.find_all(root))
        if kind == "shards":
            files.require(root)
            return cls(config, kind, root, (root / MANIFEST_FILE,))
        suffixes = _JSON if kind == "messages" else files.TEXT_SUFFIXES
        root, found = files.find(config.path, config.glob, suffixes)
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

    @property
    def has_conversations(self) -> bool:
        """Whether it is, or may be, one of conversations: by the first row of each file."""
        if self.kind in ("messages", "text"):
            return any(self._reading(path) == "messages" for path in self.files)
        if self.kind == "huggingface":
            rows = saved_datasets.open_rows(self.root)
            return saved_datasets.has_conversations(rows, self.config)
        return False

    def _items(self) -> Iterator[Document | UnusableDocumentError]:
        if self.kind == "huggingface":
            yield from saved_datasets.read(self.root, self.config)
            return
        for path in self.files:
            reading = self._reading(path)
            if reading == "text":
                yield _read_text(path)
                continue
            for row in read_rows(path, arrays=reading == "messages"):
                if isinstance(row, UnusableDocumentError):
                    yield row
                elif reading == "messages":
                    yield read_conversation(row.fields, row.origin, row.size)
                else:
                    yield read_field(row.fields, self.config.field, row.origin, row.size)

    def _reading(self, path: Path) -> Literal["text", "jsonl", "messages"]:
        """How to read a file; with kind=auto its first row shows whether it holds conversations."""
        if self.kind in ("jsonl", "messages"):
            return self.kind  # type: ignore[return-value]
        if self.config.kind != "auto" or path.suffix.lower() not in _JSON:
            return "text"
        first = first_row(path)
        if first is not None and self.config.field not in first and is_conversation(first):
            return "messages"
        return "text" if path.suffix.lower() == ".json" else "jsonl"


def _kind(config: SourceConfig, root: Path) -> Kind:
    if config.kind == "auto" and (root / MANIFEST_FILE).is_file():
        return "shards"
    is_dataset = any((root / name).is_file() for name in _DATASET_FILES)
    if is_dataset and config.kind in ("auto", "messages"):
        return "huggingface"
    return "text" if config.kind == "auto" else config.kind


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
    if not text:
        return UnusableDocumentError(str(path), "empty")
    return Document(text, str(path), len(data))
