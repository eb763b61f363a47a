"""`bitttt watch`: runs in the terminal, live, also over ssh."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import rich.console
import tyro
from rich.live import Live
from rich.text import Text

from bitttt_jax.commands.keys import Keys
from bitttt_jax.commands.watch_picture import Page, picture, plain
from bitttt_jax.commands.watch_run import WatchedRun
from bitttt_jax.errors import ConfigError, run_main
from bitttt_jax.runs.console_text import encodable, safe_text

_ONCE_ROWS = 48
_NEXT, _PREVIOUS = ("tab", "right", "down"), ("shift-tab", "left", "up")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Look at runs: progress, curves, health, memory, samples, checkpoints and the log.

    It only reads the runs' folders, so that it can start and end at any time. On a terminal: tab
    and arrows go to the next run, q ends. Elsewhere the log's new lines are printed until all runs
    are over.

    bitttt watch runs/quickstart

    bitttt watch runs/a runs/b --once
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories."""
    once: bool = False
    """Print one picture of each run as text, and end."""
    every: float = 0.5
    """Seconds between two looks."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = tyro.cli(Flags, args=list(argv), prog="bitttt watch", use_underscores=True)
    if not flags.runs:
        raise ConfigError("no run is named", fix="bitttt watch runs/quickstart")
    if not 0.05 <= flags.every <= 3600:
        raise ConfigError(f"--every={flags.every} must be between 0.05 and 3600 seconds")
    runs = [WatchedRun(path) for path in flags.runs]
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if flags.once:
        _print_once(runs)
    elif is_terminal:
        _show(runs, flags.every)
    else:
        _follow(runs, flags.every)


def _print_once(runs: Sequence[WatchedRun]) -> None:
    console = rich.console.Console()
    page = Page(console.width, _ONCE_ROWS, console.encoding)
    for number, run in enumerate(runs):
        run.update()
        print(end="\n" if number else "")
        _print(plain(picture(run, page)))


def _show(runs: Sequence[WatchedRun], every: float) -> None:
    """The live view; returns when q is pressed."""
    console = rich.console.Console(highlight=False, markup=False, emoji=False)
    current, shown = 0, Text()
    # Both put the terminal back in order on the way out, whatever ends the view.
    signal.signal(signal.SIGTERM, _terminate)
    with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            runs[current].update()
            screen = _screen(runs, current, console)
            if screen != shown:  # nothing goes over a slow line for nothing
                live.update(screen, refresh=True)
                shown = screen
            for key in keys.read(every):
                if key == "q":
                    return
                current += (key in _NEXT) - (key in _PREVIOUS)
            current %= len(runs)


def _screen(runs: Sequence[WatchedRun], current: int, console: rich.console.Console) -> Text:
    page = Page(console.width, console.height - 1, console.encoding)
    lines = picture(runs[current], page)
    lines += [Text()] * (page.height - len(lines))
    others = f"run {current + 1} of {len(runs)}, tab: next run, " if len(runs) > 1 else ""
    # No line break after the last row: the terminal would scroll.
    return Text("\n").join([*lines, Text(f"{others}q: end"[: page.width], "dim")])


def _follow(runs: Sequence[WatchedRun], every: float) -> None:
    """Prints what happens, a line each, until all runs are over."""
    told: dict[str, str] = {}
    while True:
        for run in runs:
            lines = run.update()
            # Of a log that was there already the end is enough.
            for line in lines if run.name in told else lines[-10:]:
                _print_line(run, line, runs)
            state = _state(run)
            if state != told.get(run.name):
                told[run.name] = state
                _print_line(run, state, runs)
        if all(run.seen.over for run in runs):
            return
        time.sleep(every)


def _state(run: WatchedRun) -> str:
    """How the run is, in a line, but for its progress, which is in the log."""
    word: str = "not responding" if run.seen.not_responding else run.seen.state
    if run.seen.over:
        word += f" at step {run.seen.status.step}/{run.seen.status.steps}"
    told = run.explanation
    if told is None:
        return f"state    {word}"
    hints = "".join(f"  Try: {hint}." for hint in told.hints[:1])
    return f"state    {word}: {told.title}. {told.why}".rstrip(". ") + f".{hints}"


def _print_line(run: WatchedRun, line: str, runs: Sequence[WatchedRun]) -> None:
    _print(safe_text(f"{run.name}: {line}" if len(runs) > 1 else line))


def _print(text: str) -> None:
    print(encodable(text, sys.stdout.encoding or "utf-8"), flush=True)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
