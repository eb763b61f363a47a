"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file under a temporary name beside `path`, then renames it.

    Raises:
      OSError: the folder is missing or not writable, or the disk is full.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        partial = Path(folder) / path.name
        partial.write_bytes(text.encode())
        os.replace(partial, path)
