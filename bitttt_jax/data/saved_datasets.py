"""Hugging Face datasets saved on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitttt_jax.config import SourceConfig
from bitttt_jax.data.conversations import is_conversation, read_conversation
from bitttt_jax.data.documents import Document, UnusableDocumentError, read_field
from bitttt_jax.errors import ConfigError, DataError


def open_rows(root: Path) -> Any:
    """The rows of a dataset, of its split `train` where it has several.

    Raises:
      DataError: it can't be read, or has splits but not that one.
      ConfigError: the package that reads datasets isn't installed.
    """
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
    except (OSError, ValueError) as error:
        raise _unreadable(root, error) from None
    if not isinstance(rows, datasets.DatasetDict):
        return rows
    if "train" not in rows:
        raise DataError(
            f"the dataset in {root} has no split named train",
            f"it has {', '.join(sorted(rows))}",
            f"one of them as data.sources.path, such as {root / min(rows)}",
        )
    return rows["train"]


def has_conversations(rows: Any, config: SourceConfig) -> bool:
    """Whether the rows are conversations: as configured, or by the first one."""
    if config.kind == "messages":
        return True
    if config.kind != "auto" or config.field in rows.column_names or not len(rows):
        return False
    return is_conversation(rows[0])


def read(root: Path, config: SourceConfig) -> Iterator[Document | UnusableDocumentError]:
    """Reads the documents of a dataset.

    Raises:
      DataError: it can't be read.
      ConfigError: the package that reads datasets isn't installed.
    """
    rows = open_rows(root)
    are_conversations = has_conversations(rows, config)
    if not are_conversations and config.field in rows.column_names:
        rows = rows.select_columns([config.field])
    try:
        for number, row in enumerate(rows):
            origin = f"{root} row {number}"
            if are_conversations:
                yield read_conversation(row, origin, len(str(row)))
            else:
                text = row.get(config.field)
                size = len(text) if isinstance(text, str) else 0
                yield read_field(row, config.field, origin, size)
    except (OSError, ValueError) as error:
        raise _unreadable(root, error) from None


def _unreadable(root: Path, error: Exception) -> DataError:
    return DataError(f"can't read the dataset in {root}", str(error))
