"""What can go wrong for a user, and the exit code that each case ends the process with.

A `BittttError` carries one message that says what happened, why, and what to try. Command-line
entry points print it without a traceback and exit with its `exit_code`; library callers catch it.
Schedulers read the codes: only `PREEMPTED` asks to be started again.
"""

from __future__ import annotations

import difflib
import enum
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn


class ExitCode(enum.IntEnum):
    """Exit codes of every command."""

    OK = 0
    USAGE = 2
    """Bad flag or configuration, missing extra, or a run directory of another run."""
    OUT_OF_MEMORY = 3
    """The device has too little memory for the step."""
    DIVERGED = 4
    """Too many updates in a row had a non-finite loss or gradient."""
    DATA = 5
    """Unreadable or inconsistent input, a full disk, or a damaged checkpoint."""
    PREEMPTED = 42
    """A checkpoint was saved after a signal or a time limit: start the same command again."""
    INTERRUPTED = 130
    """Ctrl-C; a checkpoint was saved if it was pressed once."""


class BittttError(Exception):
    """A failure explained in the user's words.

    Args:
      what: what happened, with the value or path at fault.
      why: the reason, if `what` doesn't already imply it.
      fix: what to try next.
    """

    exit_code = ExitCode.USAGE
    kind = "error"

    def __init__(self, what: str, why: str = "", fix: str = ""):
        self.what, self.why, self.fix = what, why, fix
        super().__init__("\n  ".join(part for part in (what, why, fix and f"Try: {fix}") if part))


class ConfigError(BittttError):
    """A flag or configuration value that is unknown, malformed, or in conflict with another."""

    kind = "config"


class DataError(BittttError):
    """Input text, tokens, or a file on disk that can't be used as it is."""

    exit_code = ExitCode.DATA
    kind = "data"


class CheckpointError(DataError):
    """A checkpoint that is missing, damaged, or from another model."""

    kind = "checkpoint"


class OutOfMemoryError(BittttError):
    """The compiled step doesn't fit into the device's memory."""

    exit_code = ExitCode.OUT_OF_MEMORY
    kind = "out_of_memory"


class DivergedError(BittttError):
    """Training produced non-finite values too many times in a row."""

    exit_code = ExitCode.DIVERGED
    kind = "diverged"


# What a shell reports for a process that SIGPIPE ended; nobody is left to read a message.
_READER_GONE = 141


def run_main(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Runs an entry point and turns how it ends into an exit code.

    Args:
      main: takes the arguments and returns an exit code, None meaning success.
      argv: the arguments, without the program's name.

    Returns:
      The exit code; for a `BittttError` its message stands on stderr.
    """
    try:
        code = main(argv) or ExitCode.OK
        sys.stdout.flush()  # a reader that has gone shows here, not in the interpreter's shutdown
        return int(code)
    except BittttError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_GONE


def exit_process(code: int) -> NoReturn:
    """Ends the process with the exit code of an entry point.

    After Ctrl-C it doesn't wait for other threads, as Python does: they may be waiting for what the
    interrupted one was about to do.
    """
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    if code == ExitCode.INTERRUPTED and not all(thread.daemon for thread in others):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: ` (did you mean x or y?)`, or nothing.

    Dotted names also match by their last part alone: `dim` and `optim.dim` find `model.dim`.
    """
    by_last: dict[str, list[str]] = {}
    for candidate in known:
        by_last.setdefault(candidate.rpartition(".")[2], []).append(candidate)
    last = name.rpartition(".")[2]
    parts = [last] if last in by_last else difflib.get_close_matches(last, by_last)
    similar = [candidate for part in parts for candidate in by_last[part]]
    closest = difflib.get_close_matches(name, similar, n=3, cutoff=0)
    return f" (did you mean {' or '.join(closest)}?)" if closest else ""
