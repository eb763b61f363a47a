"""The training loop: steps, and between them validation, health reports, checkpoints and stops."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from typing import Any

import jax

from bitttt_jax.config import TrainConfig
from bitttt_jax.data.prefetch import prefetch
from bitttt_jax.distributed.signals import StopRequest
from bitttt_jax.errors import ExitCode
from bitttt_jax.models.counts import Counts
from bitttt_jax.runs.checkpoints import Checkpoints
from bitttt_jax.runs.console import Console
from bitttt_jax.runs.console_summary import RunSummary
from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.metrics import MetricsWriter
from bitttt_jax.training import hardware
from bitttt_jax.training.health import HealthMonitor
from bitttt_jax.training.meter import Meter
from bitttt_jax.training.progress import Progress
from bitttt_jax.training.setup import Compiled, Data
from bitttt_jax.training.step import TrainState
from bitttt_jax.training.validation import Sampler, Validation


@dataclasses.dataclass
class Trainer:
    """What the loop works with; made by `bitttt_jax.train`."""

    config: TrainConfig
    run: RunDirectory
    console: Console
    metrics: MetricsWriter
    checkpoints: Checkpoints
    data: Data
    compiled: Compiled
    counts: Counts
    sample: Sampler
    """Continues the configured prompt with given parameters."""

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.meter = Meter(
            self.data.train.bytes_per_prediction,
            self.counts.train_flops,
            hardware.measure_peak(self.config.model.compute_dtype),
            self.compiled.mesh.size,
        )
        outputs = self.config, self.run, self.console, self.metrics
        self.progress = Progress(*outputs, self.meter)
        self.validation = Validation(
            *outputs, self.data, self.compiled, self.checkpoints, self.sample
        )
        self.health = HealthMonitor(self.config, self.compiled.mesh)

    def fit(self, state: TrainState, start: int, stop: StopRequest) -> ExitCode:
        """Trains from a state at step `start` to the end, or until asked to stop.

        Args:
          state: its arrays are donated to the first step.
          start: steps done so far.
          stop: asked after every step.

        Raises:
          DivergedError: too many updates in a row had to be skipped.
        """
        code, done, steps = None, start, self.config.steps
        self.run.update(state="running", steps=steps, step=start)
        with (
            contextlib.closing(prefetch(self._read, start, steps)) as batches,
            jax.set_mesh(self.compiled.mesh),
        ):
            for step, batch in batches:
                state, metrics = self.compiled.train_step(state, batch)
                done = step + 1
                self.progress.add(done, metrics)
                code = stop.poll(done)
                self._pause(state, done, batch, is_last=code is not None or done == steps)
                if code is not None:
                    break
            if done == steps:
                code = ExitCode.OK
                self.validation.measure_all(state.params, done)
        assert code is not None
        self._finish(done, code)
        return code

    def _read(self, step: int) -> Any:
        feed = self.compiled.train_feed
        return feed.to_devices(self.data.train.batch(step, feed.rows))

    def _pause(self, state: TrainState, step: int, batch: Any, *, is_last: bool) -> None:
        """Validation, health report and checkpoint, as far as they are due.

        Whoever asked to stop may not wait long: then the checkpoint is all that is done.
        """
        is_stopping = is_last and step < self.config.steps
        every = self.config.log.health_every_steps
        validates = self.validation.is_due(step) and not is_stopping
        reports = bool(every) and step % every == 0 and not is_stopping
        saves = self.checkpoints.due(step) or is_last
        self._report_saved()
        if not (validates or reports or saves):
            return
        self.progress.flush()
        with self.meter.paused():
            values: dict[str, float] = {}
            if validates:
                train_loss = self.progress.row.get("train/loss")
                values = self.validation.measure(state.params, step, train_loss)
            if reports:
                self._report_health(state.params, step, batch)
            if saves:
                self.run.update(state="stopping" if is_stopping else "saving")
                self.checkpoints.save(step, state, metrics=values, force=True)
        if not is_stopping:
            self.run.update(state="running")

    def _report_health(self, params: Any, step: int, batch: Any) -> None:
        self.metrics.scalars(step, self.health.report(params, batch))
        if self.health.histogram is not None:
            self.metrics.histogram(step, "quant/latent", *self.health.histogram)

    def _report_saved(self) -> None:
        for saved in self.checkpoints.poll():
            path = self.run.checkpoints_path / str(saved.step)  # as the user named the folder
            self.run.event("checkpoint", step=saved.step, path=str(path), bytes=saved.size)
            kept = len(self.checkpoints.steps())
            self.console.checkpoint(saved.step, path, saved.size, saved.seconds, kept)

    def _finish(self, step: int, code: ExitCode) -> None:
        """Waits for the last checkpoint and says what the run came to."""
        is_finished = step == self.config.steps
        self.run.update(state="saving" if is_finished else "stopping", step=step)
        self.checkpoints.wait()
        self._report_saved()
        if not is_finished:
            self.run.event("stop", step=step, exit_code=int(code))
        peaks = hardware.device_peak_bytes()
        best, last = self.validation.best, self.validation.last
        self.console.summary(
            RunSummary(
                status="finished" if is_finished else "stopped and saved",
                step=step,
                steps=self.config.steps,
                seconds=time.monotonic() - self.started,
                tokens=self.meter.total_tokens,
                final=last,
                best=None if best and last and best.step == last.step else best,
                peak_bytes=max(peaks) if peaks else None,
                checkpoints=self.checkpoints.steps(),
                checkpoint_folder=str(self.run.checkpoints_path),
                next_commands=_next_commands(self.config, self.run, step),
            )
        )
        self.run.finish("finished" if is_finished else "stopped", code)


def _next_commands(config: TrainConfig, run: RunDirectory, step: int) -> tuple[str, ...]:
    folder = shlex.quote(str(run.path))
    prompt = shlex.quote(config.eval.sample_prompt or "The ")
    return (
        *([f"the same command goes on from step {step}"] if step < config.steps else []),
        f"bitttt generate --model={folder} --prompt={prompt}",
        f"bitttt evaluate --model={folder}",
        f"tensorboard --logdir={shlex.quote(str(run.tensorboard_path))}",
    )
