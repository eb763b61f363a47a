"""What can go wrong for a user, and the exit code that each case ends the process with.

A `BittttError` carries one message that says what happened, why, and what to try. Command-line
entry points print it without a traceback and exit with its `exit_code`; library callers catch it.
Schedulers read the codes: only `PREEMPTED` asks to be started again.
"""

from __future__ import annotations

import enum


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
