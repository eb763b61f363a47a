"""Curves drawn with characters: braille dots where the terminal has them, ASCII elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

from bitttt_jax.runs.series import Curve, decimate

Part = Literal["axis", "line", "mark"]
Segment = tuple[str, Part]
Line = list[Segment]

_BRAILLE = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_CELL, _ASCII_CELL = (2, 4), (1, 1)  # dots across and down
_MARK, _ASCII_LINE = "o", "*"
_LEVELS, _ASCII_LEVELS = "▁▂▃▄▅▆▇█", "_.-:=+*#"
_LABEL = 7
# The first losses of a run are so high that the rest would be a flat line.
_SHOWN_SHARE, _MANY = 0.97, 40


def plot(
    line: Curve, marks: Curve, *, width: int, height: int, ascii_only: bool = False
) -> list[Line]:
    """Draws a curve as a line, and the points of another one on the same axes as marks.

    What is above 97 % of the values is drawn at the upper edge.

    Args:
      line: its points are joined.
      marks: drawn as single characters, over the line.
      width: columns to use, labels included; at least 20.
      height: rows to use, that of the steps included; at least 3.
      ascii_only: draw with ASCII characters.

    Returns:
      Rows of segments; empty if there are no points.
    """
    if not len(line.steps) + len(marks.steps):
        return []
    across, down = _ASCII_CELL if ascii_only else _CELL
    columns, rows = width - _LABEL - 2, height - 1
    last_step = max([*line.steps[-1:], *marks.steps[-1:], 1])
    thinned = decimate(line.steps, line.values, 4 * columns * across)
    low, high = _range([*thinned[1], *marks.values])

    def place(step: int, value: float, dots_x: int, dots_y: int) -> tuple[int, int]:
        share = (high - min(max(value, low), high)) / (high - low)
        return round(step / last_step * (dots_x - 1)), round(share * (dots_y - 1))

    cells: dict[tuple[int, int], int] = {}
    size = columns * across, rows * down
    points = [place(step, value, *size) for step, value in zip(*thinned, strict=True)]
    for x, y in _joined(points):
        cell = x // across, y // down
        cells[cell] = cells.get(cell, 0) | _DOTS[y % down][x % across]
    marked = {
        place(step, value, columns, rows)
        for step, value in zip(marks.steps, marks.values, strict=True)
    }
    drawn = [
        [_segment(cells.get((x, y), 0), (x, y) in marked, ascii_only) for x in range(columns)]
        for y in range(rows)
    ]
    axis = "|" if ascii_only else "│"
    labels = {0: high, rows // 2: high - (high - low) * (rows // 2) / max(rows - 1, 1)}
    labels[rows - 1] = low
    heads = (
        f"{labels[y]:{_LABEL}.4g} {axis}" if y in labels else f"{'':{_LABEL}} {axis}"
        for y in range(rows)
    )
    foot = f"{'':{_LABEL}}  0{last_step:>{columns - 1}}"
    return [*([(head, "axis"), *row] for head, row in zip(heads, drawn, strict=True)), _axis(foot)]


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """The course of a value in one row, from its least to its greatest.

    Args:
      values: in their order; each column shows the mean of some.
      width: most columns.
      ascii_only: draw with ASCII characters.
    """
    levels = _ASCII_LEVELS if ascii_only else _LEVELS
    columns = min(width, len(values))
    parts = [
        values[i * len(values) // columns : (i + 1) * len(values) // columns]
        for i in range(columns)
    ]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means, default=0.0), max(means, default=0.0)
    span = (high - low) or 1.0
    return "".join(levels[round((mean - low) / span * (len(levels) - 1))] for mean in means)


def _range(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    if len(ordered) > _MANY:
        high = ordered[round(_SHOWN_SHARE * (len(ordered) - 1))]
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _joined(points: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """All dots of the straight lines from point to point."""
    yield from points[:1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        dots = max(abs(x1 - x0), abs(y1 - y0))
        for i in range(1, dots + 1):
            yield round(x0 + (x1 - x0) * i / dots), round(y0 + (y1 - y0) * i / dots)


def _segment(dots: int, marked: bool, ascii_only: bool) -> Segment:
    if marked:
        return _MARK, "mark"
    if not dots:
        return " ", "axis"
    return (_ASCII_LINE if ascii_only else chr(_BRAILLE + dots)), "line"


def _axis(text: str) -> Line:
    return [(text, "axis")]
