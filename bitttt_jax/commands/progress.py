"""Progress bars of commands that work through text."""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

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

    def show(activity: str, done: int, total: int) -> None:
        tenth = 10 * done // total if total else 10
        if tenth > shown[activity]:
            shown[activity] = tenth
            print(f"{activity}: {10 * tenth} %", file=sys.stderr)

    return show
