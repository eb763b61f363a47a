"""What a run says while it works: a live view on a terminal, `key=value` lines elsewhere.

The same lines go to train.log as plain text. Each method is one kind of line, so that the
training loop calls them without asking where the output goes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import rich.box
import rich.console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bitttt_jax.runs.console_live import LiveView
from bitttt_jax.runs.console_memory import HostMemory, memory_lines
from bitttt_jax.runs.console_summary import Evaluation, RunSummary, summary_rows
from bitttt_jax.runs.console_text import (
    encodable,
    format_bytes,
    format_duration,
    format_losses,
    perplexity,
    progress_line,
    safe_text,
)
from bitttt_jax.runs.failures import Failure
from bitttt_jax.runs.files import to_row

Mode = Literal["auto", "rich", "plain", "json", "silent"]

_LABEL_WIDTH = 8
_LEVEL_STYLES = {"": "", "high": "yellow", "full": "bold red"}
_LABEL_STYLES = {"warning": "bold yellow", "error": "bold red"}


class Console:
    """Prints a run's progress.

    Args:
      file: where to; standard output by default.
      width: columns; by default the terminal's, or `COLUMNS`, or 80.
      mode: `rich` draws on a terminal, `plain` prints lines, `json` prints an object a line,
        `silent` prints nothing (processes other than the first); `auto` is `rich` on a terminal
        and `plain` elsewhere.
      log_file: train.log, appended to; None for no log.
      progress_seconds: least time between two progress lines in files.
    """

    def __init__(
        self,
        *,
        file: TextIO | None = None,
        width: int | None = None,
        mode: Mode = "auto",
        log_file: Path | None = None,
        progress_seconds: float = 10.0,
    ):
        self._file = file or sys.stdout
        if isinstance(self._file, io.TextIOWrapper):
            self._file.reconfigure(errors="replace")  # a strange character must not end a run
        self._rich: rich.console.Console | None = None
        self._live: LiveView | None = None
        self._mode = _resolve(mode, self._file)
        if self._mode == "rich":
            self._rich = rich.console.Console(
                file=self._file, width=width, force_terminal=True,
                highlight=False, markup=False, emoji=False,
            )  # fmt: skip
            self._live = LiveView(self._rich)
            width = self._rich.width
        self._width = width or shutil.get_terminal_size((80, 24)).columns
        self._encoding = getattr(self._file, "encoding", None) or "utf-8"
        self._log = _open_log(log_file, self._file)
        self._progress_seconds = progress_seconds
        self._next_progress = 0.0

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Clears the live view, shows the cursor, and closes the log."""
        if self._live is not None:
            self._live.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def line(self, label: str, text: str, **data: Any) -> None:
        """Prints one labelled line.

        Args:
          label: one word that says what it is about.
          text: the message; may have several lines.
          **data: JSON values for `json` mode.
        """
        self._say(label, Text(safe_text(text, multiline=True)), data)

    def banner(self, title: str, sections: Sequence[tuple[str, str]]) -> None:
        """Prints what is about to run.

        Args:
          title: program, run, and whether it is new or resumed.
          sections: (label, text) of model, data, mesh, log, …
        """
        self._say("run", Text(safe_text(title), style="bold"), {})
        for label, text in sections:
            self.line(label, text)

    @contextlib.contextmanager
    def phase(self, label: str, text: str) -> Iterator[None]:
        """Times a block that takes a while, such as compilation.

        Prints that it starts (on a terminal: with a running clock) and how long it took.
        """
        start = time.monotonic()
        text = safe_text(text)
        if self._live is not None:
            self._live.phase = (label, text, start)
            self._live.update()
        starting = f"{label:<{_LABEL_WIDTH}} {text} …"
        self._write_log(starting)
        self._print_out(starting, label, {"text": text, "state": "start"})
        outcome = " failed after"
        try:
            yield
            outcome = ""
        finally:
            if self._live is not None:
                self._live.phase = None
            seconds = time.monotonic() - start
            done = f"{text}{outcome} {format_duration(seconds)}"
            self._say(label, Text(done), {"seconds": round(seconds, 3)})

    def progress(
        self, step: int, steps: int, metrics: Mapping[str, float], eta_s: float | None = None
    ) -> None:
        """Shows training progress: the bar on a terminal, a line now and then in files.

        Args:
          step: steps done.
          steps: steps to do.
          metrics: values by tag, as for `MetricsWriter.scalars`.
          eta_s: seconds left.
        """
        if self._live is not None:
            self._live.training = (step, steps, dict(metrics), eta_s)
            self._live.update()
        now = time.monotonic()
        if now < self._next_progress and step < steps:
            return
        self._next_progress = now + self._progress_seconds
        text = progress_line(step, steps, metrics, eta_s)
        values = {tag: float(value) for tag, value in metrics.items()}
        data = {"step": step, "steps": steps, **values, "eta_s": eta_s}
        self._write_log(text)
        self._print_out(text, "progress", data)

    def eval_progress(self, done: int, total: int) -> None:
        """Shows the bar of a running validation, on a terminal only.

        Args:
          done: batches done.
          total: batches to do.
        """
        if self._live is not None:
            self._live.evaluation = (done, total)
            self._live.update()

    def evaluation(
        self, result: Evaluation, *, train_loss: float | None = None, seconds: float
    ) -> None:
        """Prints a validation's result and ends its bar.

        Args:
          result: the losses.
          train_loss: the training loss at the same step, to compare with.
          seconds: how long the validation took.
        """
        if self._live is not None:
            self._live.evaluation = None
        text = f"step {result.step}  {format_losses(result.loss, result.bpb)}"
        if train_loss is not None:
            text += f"  (train {train_loss:.3f}, Δ {result.loss - train_loss:+.3f})"
        data = dataclasses.asdict(result) | {"ppl": perplexity(result.loss), "seconds": seconds}
        self._say("eval", Text(f"{text}  {format_duration(seconds)}"), data)

    def checkpoint(self, step: int, path: Path, size: int, seconds: float, kept: int) -> None:
        """Prints that a checkpoint is complete.

        Args:
          step: its step.
          path: its folder.
          size: bytes on disk.
          seconds: from the request to the last byte.
          kept: checkpoints there are now.
        """
        text = (
            f"step {step}  {path}  {format_bytes(size)} in {format_duration(seconds)}"
            f"  (keeping {kept})"
        )
        data = {"step": step, "path": str(path), "bytes": size, "seconds": seconds}
        self._say("ckpt", Text(safe_text(text)), data)

    def memory(self, hosts: Sequence[HostMemory], *, platform: str) -> None:
        """Prints the memory of all devices.

        Args:
          hosts: all hosts; without devices where the backend keeps no statistics.
          platform: the backend's name.
        """
        hosts = [host for host in hosts if host.used]
        if not hosts:
            self.line("mem", f"n/a ({platform} backend keeps no device statistics)")
            return
        lines = memory_lines(
            hosts,
            width=self._width - _LABEL_WIDTH - 1,
            ascii_only=encodable("█", self._encoding) != "█",
        )
        styled = [[(text, _LEVEL_STYLES[level]) for text, level in line] for line in lines]
        text = Text("\n").join(Text.assemble(*line) for line in styled)
        self._say("mem", text, {"hosts": [dataclasses.asdict(host) for host in hosts]})

    def sample(self, prompt: str, continuation: str) -> None:
        """Prints what the model made of a prompt."""
        prompt, continuation = (safe_text(t, multiline=True) for t in (prompt, continuation))
        text = Text.assemble((prompt, "bold"), continuation)
        self._say("sample", text, {"prompt": prompt})

    def warning(self, text: str) -> None:
        """Prints something that the user should know but that doesn't end the run."""
        self.line("warning", text)

    def failure(self, failure: Failure, error_file: Path | None = None) -> None:
        """Prints why a run ends, without a traceback; on stderr unless a terminal is drawn on.

        Args:
          failure: what went wrong.
          error_file: where the details are.
        """
        lines = [failure.title, failure.detail, *(f"Try: {hint}" for hint in failure.hints)]
        if error_file is not None:
            lines.append(f"Details: {error_file}")
        data = {"error_kind": failure.kind, "exit_code": failure.exit_code}
        text = safe_text("\n".join(line for line in lines if line), multiline=True)
        if self._rich is None:
            # Seen even where output goes to a file, and from the processes that are silent.
            plain = _hang(f"{'error':<{_LABEL_WIDTH}} ", text)
            print(encodable(plain, sys.stderr.encoding or "utf-8"), file=sys.stderr, flush=True)
            self._write_log(plain)
            if self._mode == "json":
                self._print_out(plain, "error", {"text": text, **data})
        else:
            self._say("error", Text(text), data)

    def summary(self, summary: RunSummary) -> None:
        """Prints the box that ends a run."""
        if self._live is not None:
            self._live.close()
        rows = [(label, safe_text(text, multiline=True)) for label, text in summary_rows(summary)]
        lines = ["Training summary", *(_hang(f"{k:<{_LABEL_WIDTH}} ", text) for k, text in rows)]
        self._write_log("\n".join(lines))
        if self._rich is not None:
            grid = _grid()
            for label, text in rows:
                grid.add_row(Text(label, style="bold cyan"), Text(text))
            panel = Panel(grid, title="Training summary", box=rich.box.ROUNDED, expand=False)
            self._rich.print(panel)
        self._print_out("\n".join(lines), "summary", dataclasses.asdict(summary))

    def _say(self, label: str, text: Text, data: Mapping[str, Any]) -> None:
        plain = _hang(f"{label:<{_LABEL_WIDTH}} ", text.plain)
        self._write_log(plain)
        if self._rich is not None:
            grid = _grid()
            grid.add_row(Text(label, style=_LABEL_STYLES.get(label, "bold cyan")), text)
            self._rich.print(grid)
        self._print_out(plain, label, {"text": text.plain, **data})

    def _print_out(self, plain: str, kind: str, data: Mapping[str, Any]) -> None:
        if self._mode == "json":
            plain = json.dumps(to_row({"kind": kind, **data}), allow_nan=False)
        if self._mode in ("json", "plain"):
            print(encodable(plain, self._encoding), file=self._file, flush=True)

    def _write_log(self, plain: str) -> None:
        if self._log is not None:
            self._log.write(plain + "\n")


def _resolve(mode: Mode, file: TextIO) -> Mode:
    if mode != "auto":
        return mode
    capable = os.environ.get("TERM") != "dumb" and (file.encoding or "").lower().startswith("utf")
    return "rich" if file.isatty() and capable else "plain"


def _open_log(path: Path | None, file: TextIO) -> TextIO | None:
    if path is None:
        return None
    log = path.open("a", buffering=1, encoding="utf-8", errors="replace", newline="\n")
    with contextlib.suppress(OSError):  # not every stream has a descriptor
        # A launcher may have sent our output to train.log already: don't write it twice.
        if os.path.sameopenfile(log.fileno(), file.fileno()):
            log.close()
            return None
    return log


def _grid() -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(min_width=_LABEL_WIDTH)
    grid.add_column()
    return grid


def _hang(label: str, text: str) -> str:
    return label + text.replace("\n", "\n" + " " * len(label))
