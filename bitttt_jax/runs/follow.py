"""Following files while another process writes, cuts back or replaces them."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json

Row = dict[str, Any]

_CHECKED_BYTES = 256


class Position(NamedTuple):
    """A place in a file that grows, told from the same place in another file."""

    offset: int = 0
    """Bytes before it."""
    check: int = 0
    """CRC-32 of the last 256 of them: rows of a later start have other times in them."""

    def check_bytes(self) -> int:
        """How many bytes before the place count."""
        return min(self.offset, _CHECKED_BYTES)

    def fits(self, before: bytes) -> bool:
        """Whether these are the bytes that stood before the place."""
        return len(before) == self.check_bytes() and zlib.crc32(before) == self.check

    def after(self, before: bytes, added: bytes) -> Position:
        """The place after more bytes.

        Args:
          before: the bytes that count before this one.
          added: all bytes from this one to the next.
        """
        seen = (before + added[-_CHECKED_BYTES:])[-_CHECKED_BYTES:]
        return Position(self.offset + len(added), zlib.crc32(seen))


START = Position()


class Follower:
    """Reads what is added to a file of JSON lines.

    A resumed run drops rows and goes on: then everything is read again.

    Args:
      path: the file; needn't exist yet.
      position: where to begin, from another follower's `position`.
    """

    def __init__(self, path: Path, position: Position = START):
        self._path = path
        self.position = position
        """What was read so far."""

    def read(self) -> tuple[list[Row], bool]:
        """Reads the complete rows added since the last call; lines that are none are left out.

        Returns:
          The rows, and whether they are all there are because the file was rewritten: what
            earlier calls returned is out of date then.
        """
        try:
            with self._path.open("rb") as file:
                size = self.position.check_bytes()
                file.seek(self.position.offset - size)
                data = file.read()
                restarted = not self.position.fits(data[:size])
                if restarted:
                    self.position, size = START, 0
                    file.seek(0)
                    data = file.read()
        except FileNotFoundError:
            restarted, self.position = self.position.offset > 0, START
            return [], restarted
        added = data[size : max(size, data.rfind(b"\n") + 1)]
        self.position = self.position.after(data[:size], added)
        return parse_rows(added), restarted


def parse_rows(data: bytes) -> list[Row]:
    """JSON objects out of lines; those that are something else are left out."""
    if not data:
        return []
    try:  # all at once, which is much faster
        rows = from_json(b"[" + data.rstrip(b"\n").replace(b"\n", b",") + b"]")
    except ValueError:
        rows = [_parse(line) for line in data.splitlines()]
    return [row for row in rows if isinstance(row, dict)]


def _parse(line: bytes) -> Any:
    try:
        return from_json(line)
    except ValueError:
        return None


class LogFollower:
    """Reads what is added to a log; of a flood only the end.

    Args:
      path: the file; needn't exist yet.
      most_bytes: read at once; what was added before them is passed over.
    """

    def __init__(self, path: Path, most_bytes: int = 2**16):
        self._path, self._most = path, most_bytes
        self._offset = 0
        self._rest = b""

    def read(self) -> list[str]:
        """The complete lines added since the last call."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                if size < self._offset:  # another run's log
                    self._offset, self._rest = 0, b""
                start = max(self._offset, size - self._most)
                file.seek(start)
                data = file.read(size - start)
        except FileNotFoundError:
            self._offset, self._rest = 0, b""
            return []
        if start > self._offset:
            data, self._rest = data[data.find(b"\n") + 1 :], b""
        self._offset = size
        complete, newline, rest = (self._rest + data).rpartition(b"\n")
        self._rest = rest[-self._most :]
        return (complete + newline).decode(errors="replace").splitlines()
