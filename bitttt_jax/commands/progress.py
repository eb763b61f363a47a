"""Progress bars of commands that work through text."""

from __future__ import annotations

import collections
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from bitttt_jax.runs.console_text import format_duration

if TYPE_CHECKING:
    from bitttt_jax.data.build import Progress


@contextlib.contextmanager
def show_progress() -> Iterator[Progress]:
    """A bar per activity on a terminal, a line per tenth elsewhere; both on stderr."""
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


def _plain_progress() -> Callable[[str, int, int], None]:
    shown: dict[str, int] = collections.defaultdict(lambda: -1)
    began: dict[str, tuple[float, int]] = {}

    def show(activity: str, done: int, total: int) -> None:
        now = time.monotonic()
        start, before = began.setdefault(activity, (now, done))
        tenth = 10 * done // total if total else 10
        if tenth > shown[activity]:
            shown[activity] = tenth
            left = ""
            if before < done < total:
                seconds = (now - start) / (done - before) * (total - done)
                left = f", {format_duration(seconds)} left"
            print(f"{activity}: {10 * tenth} %{left}", file=sys.stderr)

    return show
