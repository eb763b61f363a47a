"""The picture of a run that `bitttt watch` draws: styled lines, as many as there is room for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.text import Text

from bitttt_jax.commands.watch_run import WatchedRun
from bitttt_jax.runs.console_memory import memory_lines
from bitttt_jax.runs.console_text import (
    encodable,
    format_bytes,
    format_count,
    format_duration,
    safe_text,
)
from bitttt_jax.runs.series import Curve
from bitttt_jax.runs.text_plot import plot, sparkline

_LABEL = 9
_PLOT_STYLES = {"axis": "dim", "line": "cyan", "mark": "bold yellow"}
_MEMORY_STYLES = {"": "", "high": "yellow", "full": "bold red"}
_STATE_STYLES = {
    "finished": "bold green", "failed": "bold red", "lost": "bold red", "stopped": "bold yellow",
}  # fmt: skip
_HEALTH = {
    "ternary": (
        ("quant/zero_share", "{:.1%} zeros"),
        ("quant/flip_share", "{:.2%} flipped"),
        ("quant/threshold_distance", "{:.3f} scales from a threshold"),
    ),
    "ttt": (
        ("ttt/inner_loss_initial", "inner loss {:.4g} at first"),
        ("ttt/inner_loss_current", "{:.4g} before a mini-batch"),
        ("ttt/inner_loss_updated", "{:.4g} after it"),
        ("ttt/fast_drift", "drift {:.3g}"),
    ),
}
_SPARK = 24
_LEAST_PLOT, _MOST_PLOT = 6, 16
_SAMPLE_LINES = 4


@dataclasses.dataclass(frozen=True)
class Page:
    """Where a picture is drawn."""

    width: int
    """Columns."""
    height: int
    """Rows; the newest lines of the log fill what is left."""
    encoding: str = "utf-8"
    """What the terminal understands."""

    @property
    def ascii_only(self) -> bool:
        """Whether to draw with ASCII characters."""
        return encodable("⣿█", self.encoding) != "⣿█"


def picture(run: WatchedRun, page: Page) -> list[Text]:
    """Draws a run.

    Args:
      run: what is known of it.
      page: where to.

    Returns:
      At most `page.height` lines of at most `page.width` cells.
    """
    head = [*_header(run, page), *_card(run)]
    numbers = [*_numbers(run, page), *_memory(run, page), *_checkpoints(run)]
    sample = _sample(run)
    room = page.height - len(head) - len(numbers) - len(sample) - 1
    plot_rows = min(max(room // 2, _LEAST_PLOT), _MOST_PLOT)
    lines = [*head, *_losses(run, page, plot_rows), *numbers, *sample]
    left = page.height - len(lines)
    log = run.log[-left:] if left > 0 else []
    lines += [_labelled("" if i else "log", line) for i, line in enumerate(log)]
    return [_fitted(line, page) for line in lines[: page.height]]


def _header(run: WatchedRun, page: Page) -> list[Text]:
    status, state = run.seen.status, run.seen.state
    word = "not responding" if run.seen.not_responding else state
    pieces = [f"step {status.step}/{status.steps}"]
    if status.steps:
        pieces.append(f"{100 * status.step // status.steps} %")
    if status.eta_s is not None and not run.seen.over:
        pieces.append(f"eta {format_duration(status.eta_s)}")
    if status.exit_code is not None:
        pieces.append(f"exit code {status.exit_code}")
    if status.phase and not run.seen.over:
        pieces.append(status.phase)
    style = "bold red" if run.seen.not_responding else _STATE_STYLES.get(state, "bold cyan")
    name = Text.assemble((f"{run.name}  ", "bold"), (word, style), f"  {'  '.join(pieces)}")
    full, empty = ("=", "-") if page.ascii_only else ("━", "─")
    done = page.width * min(status.step, status.steps) // max(status.steps, 1)
    return [name, Text.assemble((full * done, "cyan"), (empty * (page.width - done), "dim"))]


def _card(run: WatchedRun) -> list[Text]:
    """Why the run isn't well, and what to try."""
    told = run.explanation
    if told is None:
        return []
    lines = [_labelled(told.kind.replace("_", " "), told.title, "bold red")]
    lines += [_labelled("", told.why)] if told.why else []
    return lines + [_labelled("" if i else "try", hint) for i, hint in enumerate(told.hints)]


def _losses(run: WatchedRun, page: Page, rows: int) -> list[Text]:
    curves = run.series.curves
    train, held_out = (curves.get(tag, Curve()) for tag in ("train/loss", "eval/loss"))
    drawn = plot(train, held_out, width=page.width, height=rows, ascii_only=page.ascii_only)
    if not drawn:
        return [_labelled("loss", "nothing was measured yet")]
    title = Text("loss".ljust(_LABEL), "bold cyan")
    for label, tag, style in (("train", "train/loss", "line"), ("validation", "eval/loss", "mark")):
        value, bits = run.series.last(tag), run.series.last(tag.replace("loss", "bpb"))
        if value is not None:
            mark = "o " if style == "mark" else ""
            per_byte = f" ({bits:.3f} bits a byte)" if bits is not None else ""
            title.append(f"{mark}{label} {value:.4g}{per_byte}   ", _PLOT_STYLES[style])
    return [title, *(Text.assemble(*((t, _PLOT_STYLES[part]) for t, part in row)) for row in drawn)]


def _numbers(run: WatchedRun, page: Page) -> list[Text]:
    last, lines = run.series.last, []
    for label, tag in (("lr", "lr"), ("norm", "grad_norm"), ("speed", "perf/tokens_per_s")):
        value = last(tag)
        if value is None:
            continue
        text = format_count(value, "tok/s") if label == "speed" else f"{value:.3g}"
        spark = sparkline(run.series.curves[tag].values, _SPARK, ascii_only=page.ascii_only)
        lines.append(_labelled(label, f"{text:14} {spark}  {_beside(run, label)}"))
    for label, parts in _HEALTH.items():
        known = [form.format(value) for tag, form in parts if (value := last(tag)) is not None]
        lines += [_labelled(label, ", ".join(known))] if known else []
    return lines


def _beside(run: WatchedRun, label: str) -> str:
    """What a number's line says after its curve."""
    last = run.series.last
    if label == "norm":
        skipped = last("train/skipped") or 0
        return f"{skipped:.0f} updates skipped" if skipped else ""
    if label == "speed":
        seconds, share = last("perf/step_s"), last("perf/mfu")
        pieces = [f"{seconds:.3g} s a step"] if seconds else []
        return ", ".join([*pieces, *([f"{share:.0%} of the peak rate"] if share else [])])
    return ""


def _memory(run: WatchedRun, page: Page) -> list[Text]:
    host, device = run.series.last("mem/host_peak_gib"), run.series.last("mem/peak_gib")
    pieces = [f"{device:.3g} GiB peak of a device"] if device is not None else []
    pieces += [f"{host:.3g} GiB peak of the process"] if host is not None else []
    lines = [_labelled("memory", ", ".join(pieces))] if pieces else []
    if run.hosts:
        grid = memory_lines(run.hosts, width=page.width - _LABEL, ascii_only=page.ascii_only)
        lines += [
            Text.assemble(" " * _LABEL, *((text, _MEMORY_STYLES[level]) for text, level in line))
            for line in grid
        ]
    return lines


def _checkpoints(run: WatchedRun) -> list[Text]:
    def describe(step: int) -> str:
        size = f" {format_bytes(run.sizes[step])}" if step in run.sizes else ""
        return f"{step}{size}{' (best)' if step == run.best_step else ''}"

    steps = run.checkpoints
    return [_labelled("saved", ", ".join(map(describe, reversed(steps))))] if steps else []


def _sample(run: WatchedRun) -> list[Text]:
    if run.sample is None:
        return []
    step, text = run.sample
    lines = safe_text(text, multiline=True).splitlines()
    more = len(lines) > _SAMPLE_LINES
    shown = [f"step {step}:", *lines[:_SAMPLE_LINES], *(["…"] if more else [])]
    return [_labelled("" if i else "sample", line) for i, line in enumerate(shown)]


def _labelled(label: str, text: str, style: str = "bold cyan") -> Text:
    return Text.assemble((f"{label:{_LABEL - 1}} ", style), safe_text(text))


def _fitted(line: Text, page: Page) -> Text:
    line = line.copy()
    line.no_wrap = True
    line.plain = encodable(line.plain, page.encoding)
    line.truncate(page.width)
    return line


def plain(lines: Sequence[Text]) -> str:
    """The text of a picture without styles."""
    return "\n".join(line.plain.rstrip() for line in lines)
