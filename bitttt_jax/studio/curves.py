"""The learning curves of the runs that somebody looks at, kept in memory and up to date."""

from __future__ import annotations

import collections
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitttt_jax.studio.cursors import encode

if TYPE_CHECKING:
    from bitttt_jax.runs.series import Series

_KEPT = 12


class Curves:
    """Series of runs, of which the latest few are kept."""

    def __init__(self) -> None:
        self._kept: collections.OrderedDict[Path, tuple[Series, threading.Lock]]
        self._kept = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(
        self, id: str, folder: Path, tags: Sequence[str] | None, points: int
    ) -> dict[str, Any]:
        """A run's curves as JSON values.

        Args:
          id: of the run.
          folder: its folder.
          tags: which ones; None for all.
          points: most points of a curve.
        """
        from bitttt_jax.runs.series import decimate  # needs numpy, which takes a while to load

        series, lock = self._series(folder)
        with lock:
            series.update()
            wanted = series.curves if tags is None else [t for t in tags if t in series.curves]
            found = {}
            for tag in wanted:
                curve = series.curves[tag]
                steps, values = decimate(curve.steps, curve.values, points)
                found[tag] = {"step": steps, "value": values}
            return {
                "tags": found,
                "all_tags": sorted(series.curves),
                "cursor": encode({f"m:{id}": series.position}),
            }

    def _series(self, folder: Path) -> tuple[Series, threading.Lock]:
        from bitttt_jax.runs.series import Series

        with self._lock:
            if folder not in self._kept:
                self._kept[folder] = Series(folder / "metrics.jsonl"), threading.Lock()
            self._kept.move_to_end(folder)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[folder]
