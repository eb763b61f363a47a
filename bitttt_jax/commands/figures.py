"""Figures of replies as they come: rates, latencies, memory."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bitttt_jax.runs.console_text import format_memory
from bitttt_jax.runs.memory_use import MemoryUse, host_memory, process_memory

if TYPE_CHECKING:
    from bitttt_jax.inference.requests import Completion, Handle, Piece

_PERCENTILES = (50, 95, 99)


@dataclasses.dataclass
class Reply:
    """How long the parts of a reply took."""

    tokens: int = 0
    """Of the whole reply."""
    first: float = 0.0
    """Seconds until the first token."""
    later: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    """Seconds and number of tokens of what came after it, once everything was compiled."""

    @property
    def rate(self) -> float:
        """Later tokens a second; 0 where there were too few to tell."""
        return _rate(self.later)


class Figures:
    """Figures of all replies of a process."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []

    def watch(self, handle: Handle) -> Iterator[Piece]:
        """The pieces of a reply, timed on their way."""
        reply, before = Reply(), 0.0
        self.replies.append(reply)
        for number, piece in enumerate(handle):
            now = time.perf_counter()
            if number == 0:
                reply.first = now - handle.times.submitted
            # A second piece of one token may have been waited for the compiler.
            elif piece.tokens and (number > 1 or len(piece.tokens) > 1):
                reply.later.append((now - before, len(piece.tokens)))
            reply.tokens += len(piece.tokens)
            before = now
            yield piece

    def add(self, completion: Completion) -> None:
        """Counts in one of several replies that came at once."""
        times, count = completion.times, len(completion.tokens)
        later = [(times.finished - times.first, count - 1)] if count > 1 else []
        self.replies.append(Reply(count, times.first - times.started, later))

    def lines(self) -> list[str]:
        """What there is to say so far."""
        replies = [reply for reply in self.replies if reply.tokens]
        tokens = sum(reply.tokens for reply in replies)
        lines = [f"replies       {len(replies)}, {tokens:,} tokens"]
        if replies:
            lines.append(f"first token   {_percentiles([reply.first for reply in replies])}")
        later = [part for reply in replies for part in reply.later]
        if later:
            # Tokens that come together share the time.
            seconds = itertools.chain.from_iterable([time / n] * n for time, n in later)
            lines.append(
                f"later tokens  {_percentiles(seconds)}; {_rate(later):,.1f} tokens/s a row"
            )
        return [*lines, *memory_lines()]


def memory_lines() -> list[str]:
    """Memory of this process, of the host, and of devices that have their own."""
    from bitttt_jax.training.hardware import device_peak_bytes, host_peak_bytes, memory_by_host

    now = process_memory()
    peak = max(host_peak_bytes(), now)
    lines = [
        f"memory        {format_memory(now)} now, {format_memory(peak)} at most",
        f"host memory   {host_memory()}",
    ]
    for host in memory_by_host():
        for index, (used, most) in enumerate(zip(host.used, device_peak_bytes(), strict=True)):
            use = MemoryUse(used, host.limit)
            sizes = f"{format_memory(used)} now, {format_memory(most)} at most"
            lines.append(f"device {index}      {sizes}; {use}")
    return lines


def _rate(parts: Sequence[tuple[float, int]]) -> float:
    return sum(count for _, count in parts) / sum(seconds for seconds, _ in parts) if parts else 0.0


def _percentiles(seconds: Iterable[float]) -> str:
    values = np.percentile(list(seconds), _PERCENTILES)
    return ", ".join(
        f"p{percent} {_duration(value)}"
        for percent, value in zip(_PERCENTILES, values, strict=True)
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
