"""A document, and what is wrong with one that can't be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bitttt_jax.errors import DataError


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One text or conversation, and where it came from."""

    text: str
    """The text, not empty; of a conversation its messages, a blank line between them."""
    origin: str
    """File, and line or row if it has several documents."""
    size: int
    """Bytes of the source that it took, for progress."""
    messages: tuple[dict[str, str], ...] = ()
    """Of a conversation: `role` (system, user or assistant) and `content` of each message."""


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


def read_field(
    row: Mapping[str, Any], field: str, origin: str, size: int
) -> Document | UnusableDocumentError:
    """The text in a field of a row.

    Args:
      row: an object of a JSON file, or a row of a dataset.
      field: name of the field.
      origin: where the row stands.
      size: bytes of the source that it took.
    """
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
    return Document(text, origin, size) if text else UnusableDocumentError(origin, "empty")
