"""Stop requests: signals and the time limit, turned into one answer that all processes share.

A process on its own handles the signals itself. Under `jax.distributed` JAX's preemption service
owns SIGTERM: a Python handler for it would either never run or keep the service from agreeing on
a step, so the other signals are passed on to it as SIGTERM.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from bitttt_jax.errors import ExitCode

_NOTICES = {
    signal.SIGINT: b"\nsaving a checkpoint and stopping; Ctrl-C again stops at once\n",
    signal.SIGTERM: b"SIGTERM: saving a checkpoint and stopping\n",
    signal.SIGUSR2: b"SIGUSR2: saving a checkpoint and stopping\n",
}


class StopRequest:
    """Answers, once a step, whether the run should save and stop.

    Use it as a context manager around the loop. The first Ctrl-C, SIGTERM and SIGUSR2 ask for a
    stop; a second Ctrl-C raises `KeyboardInterrupt` wherever the process is, and whatever that
    place makes of it, it leaves the context as one. Outside the main thread, where Python allows
    no handlers, only the time limit counts.

    Args:
      max_minutes: minutes after which to stop, counted from now; 0 for no limit.
    """

    def __init__(self, max_minutes: float = 0.0):
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")
        self._code: ExitCode | None = None
        self._is_interrupted = False
        self._is_distributed = jax.distributed.is_initialized()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _NOTICES:
                if number != signal.SIGTERM or not self._is_distributed:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        # A checkpoint that is torn out of its writing comes back as a failure to write it.
        if self._is_interrupted and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error

    def poll(self, step: int) -> ExitCode | None:
        """Whether to stop after this step, and with which exit code.

        Args:
          step: the step just finished; with several processes all must poll with the same ones.

        Returns:
          None to go on; else `PREEMPTED`, or `INTERRUPTED` after Ctrl-C. The same, at the same
          step, in all processes.
        """
        is_late = time.monotonic() > self._deadline
        if not self._is_distributed:
            return self._code or (ExitCode.PREEMPTED if is_late else None)
        if is_late and jax.process_index() == 0:  # one clock decides, the service tells the others
            self._deadline = float("inf")
            os.kill(os.getpid(), signal.SIGTERM)
        if not multihost_utils.reached_preemption_sync_point(step):
            return None
        interrupted = np.array(self._code == ExitCode.INTERRUPTED)
        anywhere = np.any(multihost_utils.process_allgather(interrupted))
        return ExitCode.INTERRUPTED if anywhere else ExitCode.PREEMPTED

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._code == ExitCode.INTERRUPTED:
            self._is_interrupted = True
            raise KeyboardInterrupt
        is_interrupt = number == signal.SIGINT
        self._code = ExitCode.INTERRUPTED if is_interrupt else self._code or ExitCode.PREEMPTED
        os.write(2, _NOTICES[signal.Signals(number)])  # print isn't safe inside a handler
        if self._is_distributed:
            os.kill(os.getpid(), signal.SIGTERM)
