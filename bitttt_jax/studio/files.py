"""Files and folders below the declared roots, page by page.

A path counts by where it leads once every symbolic link is followed. Only regular files and folders
exist here: opening a pipe or a device could wait for ever.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from starlette.requests import Request
from starlette.routing import BaseRoute

from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.paths import confine
from bitttt_jax.studio.routing import get, number

if TYPE_CHECKING:
    from bitttt_jax.studio.app import Studio

MOST_ENTRIES = 1000
"""Of a folder, in one answer."""

Kind = Literal["file", "folder"]


def locate(path: str | Path, roots: Iterable[Path]) -> Path:
    """Where a path leads, if that is a file or folder below a root.

    Raises:
      RequestError: 403, it is elsewhere, whether or not something is there; 404, nothing is;
        400, it is no path, or that of a pipe or device.
    """
    place = confine(path, roots)
    if kind_of(place) is None:
        if os.path.lexists(place):
            raise RequestError(400, f"{str(path)!r:.200} is neither a file nor a folder")
        raise RequestError(404, f"{str(path)!r:.200} isn't there")
    return place


def kind_of(path: str | Path) -> Kind | None:
    """What is there, links followed; None for pipes, devices, sockets, and nothing."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(mode):
        return "file"
    return "folder" if stat.S_ISDIR(mode) else None


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a folder."""

    name: str
    path: str
    kind: Kind
    bytes: int | None
    """None for folders."""
    modified: float


def list_folder(
    folder: Path, roots: Sequence[Path], offset: int = 0, limit: int = MOST_ENTRIES
) -> tuple[list[Entry], int]:
    """A page of what is in a folder: folders first, then by name.

    Hidden names, links that lead out of the roots, pipes and devices are left out.

    Args:
      folder: located below a root.
      roots: what links may lead into.
      offset: entries before the page.
      limit: most entries of the page.

    Returns:
      The page, and how many entries there are in all.

    Raises:
      RequestError: 403, the folder can't be read.
    """
    try:
        with os.scandir(folder) as found:
            kept = [entry for entry in found if _is_shown(entry, roots)]
    except OSError as error:
        raise RequestError(403, f"{folder} can't be read", error.strerror or "") from None
    kept.sort(key=lambda entry: (not entry.is_dir(), entry.name.lower(), entry.name))
    page = (_entry(entry) for entry in kept[offset : offset + limit])
    return [entry for entry in page if entry], len(kept)


def _is_shown(entry: os.DirEntry[str], roots: Sequence[Path]) -> bool:
    if entry.name.startswith(".") or not _is_utf8(entry.name):
        return False
    if entry.is_symlink():
        try:
            locate(entry.path, roots)
        except RequestError:
            return False
        return True
    return entry.is_file() or entry.is_dir()


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of another encoding, which no request could name
        return False
    return True


def _entry(entry: os.DirEntry[str]) -> Entry | None:
    try:
        status = entry.stat()
    except OSError:  # it went meanwhile
        return None
    if stat.S_ISDIR(status.st_mode):
        return Entry(entry.name, entry.path, "folder", None, status.st_mtime)
    return Entry(entry.name, entry.path, "file", status.st_size, status.st_mtime)


def browse(text: str, roots: Sequence[Path], offset: int, limit: int) -> dict[str, Any]:
    """The answer of `GET files`: a page of a folder, or of the roots where the path is empty."""
    roots = [root.resolve() for root in roots if root.is_dir()]
    answer: dict[str, Any] = {"path": "", "parent": None, "roots": [str(root) for root in roots]}
    if text:
        folder = locate(text, roots)
        if kind_of(folder) != "folder":
            raise RequestError(400, f"{folder} is a file, not a folder")
        is_root = folder in roots
        answer |= {"path": str(folder), "parent": "" if is_root else str(folder.parent)}
        entries, total = list_folder(folder, roots, offset, limit)
    else:
        entries = [Entry(r.name, str(r), "folder", None, r.stat().st_mtime) for r in roots]
        total = len(entries)
    answer |= {"entries": [dataclasses.asdict(entry) for entry in entries]}
    return answer | {"total": total, "offset": offset}


def routes(studio: Studio) -> list[BaseRoute]:
    """`GET files`."""

    def show(request: Request) -> dict[str, Any]:
        offset = number(request, "offset", 0, low=0, high=10**9)
        limit = number(request, "limit", MOST_ENTRIES, low=1, high=MOST_ENTRIES)
        return browse(request.query_params.get("path", ""), studio.data_roots, offset, limit)

    return [get("/files", show)]
