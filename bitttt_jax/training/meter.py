"""Turns the scalars of steps into rows of metrics: means over an interval, and rates."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from bitttt_jax.runs.console_text import perplexity
from bitttt_jax.training.step import StepMetrics


class Meter:
    """Averages the steps since the last row.

    The first step of a process isn't timed: it waits for the data pipeline to start.

    Args:
      bytes_per_token: of text for a prediction that counts, for bits per byte.
      flops_per_token: of forward and backward pass.
      peak_flops: measured peak of one device; 0 if unknown.
      devices: number of devices.
      clock: seconds from any start.
    """

    def __init__(
        self,
        bytes_per_token: float,
        flops_per_token: float,
        peak_flops: float,
        devices: int,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._bits_per_byte = 1 / math.log(2) / bytes_per_token
        self._flops_per_token = flops_per_token / devices
        self._peak_flops = peak_flops
        self._clock = clock
        self._started: float | None = None
        self._rates: dict[str, float] = {}
        self.total_tokens = 0
        """Tokens trained on in this process."""
        self._reset()

    def _reset(self) -> None:
        self._loss = self._loss_tokens = 0.0
        self._timed_steps = self._timed_tokens = 0

    def add(self, metrics: StepMetrics) -> None:
        """Adds a step that has just ended, its metrics already on the host."""
        self._last, self._now = metrics, self._clock()
        tokens, read, loss = int(metrics.tokens), int(metrics.read), float(metrics.loss)
        self.total_tokens += read
        if math.isfinite(loss):  # of the others `train/skipped` tells
            self._loss += loss * tokens
            self._loss_tokens += tokens
        if self._started is None:
            self._started = self._now
        else:
            self._timed_steps += 1
            self._timed_tokens += read

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time of something other than steps."""
        began = self._clock()
        yield
        if self._started is not None:
            self._started += self._clock() - began

    def seconds_per_step(self) -> float | None:
        """Of the last interval with a row, before that of the steps so far; None if unknown."""
        return (self._rates or self._measure()).get("perf/step_s")

    def row(self) -> dict[str, float]:
        """Values of the interval by tag, without rates if no step was timed; starts a new one."""
        loss = self._loss / self._loss_tokens if self._loss_tokens else math.nan
        measured = self._measure()
        self._rates, self._started = measured or self._rates, self._now
        self._reset()
        return {
            "train/loss": loss,
            "train/ppl": perplexity(loss),
            "train/bpb": loss * self._bits_per_byte,
            "lr": float(self._last.lr),
            "grad_norm": float(self._last.grad_norm),
            "train/skipped": float(self._last.skipped),
            **measured,
        }

    def _measure(self) -> dict[str, float]:
        if not self._timed_steps or self._started is None:
            return {}
        seconds = max(self._now - self._started, 1e-9)
        tokens_per_s = self._timed_tokens / seconds
        flops = tokens_per_s * self._flops_per_token
        rates = {
            "perf/step_s": seconds / self._timed_steps,
            "perf/tokens_per_s": tokens_per_s,
            "perf/tflops_per_device": flops / 1e12,
        }
        return rates | ({"perf/mfu": flops / self._peak_flops} if self._peak_flops else {})
