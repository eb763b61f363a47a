"""What a run looks like from outside: its own words and its process, put together.

A run says what it does in status.json; whether it still can say anything is another question. Both
are needed to tell a run that works from one that was killed or hangs.
"""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any, Literal

from bitttt_jax.runs.console_text import format_duration
from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.status import RunStatus, State

RunState = State | Literal["queued", "lost"]

SILENT_SECONDS = 60.0
"""After this long without a heartbeat a living process counts as not responding."""
STUCK_SECONDS, STUCK_STEPS = 120.0, 20
"""After this long in a step, and this many usual ones, so does one whose heart beats."""


@dataclasses.dataclass(frozen=True)
class Observation:
    """What is known of a run at some moment."""

    state: RunState
    """As the run said last; `queued` before it said anything, `lost` if it can't any more."""
    alive: bool | None
    """Whether its process lives; None if it is on another host."""
    not_responding: bool
    """Whether it lives, but is silent."""
    status: RunStatus

    @property
    def over(self) -> bool:
        """Whether nothing more will come of this start of the run."""
        return self.state == "lost" or self.status.over


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why a run isn't well, in words."""

    kind: str
    """`error_kind` of a failure, `lost` or `not_responding`."""
    title: str
    why: str = ""
    hints: tuple[str, ...] = ()
    """What to try, the best first."""


def observe(run: RunDirectory, now: float | None = None) -> Observation:
    """Looks at a run.

    Args:
      run: its folder.
      now: seconds since 1970.
    """
    status = run.read_status()
    if status is None:
        return Observation("queued", False, False, RunStatus())
    alive = status.process_alive()
    if alive is False and not status.over:
        # It may have said how it ended between the two looks.
        status = run.read_status() or status
        alive = status.process_alive()
    if status.over:
        return Observation(status.state, alive, False, status)
    if alive is False:
        return Observation("lost", False, False, status)
    silent = (time.time() if now is None else now) - status.heartbeat > SILENT_SECONDS
    return Observation(status.state, alive, silent, status)


def explain(run: RunDirectory, seen: Observation) -> Explanation | None:
    """Says why a run failed, is lost or doesn't respond; None if it is well.

    Args:
      run: its folder.
      seen: what it looks like.
    """
    if seen.state == "failed":
        return _failure(run, seen.status)
    if seen.state == "lost":
        return _lost(run, seen.status)
    return _silent(seen.status) if seen.not_responding else None


def _failure(run: RunDirectory, status: RunStatus) -> Explanation:
    try:
        error: Any = json.loads(run.error_path.read_text(encoding="utf-8"))
        return Explanation(
            str(error["kind"]), str(error["title"]), str(error["detail"]), tuple(error["hints"])
        )
    except (OSError, ValueError, KeyError, TypeError):  # a full disk takes no error.json
        title = f"the run failed with exit code {status.exit_code}"
        return Explanation(status.error_kind or "unexpected", title, f"{run.log_path} says more")


def _lost(run: RunDirectory, status: RunStatus) -> Explanation:
    saved = run.checkpoint_steps()
    step = f"goes on from step {saved[-1]}" if saved else "starts anew: nothing was saved yet"
    return Explanation(
        "lost",
        f"process {status.pid} on {status.host} is gone, at step {status.step}/{status.steps}",
        "it ended without a word: killed, by someone or by the kernel for want of memory, or the "
        "machine was restarted",
        (f"the same command {step}",),
    )


def _silent(status: RunStatus) -> Explanation:
    ago = format_duration(max(time.time() - status.heartbeat, 0))
    return Explanation(
        "not_responding",
        f"process {status.pid} on {status.host} has said nothing for {ago}",
        "it is stopped, waits for a disk or another process, or the machine is overloaded",
        ("wait; or end the process, and the same command goes on from the newest checkpoint",),
    )


def is_stuck(state: str, seconds: float, usual: float) -> bool:
    """Whether a run doesn't get on, though its process is well.

    Args:
      state: the run's.
      seconds: since its step last changed.
      usual: what a step takes, 0 if unknown.
    """
    return state == "running" and seconds > max(STUCK_SECONDS, STUCK_STEPS * usual)


def explain_stuck(seen: Observation, seconds: float, usual: float) -> Explanation | None:
    """Says that a run whose process is well doesn't get on; None if it does.

    Args:
      seen: what it looks like.
      seconds: since its step last changed.
      usual: what a step takes, 0 if unknown.
    """
    if not is_stuck(seen.state, seconds, usual):
        return None
    usually = f", where one usually takes {format_duration(usual)}" if usual else ""
    return Explanation(
        "not_responding",
        f"no step has ended for {format_duration(seconds)}{usually}",
        "it waits for a device, a disk or another host",
        ("wait; or end the process, and the same command goes on from the newest checkpoint",),
    )
