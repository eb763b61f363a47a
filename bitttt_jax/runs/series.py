"""Curves of a run: the rows of metrics.jsonl by tag, kept up to date, and thinned out to draw."""

from __future__ import annotations

import dataclasses
import itertools
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitttt_jax.runs.follow import Follower, Position, Row

_OTHER = ("t", "step", "nonfinite")
_MOST_STEPS = 2.0**53

Floats = NDArray[np.float64]


@dataclasses.dataclass
class Curve:
    """The points of a tag, by step."""

    steps: array[int] = dataclasses.field(default_factory=lambda: array("q"))
    values: array[float] = dataclasses.field(default_factory=lambda: array("d"))


class Series:
    """All curves of a run.

    Args:
      path: its metrics.jsonl.
    """

    def __init__(self, path: Path):
        self._follower = Follower(path)
        self.curves: dict[str, Curve] = {}
        """By tag; values that weren't finite are left out."""

    @property
    def position(self) -> Position:
        """How far the file was read."""
        return self._follower.position

    def update(self) -> list[Row]:
        """Takes in what is new; returns the rows."""
        rows, restarted = self._follower.read()
        if restarted:
            self.curves.clear()
        for tag, (steps, values) in _columns(rows).items():
            curve = self.curves.setdefault(tag, Curve())
            curve.steps.frombytes(steps.astype(np.int64).tobytes())
            curve.values.frombytes(values.tobytes())
        return rows

    def last(self, tag: str) -> float | None:
        """The newest value of a tag."""
        curve = self.curves.get(tag)
        return curve.values[-1] if curve and curve.values else None


def decimate(
    steps: Sequence[int], values: Sequence[float], points: int
) -> tuple[list[int], list[float]]:
    """Thins a curve out, but keeps its ends and peaks: each part's least and greatest value.

    Args:
      steps: ascending.
      values: as many.
      points: most points to keep, at least 4.

    Returns:
      Steps and values, in order.
    """
    count = len(steps)
    if count <= points:
        return list(steps), list(values)
    width = -(-count // max((points - 2) // 2, 1))
    parts = -(-count // width)
    padded = np.full(parts * width, values[-1], np.float64)
    padded[:count] = values
    table = padded.reshape(parts, width)
    firsts = np.arange(parts) * width
    extremes = firsts + table.argmin(axis=1), firsts + table.argmax(axis=1)
    kept = np.unique(np.concatenate([[0, count - 1], *extremes]).clip(max=count - 1))
    return [steps[i] for i in kept], [values[i] for i in kept]


def _columns(rows: Sequence[Row]) -> dict[str, tuple[Floats, Floats]]:
    """Steps and values by tag, in the order of the rows."""
    groups: dict[tuple[str, ...], tuple[list[int], list[Sequence[object]]]] = {}
    for index, row in enumerate(rows):
        indices, values = groups.setdefault(tuple(row), ([], []))
        indices.append(index)
        values.append(tuple(row.values()))
    parts: dict[str, list[tuple[Floats, Floats, Floats]]] = {}
    for tags, (indices, values) in groups.items():
        if "step" not in tags:
            continue
        table, order = _table(values), np.array(indices, np.float64)
        steps = table[:, tags.index("step")]
        for tag, column in zip(tags, table.T, strict=True):
            kept = np.isfinite(column) & (np.abs(steps) < _MOST_STEPS)
            if tag not in _OTHER and kept.any():
                found = order[kept], steps[kept], column[kept]
                parts.setdefault(tag, []).append(found)
    return {tag: _joined(found) for tag, found in parts.items()}


def _joined(parts: list[tuple[Floats, Floats, Floats]]) -> tuple[Floats, Floats]:
    if len(parts) == 1:
        return parts[0][1:]
    order, steps, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    indices = np.argsort(order)
    return steps[indices], values[indices]


def _table(rows: list[Sequence[object]]) -> Floats:
    """Rows of values as numbers; what is none becomes NaN."""
    flat = itertools.chain.from_iterable(rows)
    try:
        table = np.fromiter(flat, np.float64, len(rows) * len(rows[0]))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        numbers = (x if isinstance(x, int | float) else np.nan for row in rows for x in row)
        table = np.fromiter(numbers, np.float64, len(rows) * len(rows[0]))
    return table.reshape(len(rows), -1)
