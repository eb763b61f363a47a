"""Takes in the steps' metrics: rows of metrics, the status, and the console's progress."""

from __future__ import annotations

import dataclasses
import time

import jax

from bitttt_jax.config import TrainConfig
from bitttt_jax.errors import DivergedError
from bitttt_jax.runs.console import Console
from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.metrics import MetricsWriter
from bitttt_jax.training import hardware
from bitttt_jax.training.meter import Meter
from bitttt_jax.training.step import StepMetrics

_SHOW_SECONDS = 0.5
_ROWS_BETWEEN_LOOKS = 10


class Progress:
    """The record of a run's training steps.

    Args:
      config: the run's.
      run: its folder.
      console: where progress is shown.
      metrics: where rows go.
      meter: averages them.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: RunDirectory,
        console: Console,
        metrics: MetricsWriter,
        meter: Meter,
    ):
        self._config = config
        self._run, self._console, self._metrics, self._meter = run, console, metrics, meter
        self._waiting: tuple[int, StepMetrics] | None = None
        self._shown = 0.0
        self.row: dict[str, float] = {}
        """Values of the last row, by tag."""

    def add(self, step: int, metrics: StepMetrics) -> None:
        """Takes in the step before this one, which may still be under way.

        So the devices always have a step to work on while Python looks at the one before.

        Args:
          step: number of the step, counted from 1.
          metrics: its results.

        Raises:
          DivergedError: too many updates in a row had to be skipped.
        """
        self.flush()
        self._waiting = step, metrics

    def flush(self) -> None:
        """Waits for the last step, and takes it in.

        Raises:
          DivergedError: too many updates in a row had to be skipped.
        """
        if self._waiting is None:
            return
        (step, metrics), self._waiting = self._waiting, None
        metrics = jax.device_get(metrics)
        self._meter.add(metrics)
        if step % self._config.log.every_steps == 0 or step == self._config.steps:
            self._write_row(step)
        self._show(step)
        self._check(step, metrics)

    def _check(self, step: int, metrics: StepMetrics) -> None:
        if metrics.skipped_in_row < self._config.optim.max_skipped:
            return
        saved = self._run.checkpoint_steps()
        raise DivergedError(
            f"{int(metrics.skipped_in_row)} updates in a row had a non-finite loss or gradient, "
            f"the last one at step {step}",
            f"the newest checkpoint is from step {saved[-1]}" if saved else "nothing was saved yet",
            "a lower optim.lr; a longer optim.warmup_steps; a smaller optim.clip_norm",
        )

    def _write_row(self, step: int) -> None:
        data = self._config.data
        self.row = self._meter.row() | {
            # Padding included: the same whether or not the run was interrupted.
            "train/tokens": float(step * data.batch_size * data.seq_len),
            "mem/host_peak_gib": hardware.host_peak_bytes() / 2**30,
        }
        if peaks := hardware.device_peak_bytes():
            self.row["mem/peak_gib"] = max(peaks) / 2**30
        self._metrics.scalars(step, self.row)
        # Several processes wait for each other here, so they do it less often.
        often = _ROWS_BETWEEN_LOOKS if jax.process_count() > 1 else 1
        if step // self._config.log.every_steps % often == 0:
            hosts = hardware.memory_by_host()
            self._run.update(devices=tuple(map(dataclasses.asdict, hosts)))

    def _show(self, step: int) -> None:
        steps, seconds = self._config.steps, self._meter.seconds_per_step()
        left = None if seconds is None else (steps - step) * seconds
        self._run.update(step=step, eta_s=left)
        now = time.monotonic()
        if self.row and (now - self._shown > _SHOW_SECONDS or step == steps):
            self._shown = now
            self._console.progress(step, steps, self.row, left)
