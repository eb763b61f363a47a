"""Runs a command and writes down how it ended: `python -m bitttt_jax.studio.child FILE -- COMMAND`.

The studio may be gone, or started anew, when a job ends, and only a parent is told the exit code.
So each job has this small one, which stays with it. Signals to the job's group reach the command
itself; here they only must not end the waiting.
"""

from __future__ import annotations

import json
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


def main(argv: Sequence[str]) -> int:
    """Runs the command after `--`; writes exit_code, time and oom_kills to the file before it."""
    exit_file, separator, *command = argv
    if separator != "--":
        raise ValueError("usage: python -m bitttt_jax.studio.child FILE -- COMMAND")
    for number in _PASSED_BY:  # a handler, not SIG_IGN, which the command would inherit
        signal.signal(number, lambda *_: None)
    before = oom_kills()
    try:
        code = subprocess.Popen(command, stdin=subprocess.DEVNULL).wait()
    except OSError as error:
        print(f"error: can't start {command[0]}: {error.strerror}", file=sys.stderr)
        code = _NOT_STARTED
    ended = {"exit_code": code, "time": time.time(), "oom_kills": oom_kills() - before}
    write_atomically(Path(exit_file), json.dumps(ended) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
