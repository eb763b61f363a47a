"""Following a file of JSON lines while another process writes, cuts back or replaces it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Follower:
    """Reads what is added to a file of JSON lines.

    A resumed run drops rows and goes on: then everything is read again. That is noticed by the
    last line read, which has to be where it was; each line has its own time in it.

    Args:
      path: the file; needn't exist yet.
    """

    def __init__(self, path: Path):
        self._path = path
        self._offset = 0
        self._last = b""

    def read(self) -> tuple[list[Row], bool]:
        """Reads the complete rows added since the last call; lines that are none are left out.

        Returns:
          The rows, and whether they are all there are because the file was rewritten: what
            earlier calls returned is out of date then.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset - len(self._last))
                data = file.read()
                restarted = not data.startswith(self._last)
                if restarted:
                    self._offset, self._last = 0, b""
                    file.seek(0)
                    data = file.read()
        except FileNotFoundError:
            restarted, self._offset, self._last = self._offset > 0, 0, b""
            return [], restarted
        added = data[len(self._last) : data.rfind(b"\n") + 1]
        lines = added.splitlines(keepends=True)
        self._offset += len(added)
        self._last = lines[-1] if lines else self._last
        return [row for line in lines if (row := _parse(line)) is not None], restarted


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
