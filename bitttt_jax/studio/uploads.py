"""Uploaded files: streamed to the disk, and there whole or not at all.

A file grows under a hidden temporary name and gets its own in one step, which fails if that name is
taken. What is cut off, too large, or left by a killed studio is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.routing import BaseRoute

from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.paths import check_name
from bitttt_jax.studio.routing import ApiRoute, Created

if TYPE_CHECKING:
    from bitttt_jax.studio.app import Studio

KEPT_FREE_BYTES = 256 << 20
"""Of the disk: a training run must still be able to save."""

_PREFIX = ".upload-"
_CONTENT_TYPE = "application/octet-stream"
_WRITE_BYTES = 4 << 20


async def receive_file(
    chunks: AsyncIterator[bytes],
    place: Path,
    *,
    expected: int | None,
    most: int,
    check: Callable[[Path], None] = lambda partial: None,
) -> int:
    """Writes a file as it comes in.

    Args:
      chunks: its bytes.
      place: where to put it; a file that is there stays, and is an error.
      expected: how many bytes were announced, if they were.
      most: how many there may be.
      check: raises if the content, in the file that it is given, isn't what is wanted.

    Returns:
      The size.

    Raises:
      RequestError: 409, something has that name; 413, it is too large or the disk too full;
        400, it isn't as long as announced.
    """
    if os.path.lexists(place):
        raise _taken(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    _check_size(expected or 0, place.parent, most)
    partial = place.with_name(f"{_PREFIX}{secrets.token_hex(8)}")
    try:
        size = await _write(chunks, partial, most)
        if expected is not None and size != expected:
            raise RequestError(400, f"{size:,} bytes came of {place.name}, not {expected:,}")
        await asyncio.to_thread(check, partial)
        await asyncio.to_thread(_put_in_place, partial, place)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _disk_full(place.parent) from None
        raise RequestError(
            500, f"{place} can't be written", error.strerror or str(error)
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return size


async def _write(chunks: AsyncIterator[bytes], partial: Path, most: int) -> int:
    size, waiting = 0, bytearray()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with open(os.open(partial, flags, 0o644), "wb", buffering=0) as file:

        async def flush() -> None:
            _check_size(len(waiting), partial.parent, most)
            await asyncio.to_thread(_write_all, file.fileno(), bytes(waiting))
            waiting.clear()

        async for chunk in chunks:
            size += len(chunk)
            waiting += chunk
            if size > most:
                raise _too_large(most)
            if len(waiting) >= _WRITE_BYTES:
                await flush()
        await flush()
    return size


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _put_in_place(partial: Path, place: Path) -> None:
    try:
        os.link(partial, place)  # unlike a rename, never replaces
    except FileExistsError:
        raise _taken(place) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if os.path.lexists(place):  # a file system without hard links
            raise _taken(place) from None
        partial.rename(place)


def remove_partial_uploads(folder: Path) -> None:
    """Removes what a studio that was killed has left of uploads, one folder deep."""
    for partial in (*folder.glob(f"{_PREFIX}*"), *folder.glob(f"*/{_PREFIX}*")):
        partial.unlink(missing_ok=True)


def _check_size(more: int, folder: Path, most: int) -> None:
    if more > most:
        raise _too_large(most)
    if more + KEPT_FREE_BYTES > shutil.disk_usage(folder).free:
        raise _disk_full(folder)


def _too_large(most: int) -> RequestError:
    return RequestError(
        413, f"the file has more than {most:,} bytes", fix="bitttt studio --max_upload=GIB"
    )


def _disk_full(folder: Path) -> RequestError:
    free = shutil.disk_usage(folder).free
    return RequestError(
        413,
        "the disk is too full for this file",
        f"{free:,} bytes are free, of which {KEPT_FREE_BYTES:,} are kept for checkpoints",
        "freeing space, or naming the folder in place: bitttt studio --data=FOLDER",
    )


def _taken(place: Path) -> RequestError:
    return RequestError(409, f"there is a {place.name} already", fix="another name")


async def receive_body(
    request: Request, place: Path, most: int, check: Callable[[Path], None] = lambda partial: None
) -> int:
    """Writes a request's body to a file: see `receive_file`.

    Raises:
      RequestError: also 400 where the sender went away, and 415 where it sends no bytes.
    """
    kind = request.headers.get("content-type", "")
    if kind != _CONTENT_TYPE:
        raise RequestError(415, f"a file is sent as {_CONTENT_TYPE}, not {kind!r:.99}")
    length = request.headers.get("content-length")
    expected = int(length) if length and length.isascii() and length.isdecimal() else None
    async with contextlib.aclosing(request.stream()) as chunks:
        try:
            return await receive_file(chunks, place, expected=expected, most=most, check=check)
        except ClientDisconnect:
            raise RequestError(400, f"the upload of {place.name} was cut off") from None


def routes(studio: Studio) -> list[BaseRoute]:
    """`PUT uploads/{name}?folder=NAME`."""
    folder = studio.home.resolve() / "uploads"
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial_uploads(folder)

    async def upload(request: Request) -> Created:
        place = folder
        if "folder" in request.query_params:
            place /= check_name(request.query_params["folder"])
            _check_folder(place)
        place /= check_name(request.path_params["name"])
        try:
            size = await receive_body(request, place, studio.max_upload)
        except BaseException:
            if place.parent != folder:
                with contextlib.suppress(OSError):  # it isn't empty
                    place.parent.rmdir()
            raise
        return Created({"path": str(place), "bytes": size})

    return [ApiRoute("/uploads/{name}", "PUT", upload, None)]


def _check_folder(folder: Path) -> None:
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        raise _taken(folder)
