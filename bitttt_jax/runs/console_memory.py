"""Device memory as text: a glyph a device, a cell a host, as many cells a row as fit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

from bitttt_jax.runs.console_text import format_memory

Level = Literal["", "high", "full"]
Segment = tuple[str, Level]
Line = list[Segment]

HIGH, FULL = 0.85, 0.95
_GLYPHS = " ▁▂▃▄▅▆▇█"
_ASCII_GLYPHS = ".:-=+*%#@"
_DETAILED_DEVICES = 64
_GRID_DEVICES = 512
_WORST_HOSTS = 8
_GAP = "   "
_BINS = (0.5, 0.7, HIGH, FULL)


@dataclasses.dataclass(frozen=True)
class HostMemory:
    """Memory of the devices of one host, in bytes."""

    name: str
    used: tuple[int, ...]
    """Per device; empty where the backend keeps no statistics."""
    limit: int
    """What one device can hold."""

    @property
    def worst(self) -> float:
        """Used share of the fullest device."""
        return max(self.used) / self.limit


def memory_lines(
    hosts: Sequence[HostMemory], *, width: int, ascii_only: bool = False
) -> list[Line]:
    """Draws the memory of all devices.

    Up to 64 devices every host shows its range in GiB, up to 512 its largest share, beyond that
    only the eight fullest hosts are drawn below a count of devices by share.

    Args:
      hosts: all hosts, each with at least one device.
      width: columns to use.
      ascii_only: draw with ASCII characters.

    Returns:
      Lines of segments; a segment's level says how full its device is.
    """
    devices = sum(len(host.used) for host in hosts)
    head: list[Line] = []
    if devices > _GRID_DEVICES:
        head = [[(_histogram(hosts, devices), "")]]
        hosts = sorted(hosts, key=lambda host: -host.worst)[:_WORST_HOSTS]
    cells = [_cell(host, devices <= _DETAILED_DEVICES, ascii_only) for host in hosts]
    cell_width = max(map(_length, cells))
    per_row = max(1, (width + len(_GAP)) // (cell_width + len(_GAP)))
    rows = [_row(cells[i : i + per_row], cell_width) for i in range(0, len(cells), per_row)]
    return [*head, *rows, *([_worst_device(hosts)] if devices > 1 else [])]


def _level(share: float) -> Level:
    return "full" if share > FULL else "high" if share > HIGH else ""


def _cell(host: HostMemory, detailed: bool, ascii_only: bool) -> Line:
    glyphs = _ASCII_GLYPHS if ascii_only else _GLYPHS
    shares = [used / host.limit for used in host.used]
    bars: Line = [(glyphs[min(8, max(0, round(share * 8)))], _level(share)) for share in shares]
    if detailed:
        low, high = (f"{bytes_ / 2**30:.3g}" for bytes_ in (min(host.used), max(host.used)))
        span = high if low == high else f"{low}–{high}"
        return [(f"{host.name} ", ""), *bars, (f" {span}/{host.limit / 2**30:.3g} GiB", "")]
    return [(f"{host.name} ", ""), *bars, (f" {host.worst:4.0%}", _level(host.worst))]


def _row(cells: Sequence[Line], cell_width: int) -> Line:
    row: Line = []
    for cell in cells:
        row += [*cell, (" " * (cell_width - _length(cell)) + _GAP, "")]
    return [*row[:-1], (row[-1][0].rstrip(), "")]


def _worst_device(hosts: Sequence[HostMemory]) -> Line:
    host = max(hosts, key=lambda host: host.worst)
    index = host.used.index(max(host.used))
    text = f"fullest: {host.name}:{index}, {format_memory(host.used[index])}, {host.worst:.0%}"
    return [(text, _level(host.worst))]


def _histogram(hosts: Sequence[HostMemory], devices: int) -> str:
    shares = [used / host.limit for host in hosts for used in host.used]
    edges = (0.0, *_BINS, float("inf"))
    counts = [
        sum(low <= share < high for share in shares) for low, high in itertools.pairwise(edges)
    ]
    names = [f"under {_BINS[0]:.0%}", *(f"from {low:.0%}" for low in _BINS)]
    parts = [f"{name} {count}" for name, count in zip(names, counts, strict=True)]
    return f"{devices} devices by share used: " + ", ".join(parts)


def _length(line: Line) -> int:
    return sum(len(text) for text, _ in line)
