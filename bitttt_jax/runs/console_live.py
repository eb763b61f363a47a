"""The moving part at the foot of a terminal: the running phase, validation and training bars."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from bitttt_jax.runs.console_text import format_duration, progress_text

_MAX_BAR_WIDTH = 26


@dataclasses.dataclass
class LiveView:
    """What is in motion; None for what isn't.

    Args:
      console: the terminal.
    """

    console: Console
    phase: tuple[str, str, float] | None = None
    """Label, text, and start on the monotonic clock."""
    training: tuple[int, int, Mapping[str, float], float | None] | None = None
    """Step, steps, metrics by tag, seconds left."""
    evaluation: tuple[int, int] | None = None
    """Batches done, batches."""

    def __post_init__(self) -> None:
        self._live: Live | None = None

    def update(self) -> None:
        """Shows the fields as they are now; the elapsed time goes on by itself."""
        if self._live is None:
            # Transient: what stays on the screen is printed as lines above.
            self._live = Live(self, console=self.console, transient=True, refresh_per_second=5)
            self._live.start()
        self._live.refresh()

    def close(self) -> None:
        """Clears the moving part and gives the cursor back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Called by rich for every frame."""
        width = options.max_width
        # Frames are drawn by another thread than the one that changes the fields.
        phase, evaluation, training = self.phase, self.evaluation, self.training
        if phase is not None:
            label, text, start = phase
            elapsed = format_duration(time.monotonic() - start)
            yield _one_line(f"{label:<8} {text} {elapsed}", width)
        if evaluation is not None:
            done, total = evaluation
            yield _bar(done, total, f"eval {done}/{total}", width)
        if training is not None:
            step, steps, metrics, eta_s = training
            room = width - _bar_width(width) - 1
            yield _bar(step, steps, progress_text(step, steps, metrics, eta_s, width=room), width)
        yield Segment("")


def _bar_width(width: int) -> int:
    return min(_MAX_BAR_WIDTH, width // 6)


def _bar(done: int, total: int, text: str, width: int) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    bar = ProgressBar(total=max(total, 1), completed=done, width=_bar_width(width))
    grid.add_row(bar, _one_line(text, width - _bar_width(width) - 1))
    return grid


def _one_line(text: str, width: int) -> Text:
    line = Text(text, no_wrap=True, overflow="crop")
    line.truncate(max(width, 1))
    return line
