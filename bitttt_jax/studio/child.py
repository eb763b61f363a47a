"""Runs a command and writes down how it ended: `python -m … child FILE [--tied=PID] -- COMMAND`.

The studio may be gone, or started anew, when a job ends, and only a parent is told the exit code.
So each job has this small one, which stays with it. Signals to the job's group reach the command
itself; here they only must not end the waiting.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bitttt_jax.runs.files import write_atomically
from bitttt_jax.runs.memory_use import oom_kills

_PASSED_BY = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
_NOT_STARTED = 127
_LOOK_SECONDS = 1.0
_GOODBYE_SECONDS = 10.0


def main(argv: Sequence[str]) -> int:
    """Runs the command after `--`; writes exit_code, time and oom_kills to the file before it.

    With `--tied=PID` the command is ended once that process, this one's parent, is gone.
    """
    options, command = list(argv[: argv.index("--")]), argv[argv.index("--") + 1 :]
    exit_file, *tied = options
    parent = int(tied[0].removeprefix("--tied=")) if tied else None
    for number in _PASSED_BY:  # a handler, not SIG_IGN, which the command would inherit
        signal.signal(number, lambda *_: None)
    before = oom_kills()
    try:
        code = _wait(subprocess.Popen(command, stdin=subprocess.DEVNULL), parent)
    except OSError as error:
        print(f"error: can't start {command[0]}: {error.strerror}", file=sys.stderr)
        code = _NOT_STARTED
    ended = {"exit_code": code, "time": time.time(), "oom_kills": oom_kills() - before}
    write_atomically(Path(exit_file), json.dumps(ended) + "\n")
    return 0


def _wait(process: subprocess.Popen[bytes], parent: int | None) -> int:
    """Waits for a command's end, and brings it about where its parent's parent has gone."""
    if parent is None:
        return process.wait()
    while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_SECONDS)
        if os.getppid() != parent:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GOODBYE_SECONDS)
            process.kill()
    return process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
