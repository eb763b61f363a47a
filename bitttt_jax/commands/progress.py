"""Progress of commands that work through text: bars, lines, or rows for another program."""

from __future__ import annotations

import collections
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bitttt_jax.runs.console_text import format_duration
from bitttt_jax.runs.files import JsonLines

if TYPE_CHECKING:
    from bitttt_jax.data.build import Progress

PROGRESS_VARIABLE = "BITTTT_PROGRESS"
"""Environment variable that names a file of JSON lines: rows of `activity`, `done`, `total` and
`eta_s` go there in place of what is shown, and a last one with the `report`."""

_SECONDS_BETWEEN_ROWS = 0.25


@contextlib.contextmanager
def show_progress() -> Iterator[Progress]:
    """A bar per activity on a terminal, a line per tenth elsewhere; both on stderr.

    With `PROGRESS_VARIABLE` in the environment, rows in the file that it names.
    """
    path = os.environ.get(PROGRESS_VARIABLE)
    if path:
        rows = JsonLines(Path(path))
        try:
            yield _row_progress(rows)
        finally:
            rows.close()
        return
    if not sys.stderr.isatty():
        yield _plain_progress()
        return
    import rich.console
    import rich.markup
    import rich.progress

    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
    ) as bars:
        tasks: dict[str, rich.progress.TaskID] = {}

        def show(activity: str, done: int, total: int) -> None:
            if activity not in tasks:
                tasks[activity] = bars.add_task(rich.markup.escape(activity), total=total)
            bars.update(tasks[activity], completed=done)

        yield show


def report(text: str) -> None:
    """Prints a command's result; with `PROGRESS_VARIABLE`, also as a row's `report`."""
    print(text)
    path = os.environ.get(PROGRESS_VARIABLE)
    if path:
        rows = JsonLines(Path(path))
        rows.append({"report": text})
        rows.close()


class _Pace:
    """Tells how long an activity still takes, from how long it took so far."""

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, int]] = {}

    def seconds_left(self, activity: str, done: int, total: int) -> float | None:
        """None before there is something to go by, and at the end."""
        now = time.monotonic()
        start, before = self._began.setdefault(activity, (now, done))
        if not before < done < total:
            return None
        return (now - start) / (done - before) * (total - done)


def _row_progress(rows: JsonLines) -> Callable[[str, int, int], None]:
    pace = _Pace()
    last = ("", 0.0)

    def show(activity: str, done: int, total: int) -> None:
        nonlocal last
        left = pace.seconds_left(activity, done, total)
        now = time.monotonic()
        if activity == last[0] and done < total and now - last[1] < _SECONDS_BETWEEN_ROWS:
            return
        last = (activity, now)
        rows.append({"activity": activity, "done": done, "total": total, "eta_s": left})

    return show


def _plain_progress() -> Callable[[str, int, int], None]:
    shown: dict[str, int] = collections.defaultdict(lambda: -1)
    pace = _Pace()

    def show(activity: str, done: int, total: int) -> None:
        seconds = pace.seconds_left(activity, done, total)
        tenth = 10 * done // total if total else 10
        if tenth > shown[activity]:
            shown[activity] = tenth
            left = "" if seconds is None else f", {format_duration(seconds)} left"
            print(f"{activity}: {10 * tenth} %{left}", file=sys.stderr)

    return show
