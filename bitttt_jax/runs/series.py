"""Curves of a run: the rows of metrics.jsonl by tag, kept up to date, and thinned out to draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from bitttt_jax.runs.follow import Follower, Row

_OTHER = ("t", "step", "nonfinite")


@dataclasses.dataclass
class Curve:
    """The points of a tag, by step."""

    steps: list[int] = dataclasses.field(default_factory=list)
    values: list[float] = dataclasses.field(default_factory=list)


class Series:
    """All curves of a run.

    Args:
      path: its metrics.jsonl.
    """

    def __init__(self, path: Path):
        self._follower = Follower(path)
        self.curves: dict[str, Curve] = {}
        """By tag; values that weren't finite are left out."""

    def update(self) -> list[Row]:
        """Takes in what is new; returns the rows."""
        rows, restarted = self._follower.read()
        if restarted:
            self.curves.clear()
        for row in rows:
            self._add(row)
        return rows

    def last(self, tag: str) -> float | None:
        """The newest value of a tag."""
        curve = self.curves.get(tag)
        return curve.values[-1] if curve and curve.values else None

    def _add(self, row: Row) -> None:
        step = row.get("step")
        if not isinstance(step, int):
            return
        for tag, value in row.items():
            if tag not in _OTHER and isinstance(value, int | float):
                curve = self.curves.setdefault(tag, Curve())
                curve.steps.append(step)
                curve.values.append(float(value))


def decimate(
    steps: Sequence[int], values: Sequence[float], points: int
) -> tuple[list[int], list[float]]:
    """Thins a curve out, but keeps its peaks: the least and the greatest value of each part.

    Args:
      steps: ascending.
      values: as many.
      points: most points to keep, at least 2.

    Returns:
      Steps and values, in order.
    """
    count, parts = len(steps), max(points // 2, 1)
    if count <= points:
        return list(steps), list(values)
    kept: list[int] = []
    for part in range(parts):
        inside = range(part * count // parts, (part + 1) * count // parts)
        low, high = min(inside, key=values.__getitem__), max(inside, key=values.__getitem__)
        kept += sorted({low, high})
    return [steps[i] for i in kept], [values[i] for i in kept]
