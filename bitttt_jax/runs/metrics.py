"""Metrics of a run: rows of metrics.jsonl and, beside them, TensorBoard event files.

Uses the records and summaries of the `tensorboard` package, but a plain file below them: its own
`EventFileWriter` would import TensorFlow wherever that happens to be installed.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitttt_jax.runs.directory import RunDirectory

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary


class MetricsWriter:
    """Writes what a run measures; x is always the optimizer step.

    Tags are `train/…`, `eval/…`, `perf/…`, `mem/…`, `ttt/…`, `quant/…`, `lr` and `grad_norm`.
    In a process that isn't the run's writer nothing is written.

    Args:
      run: the run's folder.
      tensorboard: write TensorBoard event files too.
      resumed_step: the step that a resumed run goes on from; TensorBoard forgets later ones.
    """

    def __init__(
        self, run: RunDirectory, *, tensorboard: bool = True, resumed_step: int | None = None
    ):
        self._run = run
        self._events: _EventFile | None = None
        if run.writer and tensorboard:
            first_step = 0 if resumed_step is None else resumed_step + 1
            self._events = _EventFile(run.tensorboard_path, first_step)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one row of numbers, on disk when this returns.

        Args:
          step: optimizer step.
          values: by tag; NaN and infinities become null in metrics.jsonl, which then names them
            under `nonfinite`.
        """
        if not values:
            return
        numbers = {tag: float(value) for tag, value in values.items()}
        self._run.metric({"step": int(step), **numbers})
        if self._events is not None:
            from tensorboard.compat.proto.summary_pb2 import Summary

            # Plain numbers rather than tensors: readers that aren't the web page (scripts with
            # an EventAccumulator) forget only these when a run is resumed.
            points = [Summary.Value(tag=tag, simple_value=x) for tag, x in numbers.items()]
            self._events.write(step, Summary(value=points))
            self._events.flush()

    def histogram(
        self, step: int, tag: str, counts: Sequence[float], edges: Sequence[float]
    ) -> None:
        """Writes a distribution to TensorBoard.

        Args:
          step: optimizer step.
          tag: its name.
          counts: values in each of n bins, as from `np.histogram` or counted on the device.
          edges: the n + 1 borders of the bins, ascending.

        Raises:
          ValueError: there isn't one border more than bins.
        """
        if len(edges) != len(counts) + 1:
            raise ValueError(f"{tag}: {len(counts)} counts need {len(counts) + 1} edges")
        if self._events is not None:
            self._events.write(step, _histogram_summary(tag, counts, edges))

    def text(self, step: int, tag: str, text: str) -> None:
        """Writes a text, such as a sample or the configuration, to TensorBoard.

        Args:
          step: optimizer step.
          tag: its name.
          text: shown as it is, not as Markdown.
        """
        if self._events is not None:
            from tensorboard.plugins.text.summary_v2 import text_pb

            # Four spaces make a Markdown code block, which shows a model's output unchanged.
            block = "\n".join("    " + line for line in text.splitlines())
            self._events.write(step, text_pb(tag, block.encode("utf-8", "replace")))

    def flush(self) -> None:
        """Writes out histograms and texts that are still in memory."""
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Writes out everything and closes the event file."""
        if self._events is not None:
            self._events.close()
            self._events = None


class _EventFile:
    """A new TensorBoard event file of this start of the run."""

    def __init__(self, folder: Path, first_step: int):
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010}.{nanoseconds:09}.{socket.gethostname()}"
        self._make_event = event_pb2.Event
        self._records = RecordWriter((folder / name).open("wb"))
        self._write_event(file_version="brain.Event:2")
        # Every start after the first makes TensorBoard forget the steps from `first_step` on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write_event(step=first_step, session_log=start)
        self.flush()

    def write(self, step: int, summary: Summary) -> None:
        self._write_event(step=int(step), summary=summary)

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _write_event(self, **fields: Any) -> None:
        event = self._make_event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())


def _histogram_summary(tag: str, counts: Sequence[float], edges: Sequence[float]) -> Summary:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.histogram.metadata import create_summary_metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    borders = np.asarray(edges, np.float64)
    # The form of the histograms plugin: a row [left, right, count] for each bin.
    bins = np.stack([borders[:-1], borders[1:], np.asarray(counts, np.float64)], axis=1)
    summary = Summary()
    summary.value.add(
        tag=tag,
        metadata=create_summary_metadata(display_name=None, description=None),
        tensor=make_tensor_proto(bins, dtype=np.float64),
    )
    return summary
