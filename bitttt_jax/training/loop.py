"""The training loop: steps, and between them logging, validation, checkpoints and stops."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from bitttt_jax.config import TrainConfig
from bitttt_jax.data.prefetch import prefetch
from bitttt_jax.distributed.signals import StopRequest
from bitttt_jax.errors import DivergedError, ExitCode
from bitttt_jax.models.counts import Counts
from bitttt_jax.runs import console_summary
from bitttt_jax.runs.checkpoints import Checkpoints
from bitttt_jax.runs.console import Console
from bitttt_jax.runs.console_memory import HostMemory
from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.metrics import MetricsWriter
from bitttt_jax.training import hardware
from bitttt_jax.training.evaluate import Evaluation, summarize
from bitttt_jax.training.health import HealthMonitor
from bitttt_jax.training.meter import Meter
from bitttt_jax.training.setup import Compiled, Data
from bitttt_jax.training.step import StepMetrics, TrainState

_PROGRESS_SECONDS = 0.5

Sampler = Callable[[Any], str]


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
    peak_flops: float
    sample: Sampler
    """Continues the configured prompt with given parameters."""

    def __post_init__(self) -> None:
        self.meter = Meter(
            self.data.bytes_per_token(self.data.train),
            self.counts.train_flops,
            self.peak_flops,
            self.compiled.mesh.size,
        )
        self.health = HealthMonitor(self.config)
        self.started = time.monotonic()
        self.row: dict[str, float] = {}
        self.final: console_summary.Evaluation | None = None
        self.best: console_summary.Evaluation | None = None
        self._shown = 0.0

    # --- the loop --------------------------------------------------------------------------

    def fit(self, state: TrainState, start: int) -> ExitCode:
        """Trains from a state at step `start` to the end, or until asked to stop.

        Raises:
          DivergedError: too many updates in a row had to be skipped.
        """
        config = self.config
        read = lambda step: self.compiled.to_devices(
            self.data.train.batch(step, self.compiled.rows)
        )
        code: ExitCode | None = None
        waiting: tuple[int, StepMetrics] | None = None
        self.run.update(state="running", steps=config.steps, step=start)
        with (
            StopRequest(config.max_minutes) as stop,
            contextlib.closing(prefetch(read, start, config.steps)) as batches,
            jax.set_mesh(self.compiled.mesh),
        ):
            for step, batch in batches:
                state, metrics = self.compiled.train_step(state, batch)
                # Only the step before is looked at, so that the devices never wait for Python.
                if waiting is not None:
                    self._after_step(*waiting, batch)
                waiting, done = (step + 1, metrics), step + 1
                code = stop.poll(done)
                last = done == config.steps or code is not None
                if last or self._is_due(done):
                    self._after_step(*waiting, batch)
                    waiting = None
                    self._pause(state, done, batch, save=last)
                if code is not None:
                    break
        return self._finish(int(state.step), code)

    def _is_due(self, done: int) -> bool:
        every = self.config.eval.every_steps
        health = self.config.log.health_every_steps
        return (
            bool(every and done % every == 0)
            or bool(health and done % health == 0)
            or self.checkpoints.due(done)
        )

    def _after_step(self, step: int, metrics: StepMetrics, batch: Any) -> None:
        """Takes in a finished step; writes a row now and then."""
        metrics = jax.tree.map(np.asarray, metrics)
        self.meter.add(metrics)
        if metrics.skipped_in_row >= self.config.optim.max_skipped:
            raise DivergedError(
                f"{int(metrics.skipped_in_row)} updates in a row had a non-finite loss or gradient, "
                f"the last one at step {step}",
                f"the newest checkpoint is from step {self.checkpoints.latest_step()}",
                "a lower optim.lr, a longer optim.warmup_steps, or a smaller optim.clip_norm",
            )
        if step % self.config.log.every_steps == 0 or step == self.config.steps:
            self.row = self.meter.row()
            self.row["mem/host_peak_gib"] = hardware.host_peak_bytes() / 2**30
            if peaks := hardware.device_peak_bytes():
                self.row["mem/peak_gib"] = max(peaks) / 2**30
            self.metrics.scalars(step, self.row)
        left = (self.config.steps - step) * self.meter.seconds_per_step
        self.run.update(step=step, eta_s=left)
        if self.row and time.monotonic() - self._shown > _PROGRESS_SECONDS:
            self._shown = time.monotonic()
            self.console.progress(step, self.config.steps, self.row, left)

    # --- pauses ----------------------------------------------------------------------------

    def _pause(self, state: TrainState, step: int, batch: Any, *, save: bool) -> None:
        """Validation, health report and checkpoint, as far as they are due."""
        began = time.perf_counter()
        config, final = self.config, step == self.config.steps
        results: dict[str, float] = {}
        every = config.eval.every_steps
        if self.data.validation and (final or (every and step % every == 0)):
            results = self._validate(state.params, step, everything=final)
        every = config.log.health_every_steps
        if every and step % every == 0:
            self.metrics.scalars(step, self.health.report(state.params, batch))
            if self.health.histogram is not None:
                self.metrics.histogram(step, "quant/latent", *self.health.histogram)
        self._report_checkpoints()
        if save or self.checkpoints.due(step):
            self.run.update(state="saving" if save else "running")
            self.checkpoints.save(step, state, metrics=results, force=save)
        self.run.update(state="running")
        self.meter.pause(time.perf_counter() - began)

    def _validate(self, params: Any, step: int, *, everything: bool) -> dict[str, float]:
        """Measures held-out loss, on a fixed part of the text or on all of it."""
        began = time.monotonic()
        self.run.update(state="evaluating")
        result = self.evaluate(params, everything=everything)
        self.final = console_summary.Evaluation(step, result.loss, result.bits_per_byte)
        if self.best is None or result.loss < self.best.loss:
            self.best = self.final
        values = {
            "eval/loss": result.loss,
            "eval/ppl": result.perplexity,
            "eval/bpb": result.bits_per_byte,
            "eval/loss_error": result.standard_error,
        }
        seconds = time.monotonic() - began
        self.metrics.scalars(step, values)
        self.run.event("eval", step=step, seconds=seconds, **values)
        train_loss = self.row.get("train/loss")
        self.console.evaluation(self.final, train_loss=train_loss, seconds=seconds)
        self.console.memory(
            [HostMemory(*host) for host in hardware.memory_by_host()],
            platform=jax.default_backend(),
        )
        if self.config.eval.sample_prompt:
            text = self.sample(params)
            self.console.sample(self.config.eval.sample_prompt, text)
            self.metrics.text(step, "sample", self.config.eval.sample_prompt + text)
        return values

    def evaluate(self, params: Any, *, everything: bool) -> Evaluation:
        """Held-out loss of the given parameters."""
        split = self.data.validation
        assert split is not None
        total = split.num_validation_batches
        count = total if everything else min(self.config.eval.batches, total)
        sums = []
        for done, rows in enumerate(self._validation_rows(count, total), start=1):
            sums.append(self.compiled.eval_step(params, self.compiled.to_devices(rows)))
            self.console.eval_progress(done, count)
        return summarize(sums, self.data.bytes_per_token(split))

    def _validation_rows(self, count: int, total: int) -> Iterator[Any]:
        split, rows = self.data.validation, self.compiled.rows
        assert split is not None
        if count < total:
            return (split.batch(i, rows) for i in range(count))
        return itertools.islice(split.validation_windows(rows), total)

    def _report_checkpoints(self) -> None:
        for saved in self.checkpoints.poll():
            self.run.event("checkpoint", step=saved.step, path=str(saved.path), bytes=saved.size)
            kept = len(self.checkpoints.steps())
            self.console.checkpoint(saved.step, saved.path, saved.size, saved.seconds, kept)

    # --- the end ---------------------------------------------------------------------------

    def _finish(self, step: int, code: ExitCode | None) -> ExitCode:
        finished = step == self.config.steps
        if finished:
            code = ExitCode.OK
        assert code is not None
        self.run.update(state="saving", step=step)
        self.checkpoints.wait()
        self._report_checkpoints()
        if not finished:
            self.run.event("stop", step=step, exit_code=int(code))
        peaks = hardware.device_peak_bytes()
        workdir = self.run.path
        resume = f"the same command goes on from step {step}"
        self.console.summary(
            console_summary.RunSummary(
                status="finished" if finished else "stopped and saved",
                step=step,
                steps=self.config.steps,
                seconds=time.monotonic() - self.started,
                tokens=self.meter.total_tokens,
                final=self.final,
                best=self.best,
                peak_bytes=max(peaks) if peaks else None,
                checkpoints=self.checkpoints.steps(),
                checkpoint_folder=str(self.checkpoints.folder),
                next_commands=(
                    *(() if finished else (resume,)),
                    f'bitttt generate --model={workdir} --prompt="def "',
                    f"bitttt evaluate --model={workdir}",
                    f"tensorboard --logdir={self.run.tensorboard_path}",
                ),
            )
        )
        self.run.finish("finished" if finished else "stopped", code)
        return code
