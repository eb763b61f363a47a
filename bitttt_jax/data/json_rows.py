"""The rows of JSON files: lines with an object each, or one array of objects."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from bitttt_jax.data.documents import UnusableDocumentError

_BOM = b"\xef\xbb\xbf"
_CHUNK_CHARS = 1 << 20
_MOST_CHARS = 1 << 26
_NO_SPACE = re.compile(r"[^ \t\r\n]")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """An object of a file."""

    fields: dict[str, Any]
    """Its contents."""
    origin: str
    """File, and line or place in the array."""
    size: int
    """About how many bytes of the file it took."""


def read_rows(path: Path, *, arrays: bool = True) -> Iterator[Row | UnusableDocumentError]:
    """Reads a file row by row.

    What follows invalid JSON in an array can't be told apart from it: reading ends there.

    Args:
      path: the file; blank lines of it are left out.
      arrays: whether it may be one array, too.
    """
    try:
        items = _read_array(path) if arrays and _is_array(path) else _read_lines(path)
        first = next(items, None)
        yield UnusableDocumentError(str(path), "empty") if first is None else first
        yield from items
    except OSError as error:
        yield UnusableDocumentError(str(path), "unreadable", error.strerror or str(error))


def first_row(path: Path) -> dict[str, Any] | None:
    """The first object of a file; None where there is none."""
    first = next(read_rows(path))
    return first.fields if isinstance(first, Row) else None


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        while block := file.read(1 << 12):
            if start := block.removeprefix(_BOM).strip():
                return start.startswith(b"[")
    return False


def _read_lines(path: Path) -> Iterator[Row | UnusableDocumentError]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _read_line(line, f"{path}:{number}")


def _read_line(line: bytes, origin: str) -> Row | UnusableDocumentError:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return UnusableDocumentError(origin, "invalid UTF-8", str(error))
    except (ValueError, RecursionError) as error:
        return UnusableDocumentError(origin, "invalid JSON", str(error))
    if not isinstance(value, dict):
        return UnusableDocumentError(origin, "not a JSON object", f"it is {line[:60]!r}")
    return Row(value, origin, len(line))


def _read_array(path: Path) -> Iterator[Row | UnusableDocumentError]:
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, (value, size) in enumerate(_elements(file), start=1):
                origin = f"{path} element {number}"
                if isinstance(value, dict):
                    yield Row(value, origin, size)
                else:
                    why = f"it is {str(value)[:60]!r}"
                    yield UnusableDocumentError(origin, "not a JSON object", why)
    except UnicodeDecodeError as error:
        yield UnusableDocumentError(f"{path} element {number + 1}", "invalid UTF-8", str(error))
    except (ValueError, RecursionError) as error:
        why = f"{error}; nothing after it can be read"
        yield UnusableDocumentError(f"{path} element {number + 1}", "invalid JSON", why)


def _elements(file: TextIO) -> Iterator[tuple[Any, int]]:
    """The elements of an array and how many characters they have.

    Raises:
      ValueError: invalid JSON, or an element of more than 2**26 characters.
    """
    scanner = _Scanner(file)
    scanner.skip()  # [
    if scanner.peek() == "]":
        return
    while True:
        yield scanner.element()
        mark = scanner.peek()
        if mark == "]":
            return
        if mark != ",":
            raise ValueError("there is neither a comma nor the end of the array after it")
        scanner.skip()


class _Scanner:
    """Goes through a file of JSON, of which it holds an element and a chunk at a time."""

    def __init__(self, file: TextIO):
        self._file = file
        self._text, self._at = "", 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that isn't white space; empty at the end of the file."""
        while True:
            found = _NO_SPACE.search(self._text, self._at)
            if found:
                self._at = found.start()
                return found[0]
            self._text, self._at = self._file.read(_CHUNK_CHARS), 0
            if not self._text:
                return ""

    def skip(self) -> None:
        """Goes on after the character that `peek` sees."""
        self.peek()
        self._at += 1

    def element(self) -> tuple[Any, int]:
        """The value that begins here, and its characters."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                length = len(self._text) - self._at
                if length > _MOST_CHARS:
                    raise ValueError(f"it has more than {_MOST_CHARS:,} characters") from None
                more = self._file.read(max(_CHUNK_CHARS, length))
                if not more:
                    raise
                self._text, self._at = self._text[self._at :] + more, 0
            else:
                size, self._at = end - self._at, end
                return value, size
