"""A folder as one download: a zip file that is written while it is sent."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

_READ_BYTES = 1 << 20


def files_below(folder: Path) -> list[Path]:
    """The regular files below a folder, sorted; links, pipes and devices are left out."""
    found = []
    for place, _, names in os.walk(folder):
        paths = (Path(place) / name for name in names)
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    return sorted(found)


def zip_chunks(folder: Path) -> Iterator[bytes]:
    """The bytes of a zip file of a folder, whose name all its members begin with.

    Nothing is compressed: weights don't get smaller, and the disk is as fast as the network.
    """
    out = _Outlet()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for path in files_below(folder):
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            info = zipfile.ZipInfo.from_file(path, name, strict_timestamps=False)
            with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as member:
                while chunk := source.read(_READ_BYTES):
                    member.write(chunk)
                    yield out.take()
    yield out.take()


class _Outlet(io.RawIOBase):
    """A file that can't be read or sought, and gives away what was written to it."""

    def __init__(self) -> None:
        self._data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        self._data += view
        return view.nbytes

    def take(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data
