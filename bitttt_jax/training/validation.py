"""Validation during a run: held-out loss, the best one so far, and a sample of the model's text."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from bitttt_jax.config import TrainConfig
from bitttt_jax.data.batches import Batch
from bitttt_jax.runs import console_summary
from bitttt_jax.runs.checkpoints import BEST_METRIC, Checkpoints
from bitttt_jax.runs.console import Console
from bitttt_jax.runs.console_text import format_duration, format_losses
from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.metrics import MetricsWriter
from bitttt_jax.training import hardware
from bitttt_jax.training.evaluate import Evaluation, evaluate
from bitttt_jax.training.setup import Compiled, Data

Sampler = Callable[[Any], str]


class Validation:
    """Measures a run's held-out loss, and remembers the best.

    During the run always the same part of the text is read, so that losses can be compared, at
    its end all of it. Without held-out text nothing is measured.

    Args:
      config: the run's.
      run: its folder.
      console: where results are shown.
      metrics: where they go.
      data: the text.
      compiled: how to read it.
      checkpoints: what an earlier start of the run has saved.
      sample: continues the configured prompt with given parameters.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: RunDirectory,
        console: Console,
        metrics: MetricsWriter,
        data: Data,
        compiled: Compiled,
        checkpoints: Checkpoints,
        sample: Sampler,
    ):
        self._config, self._run, self._console, self._metrics = config, run, console, metrics
        self._split, self._compiled, self._sample = data.validation, compiled, sample
        self.last: console_summary.Evaluation | None = None
        """The newest result."""
        self.best = _best_saved(checkpoints)
        """The best result on the part that is read during the run."""

    def is_due(self, step: int) -> bool:
        """Whether to measure after this step."""
        every = self._config.eval.every_steps
        is_time = every and (step % every == 0 or step == self._config.steps)
        return self._split is not None and bool(is_time)

    def measure(self, params: Any, step: int, train_loss: float | None) -> dict[str, float]:
        """Measures on the part that is read during the run.

        Args:
          params: the model's parameters.
          step: steps done.
          train_loss: to compare with on the console.

        Returns:
          Values by tag.
        """
        began = time.monotonic()
        result = self._evaluate(params, self._part_batches())
        values, seconds = self._record(step, "eval", result, began)
        assert self.last is not None
        if self.best is None or self.last.loss < self.best.loss:
            self.best = self.last
        self._console.evaluation(self.last, train_loss=train_loss, seconds=seconds)
        if hosts := hardware.memory_by_host():
            self._console.memory(hosts, platform=jax.default_backend())
            self._run.update(devices=tuple(map(dataclasses.asdict, hosts)))
        prompt = self._config.eval.sample_prompt
        if prompt:
            text = self._sample(params)
            self._console.sample(prompt, text)
            self._metrics.text(step, "sample", prompt + text)
            self._run.event("sample", step=step, text=prompt + text)
        return values

    def measure_all(self, params: Any, step: int) -> None:
        """Measures on all held-out text, unless the part just measured was all of it."""
        if self._split is None:
            return
        total = self._split.num_validation_batches
        if self.last and self.last.step == step and self._part_batches() == total:
            return
        began = time.monotonic()
        result = self._evaluate(params, total)
        _, seconds = self._record(step, "final", result, began)
        text = (
            f"step {step}  {format_losses(result.loss, result.bits_per_byte)}  "
            f"(all {result.tokens:,} held-out tokens)  {format_duration(seconds)}"
        )
        self._console.line("final", text, step=step, loss=result.loss, bpb=result.bits_per_byte)

    def _part_batches(self) -> int:
        assert self._split is not None
        wanted = self._config.eval.batches * self._config.optim.accumulation
        return min(wanted, self._split.num_validation_batches)

    def _evaluate(self, params: Any, count: int) -> Evaluation:
        assert self._split is not None
        self._run.update(state="evaluating")
        result = evaluate(
            lambda rows: self._compiled.eval_step(
                params, self._compiled.eval_feed.to_devices(rows)
            ),
            self._batches(count),
            self._split.bytes_per_prediction,
            lambda done: self._console.eval_progress(done, count),
        )
        self._run.update(state="running")
        return result

    def _batches(self, count: int) -> Iterator[Batch]:
        """Batches from all over the text, or all of it."""
        assert self._split is not None
        rows = self._compiled.eval_feed.rows
        if count < self._split.num_validation_batches:
            return (self._split.batch(index, rows) for index in range(count))
        return self._split.validation_windows(rows)

    def _record(
        self, step: int, group: str, result: Evaluation, began: float
    ) -> tuple[dict[str, float], float]:
        self.last = console_summary.Evaluation(step, result.loss, result.bits_per_byte)
        values = {
            f"{group}/loss": result.loss,
            f"{group}/ppl": result.perplexity,
            f"{group}/bpb": result.bits_per_byte,
            f"{group}/loss_error": result.standard_error,
        }
        seconds = time.monotonic() - began
        self._metrics.scalars(step, values)
        self._run.event("eval", step=step, seconds=round(seconds, 3), **values)
        return values, seconds


def _best_saved(checkpoints: Checkpoints) -> console_summary.Evaluation | None:
    step = checkpoints.best_step()
    if step is None:
        return None
    values = checkpoints.metrics(step)
    return console_summary.Evaluation(step, values[BEST_METRIC], values.get("eval/bpb"))
