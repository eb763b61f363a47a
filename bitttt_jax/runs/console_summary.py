"""What a validation found, and what a run comes to in the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bitttt_jax.runs.console_text import (
    format_count,
    format_duration,
    format_losses,
    format_memory,
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of a validation."""

    step: int
    loss: float
    """Nats per token."""
    bpb: float | None = None
    """Bits per byte of text."""


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """What the box at the end of a run says."""

    status: str
    """In words: `finished`, `stopped after SIGTERM`, …"""
    step: int
    steps: int
    seconds: float
    """Wall time of this process's part of the run."""
    tokens: int
    """Tokens trained on in that time."""
    final: Evaluation | None = None
    best: Evaluation | None = None
    peak_bytes: int | None = None
    """Largest memory use of a device; None where the backend keeps no statistics."""
    checkpoints: Sequence[int] = ()
    checkpoint_folder: str = ""
    next_commands: Sequence[str] = ()


def summary_rows(summary: RunSummary) -> list[tuple[str, str]]:
    """The summary as (label, text), leaving out what isn't known."""
    rate = (
        f" ({format_count(summary.tokens / summary.seconds, 'tok/s')})" if summary.seconds else ""
    )
    rows = [
        ("status", f"{summary.status}, step {summary.step}/{summary.steps}"),
        ("time", format_duration(summary.seconds)),
        ("tokens", format_count(summary.tokens) + rate),
    ]
    for label, result in (("final", summary.final), ("best", summary.best)):
        if result is not None:
            rows.append((label, f"{format_losses(result.loss, result.bpb)}  (step {result.step})"))
    if summary.peak_bytes is not None:
        rows.append(("memory", f"{format_memory(summary.peak_bytes)} at most on a device"))
    if summary.checkpoints:
        steps = ", ".join(str(step) for step in summary.checkpoints)
        rows.append(("ckpt", f"{summary.checkpoint_folder}: {steps}"))
    if summary.next_commands:
        rows.append(("next", "\n".join(summary.next_commands)))
    return rows
