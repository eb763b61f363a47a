"""Figures of replies as they come: rates, latencies, memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from bitttt_jax.runs.console_text import format_memory
from bitttt_jax.runs.memory_use import MemoryUse, host_memory, process_memory

if TYPE_CHECKING:
    from bitttt_jax.inference.requests import Completion, Handle, Piece

_PERCENTILES = (50, 95, 99)


@dataclasses.dataclass
class Reply:
    """When the parts of a reply came, in seconds of `time.perf_counter`."""

    submitted: float
    pieces: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    """Time and number of tokens of each."""

    @property
    def tokens(self) -> int:
        """Of the whole reply."""
        return sum(count for _, count in self.pieces)

    @property
    def first(self) -> float:
        """Seconds until the first token."""
        return self.pieces[0][0] - self.submitted

    @property
    def rate(self) -> float:
        """Tokens a second, once everything is compiled; 0 where there were too few to tell."""
        if len(self.pieces) < 3:
            return 0.0
        (start, _), later = self.pieces[1], self.pieces[2:]
        return sum(count for _, count in later) / (later[-1][0] - start)

    def token_seconds(self) -> Iterator[float]:
        """What each token after the first piece took; those that come together share the time."""
        for (before, _), (now, count) in zip(self.pieces, self.pieces[1:], strict=False):
            yield from [(now - before) / count] * count


class Figures:
    """Figures of all replies of a process."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []

    def watch(self, handle: Handle) -> Iterator[Piece]:
        """The pieces of a reply, timed on their way."""
        reply = Reply(handle.times.submitted)
        self.replies.append(reply)
        for piece in handle:
            if piece.tokens:
                reply.pieces.append((time.perf_counter(), len(piece.tokens)))
            yield piece

    def add(self, completion: Completion) -> None:
        """Counts a reply in by its first and its last token's time, one of several at once."""
        times, count = completion.times, len(completion.tokens)
        pieces = [(times.first, 1), (times.finished, count - 1)] if count > 1 else []
        self.replies.append(Reply(times.started, pieces))

    def lines(self) -> list[str]:
        """What there is to say so far."""
        replies = [reply for reply in self.replies if reply.pieces]
        tokens = sum(reply.tokens for reply in replies)
        lines = [f"replies       {len(replies)}, {tokens:,} tokens"]
        if replies:
            lines.append(f"first token   {_percentiles([reply.first for reply in replies])}")
        later = [seconds for reply in replies for seconds in reply.token_seconds()]
        if later:
            lines.append(
                f"later tokens  {_percentiles(later)}, {len(later) / sum(later):,.1f} tok/s"
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


def _percentiles(seconds: Iterable[float]) -> str:
    values = np.percentile(list(seconds), _PERCENTILES)
    return ", ".join(
        f"p{percent} {_duration(value)}"
        for percent, value in zip(_PERCENTILES, values, strict=True)
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
