"""The process of its own in which chat templates, programs of strangers, are rendered."""

from __future__ import annotations

import atexit
import functools
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

_WORKER = Path(__file__).with_name("template_worker.py")
_SECONDS = 5.0  # of processor time, to render one


def ask(template: str, variables: dict[str, Any]) -> dict[str, str]:
    """What `template_worker.answer` returns for a template and its variables."""
    return _worker().ask({"template": template, "variables": variables, "seconds": _SECONDS})


class _Worker:
    """The process that renders templates; started again after a request that ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        """What `template_worker.answer` returns."""
        with self._lock:
            process = self._process = self._process or self._start()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            except BaseException:  # Ctrl-C: its answer must not be taken for the next one's
                self.close()
                raise
            if line.endswith("\n"):
                answer: dict[str, str] = json.loads(line)
                return answer
            return {"failed": self._how_it_ended(process)}

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        # -P: the modules beside the script are no libraries. A session of its own: Ctrl-C at the
        # terminal is for the program that asks.
        return subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    def _how_it_ended(self, process: subprocess.Popen[str]) -> str:
        code = process.wait()
        self.close()
        if code == -signal.SIGVTALRM:
            return f"it takes more than {_SECONDS:g} seconds"
        return f"the process that renders it ended with {code}"


@functools.cache
def _worker() -> _Worker:
    worker = _Worker()
    atexit.register(worker.close)
    return worker
