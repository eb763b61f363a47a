"""Failures in the user's words: what an exception means, which exit code it gets, what to try.

Device errors are told apart by their text: XLA has no exception class for "out of memory".
"""

from __future__ import annotations

import dataclasses
import errno
import re
import traceback

from bitttt_jax.errors import BittttError, DataError, ExitCode, OutOfMemoryError
from bitttt_jax.runs.console_text import format_memory

INTERRUPTED = "interrupted"
"""The kind of a run that was told twice to stop, and so ended without saving."""

_UNEXPECTED_EXIT_CODE = 1
_MAX_TRACEBACK = 20_000  # characters; XLA appends its whole buffer assignment to some errors

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+) ?([KMGT]?)(?:iB|B)?\b"
_TPU_USED = re.compile(rf"Used {_SIZE} of {_SIZE} hbm")
_TPU_USAGE = re.compile(rf"Hbm usage:? {_SIZE}")
_TPU_AVAILABLE = re.compile(rf"exceeding available bytes: {_SIZE}")
_REQUEST = re.compile(
    rf"(?:allocate request for|trying to allocate|memory allocating|Attempting to \w+) {_SIZE}"
)
_FREE = re.compile(rf"There are {_SIZE} free")
_ON_CHIP = re.compile(r"memory space (?:vmem|smem)")
# CPUs report an array that doesn't fit as an INTERNAL error.
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|Out of memory allocating")
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")

_DEVICE_HINTS = (
    "a larger optim.accumulation (the same batch in smaller parts), or a smaller data.batch_size",
    "model.remat=full (recomputes blocks in the backward pass: slower, much less memory)",
    "a larger mesh.fsdp (parameters and optimizer state over more devices)",
)


@dataclasses.dataclass(frozen=True)
class Failure:
    """The end of a run that went wrong, as error.json, the console and the studio show it."""

    kind: str
    exit_code: int
    title: str
    detail: str = ""
    hints: tuple[str, ...] = ()
    """What to try, the best first."""
    traceback: str | None = None
    """Of exceptions from outside this package; a user's mistake needs none."""


def classify(error: BaseException) -> BittttError | None:
    """Recognises the failures that a user can act on.

    Args:
      error: any exception; `BittttError`s come back as they are.

    Returns:
      The error in the user's words, or None if the exception isn't a known kind of failure.
    """
    if isinstance(error, BittttError):
        return error
    text = str(error)
    # Before memory: tensorstore calls a full disk RESOURCE_EXHAUSTED as well.
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or _DISK_FULL.search(text):
        return DataError(
            "the disk is full",
            text.splitlines()[0],
            "free space, or lower checkpoint.keep_last, then start the same command again",
        )
    if isinstance(error, MemoryError):
        return OutOfMemoryError("out of host memory", text, "a smaller data.batch_size")
    if _OUT_OF_MEMORY.search(text):
        return _out_of_memory(text)
    return None


def describe_failure(error: BaseException) -> Failure:
    """Turns any exception into its kind, exit code, explanation and hints.

    Args:
      error: what ended the run.

    Returns:
      The failure; a KeyboardInterrupt has kind `interrupted` and exit code 130, an exception that
        `classify` doesn't know has kind `unexpected` and exit code 1.
    """
    if isinstance(error, KeyboardInterrupt):
        hint = "the same command goes on from the newest checkpoint"
        return Failure(INTERRUPTED, int(ExitCode.INTERRUPTED), "interrupted", hints=(hint,))
    trace = "".join(traceback.format_exception(error))[-_MAX_TRACEBACK:]
    known = classify(error)
    if known is None:
        title = f"unexpected {type(error).__name__}: {error}".strip(": ").splitlines()[0]
        return Failure("unexpected", _UNEXPECTED_EXIT_CODE, title, traceback=trace)
    return Failure(
        kind=known.kind,
        exit_code=int(known.exit_code),
        title=known.what,
        detail=known.why,
        hints=tuple(hint for hint in known.fix.split("; ") if hint),
        traceback=None if isinstance(error, BittttError) else trace,
    )


def does_not_fit(needed: int, limit: int, free: int) -> OutOfMemoryError:
    """The failure of a step that would run out of memory if it were tried.

    Args:
      needed: bytes that it takes on a device.
      limit: what a device can hold.
      free: what of that nobody else holds.
    """
    room = f"{format_memory(free)} of {format_memory(limit)} free"
    what = f"out of device memory: the step needs {format_memory(needed)}, the device has {room}"
    return OutOfMemoryError(what, fix="; ".join(_DEVICE_HINTS))


def _out_of_memory(text: str) -> OutOfMemoryError:
    why = text.strip().splitlines()[0][:300]
    if _ON_CHIP.search(text):
        return OutOfMemoryError(
            "out of on-chip memory: the blocks of a kernel don't fit",
            why,
            "a smaller model.ttt.mini_batch or model.head_dim",
        )
    return OutOfMemoryError(
        f"out of device memory: {_needed_and_available(text)}", why, "; ".join(_DEVICE_HINTS)
    )


def _needed_and_available(text: str) -> str:
    if used := _TPU_USED.search(text):
        needed, available = _bytes(used[1], used[2]), _bytes(used[3], used[4])
    elif limit := _TPU_AVAILABLE.search(text):
        needed = sum(_bytes(*usage) for usage in _TPU_USAGE.findall(text))
        available = _bytes(limit[1], limit[2])
    else:
        request, free = _REQUEST.search(text), _FREE.search(text)
        left = f", {format_memory(_bytes(free[1], free[2]))} are free" if free else ""
        if not request:
            return "the device ran out"
        return f"there is no room for {format_memory(_bytes(request[1], request[2]))} more{left}"
    return f"the step needs {format_memory(needed)}, the device has {format_memory(available)}"


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])
