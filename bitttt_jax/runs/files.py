"""Files that are whole or absent, and append-only files of JSON lines.

A line of a JSON-lines file counts once its newline is there: readers leave a half-written last
line alone, writers cut it off before they go on.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bitttt_jax.errors import DataError


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Writes a text file so that readers see the old content or the new, never a part.

    Args:
      path: the file; its folder must exist.
      text: the new content.
      durable: wait until the disk has it, so that it also survives a power cut.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def to_row(values: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a mapping representable in JSON: NaN and infinities become null.

    Args:
      values: keys with JSON values, nested or not.

    Returns:
      The same keys, and `nonfinite` with the names of those that had such a value, if any.
    """
    row = {key: finite(value) for key, value in values.items()}
    bad = [key for key, value in values.items() if row[key] != value]
    return row | {"nonfinite": bad} if bad else row


def finite(value: Any) -> Any:
    """A JSON value with null in the place of NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(finite(item) for item in value)
    return value


class JsonLines:
    """Appends rows with the time `t` (seconds since 1970) to a file, a line each, at once.

    Args:
      path: the file, created with the first row.
    """

    def __init__(self, path: Path):
        self._path = path
        self._fd: int | None = None

    def append(self, values: Mapping[str, Any]) -> None:
        """Writes one row; see `to_row` for values that JSON can't hold."""
        if self._fd is None:
            if self._path.exists():
                keep_rows(self._path, lambda _: True)
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        row = to_row({"t": round(time.time(), 3), **values})
        data = (json.dumps(row, allow_nan=False) + "\n").encode()
        # Unbuffered: a row that hit a full disk must not be tried again at interpreter exit.
        while data:
            data = data[os.write(self._fd, data) :]

    def close(self) -> None:
        """Closes the file; a later row opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def read_rows(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Reads the complete rows of a file that may still be written to.

    Args:
      path: a file of JSON lines; one that doesn't exist has no rows.
      offset: where to start, in bytes: 0 or an earlier call's second result.

    Returns:
      The rows, and the offset after the last complete one.

    Raises:
      DataError: a complete line isn't a JSON object.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], 0
    complete = data[: data.rfind(b"\n") + 1]
    return [_parse(path, line) for line in complete.splitlines()], offset + len(complete)


def keep_rows(path: Path, keep: Callable[[dict[str, Any]], bool]) -> int:
    """Drops rows and a half-written last line; the file is replaced as a whole.

    Args:
      path: a file of JSON lines that nobody has open for writing.
      keep: says for a row whether it stays.

    Returns:
      The number of rows dropped.

    Raises:
      DataError: a complete line isn't a JSON object.
    """
    data = path.read_bytes() if path.exists() else b""
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    kept = [line for line in lines if keep(_parse(path, line))]
    text = b"".join(line + b"\n" for line in kept)
    if text != data:
        write_atomically(path, text.decode())
    return len(lines) - len(kept)


def _parse(path: Path, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        shown = line[:60].decode(errors="replace")
        raise DataError(
            f"{path} has a line that isn't a JSON object: {shown!r}",
            "it was edited, or two processes wrote to it",
            "remove that line",
        )
    return row
