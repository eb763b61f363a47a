"""Newer checkpoints of a run, taken up while the server runs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.server.worker import Worker

if TYPE_CHECKING:
    from bitttt_jax.inference.model import Model

_SECONDS = 2.0


class Watcher:
    """Looks for newer checkpoints, loads them in a thread of its own, and hands them over.

    Args:
      run: the run directory.
      load: loads the checkpoint of a step.
      worker: takes the model up between replies.
      seconds: between two looks.
    """

    def __init__(
        self,
        run: Path,
        load: Callable[[int], Model],
        worker: Worker,
        seconds: float = _SECONDS,
    ):
        self._run, self._load, self._worker, self._seconds = (
            RunDirectory(run),
            load,
            worker,
            seconds,
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it at the next look."""
        self._stopping.set()

    def _watch(self) -> None:
        given: int | None = None
        while not self._stopping.wait(self._seconds):
            engine = self._worker.engine
            if engine is None:
                continue
            newest = max(self._run.checkpoint_steps(), default=None)
            self._worker.newest_step = newest
            now = engine.model.step if given is None else given
            if newest is None or now is None or newest <= now:
                continue
            try:
                self._worker.offer(self._load(newest))
            except Exception as error:  # it was deleted meanwhile, or memory is short
                print(f"step {newest} can't be loaded: {error}", file=sys.stderr, flush=True)
            given = newest
