"""What is new in a run's metrics and log, read once however many pages watch it.

A feed keeps the latest parts that it has read, already as JSON. A page that is up to date takes
them from there; one that comes back from further behind reads the rest of the file for itself.
"""

from __future__ import annotations

import abc
import json
import threading
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from bitttt_jax.runs.files import finite
from bitttt_jax.runs.follow import START, Follower, Position
from bitttt_jax.studio.logs import read_lines

_KEPT_PARTS = 32
_MOST_BYTES = 1 << 20
"""A page that is further behind fetches the whole curve anew, thinned out."""
_MOST_LOG_BYTES = 1 << 16


class Part(NamedTuple):
    """What came between two positions."""

    start: Position
    end: Position
    data: str
    """JSON of the event."""


class Feed(abc.ABC):
    """A file of a run that grows.

    Args:
      id: of the run.
      path: the file.
    """

    def __init__(self, id: str, path: Path):
        self.id, self.path = id, path
        self._lock = threading.Lock()
        self._signature: tuple[int, int] | None = None
        # Replaced as a whole: read without a lock.
        self._parts: tuple[Part, ...] = ()
        self.position = position_at(path, file_signature(path)[0], complete=True)
        """The end of what was read."""

    def poll(self) -> bool:
        """Reads what is new; returns whether there is anything."""
        with self._lock:
            signature = file_signature(self.path)
            if signature == self._signature:
                return False
            self._signature = signature
            part = self._read(self.position)
            if part is None:
                return False
            self._parts = (*self._parts, part)[-_KEPT_PARTS:]
            self.position = part.end
            return True

    def known_since(self, position: Position) -> list[Part] | None:
        """What came after a position, if that was read lately; None if the file has to be read."""
        parts = self._parts
        if position == (parts[-1].end if parts else self.position):
            return []
        for index, part in enumerate(parts):
            if part.start == position:
                return list(parts[index:])
        return None

    def since(self, position: Position) -> list[Part]:
        """What came after a position, from the file if need be."""
        parts = self.known_since(position)
        if parts is None:
            part = self._read(position)
            parts = [part] if part else []
        return parts

    def _read(self, position: Position) -> Part | None:
        """What is new after a position; None if nothing is."""
        is_same = position_at(self.path, position.offset, complete=False) == position
        found = self.content(position if is_same else START, reset=not is_same)
        if found is None:
            return None
        end, content = found
        return Part(position, end, json.dumps(finite(content), allow_nan=False))

    @abc.abstractmethod
    def content(self, start: Position, *, reset: bool) -> tuple[Position, dict[str, Any]] | None:
        """What the event after a position says, and where the next one begins.

        Args:
          start: the position.
          reset: whether the file isn't the one that was read before.
        """


class MetricsFeed(Feed):
    """Rows of metrics.jsonl; `reset` says that the whole curve is to be fetched anew."""

    def content(self, start: Position, *, reset: bool) -> tuple[Position, dict[str, Any]] | None:
        """New rows."""
        size, _ = file_signature(self.path)
        if reset or size - start.offset > _MOST_BYTES:
            end = position_at(self.path, size, complete=True)
            return end, {"id": self.id, "rows": [], "reset": True}
        follower = Follower(self.path, start)
        rows, restarted = follower.read()
        if not rows and not restarted:
            return None
        return follower.position, {"id": self.id, "rows": rows, "reset": restarted}


class LogFeed(Feed):
    """Lines of train.log; `reset` says that those before them are another file's."""

    def content(self, start: Position, *, reset: bool) -> tuple[Position, dict[str, Any]] | None:
        """New lines, the last ones if there are too many."""
        lines, offset, skipped = read_lines(self.path, start.offset, limit=_MOST_LOG_BYTES)
        if not lines and not reset:
            return None
        content = {"id": self.id, "lines": lines, "skipped": skipped, "reset": reset}
        return log_position(self.path, offset), content


def log_position(path: Path, offset: int) -> Position:
    """The position at an offset; that of an empty file if it is shorter."""
    return position_at(path, offset, complete=False)


def position_at(path: Path, offset: int, *, complete: bool) -> Position:
    """The position at an offset, or with `complete` after the last line that ends before it."""
    try:
        with path.open("rb") as file:
            while True:
                size = Position(offset).check_bytes()
                file.seek(offset - size)
                before = file.read(size)
                if len(before) < size:
                    return START
                if not complete or not before or before.endswith(b"\n"):
                    return Position(offset, zlib.crc32(before))
                offset -= size - (before.rfind(b"\n") + 1)
    except OSError:
        return START


def file_signature(path: Path) -> tuple[int, int]:
    """Size and time of the last change of a file; zeros if there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns
