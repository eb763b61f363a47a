"""Logs of runs and jobs as lines of plain text, a limited part at a time."""

from __future__ import annotations

import os
import re
from pathlib import Path

MAX_READ = 1 << 18
"""Bytes read at once: a log may grow faster than anybody reads."""

_MAX_LINE = 2000
# Colours, cursor movements, titles: what terminals act on.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def tail_lines(path: Path, lines: int) -> tuple[list[str], int]:
    """The last lines of a log.

    Args:
      path: the log; one that isn't there is empty.
      lines: at most this many.

    Returns:
      The lines, and the offset at which the next one begins.
    """
    text, offset, _ = read_lines(path, 0, limit=min(MAX_READ, 400 * lines))
    return text[-lines:], offset


def read_lines(path: Path, offset: int, limit: int = MAX_READ) -> tuple[list[str], int, int]:
    """The complete lines after an offset, or the last ones if there are too many.

    Args:
      path: the log.
      offset: where to begin, in bytes.
      limit: bytes to read at most.

    Returns:
      The lines, the offset after them, and the bytes that were left out before them.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            start = max(offset, end - limit)
            file.seek(start)
            data = file.read(limit)
    except OSError:
        return [], 0, 0
    skipped = start - offset
    complete = data.rfind(b"\n") + 1
    if not complete:
        # A line without an end: wait for it, unless it is longer than anybody wants to see.
        if len(data) < limit:
            return [], offset, 0
        complete = len(data)
    elif skipped:
        first = data.find(b"\n") + 1
        skipped += first
        return clean_lines(data[first:complete]), start + complete, skipped
    return clean_lines(data[:complete]), start + complete, skipped


def clean_lines(data: bytes) -> list[str]:
    """Bytes of a log as lines without escapes and control characters."""
    lines = data.decode(errors="replace").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return [clean(line) for line in lines]


def clean(line: str) -> str:
    """A line as a terminal would show it: what a carriage return overwrites is gone."""
    line = _ESCAPES.sub("", line[: 10 * _MAX_LINE].rstrip("\r")).rpartition("\r")[2]
    line = _CONTROLS.sub("", line)
    return line if len(line) <= _MAX_LINE else line[:_MAX_LINE] + " …"
