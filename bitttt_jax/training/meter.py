"""Turns the scalars of steps into rows of metrics: means over an interval, and rates."""

from __future__ import annotations

import math
import time

from bitttt_jax.training.step import StepMetrics


class Meter:
    """Averages the steps since the last row.

    Args:
      bytes_per_token: of the training text, for bits per byte.
      flops_per_token: of forward and backward pass.
      peak_flops: measured peak of one device; 0 if unknown.
      devices: number of devices.
    """

    def __init__(
        self, bytes_per_token: float, flops_per_token: float, peak_flops: float, devices: int
    ):
        self._bits_per_byte = 1 / math.log(2) / bytes_per_token
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._devices = devices
        self.total_tokens = 0
        self.seconds_per_step = 0.0
        self._reset()

    def _reset(self) -> None:
        self._loss = self._tokens = 0.0
        self._steps = 0
        self._started = time.perf_counter()

    def add(self, metrics: StepMetrics) -> None:
        """Adds a step, its metrics already on the host."""
        self._last = metrics
        self._steps += 1
        tokens = float(metrics.tokens)
        self._tokens += tokens
        self.total_tokens += int(tokens)
        self._loss += float(metrics.loss) * tokens

    def pause(self, seconds: float) -> None:
        """Leaves out time that went to something other than steps."""
        self._started += seconds

    def row(self) -> dict[str, float]:
        """Values of the interval by tag; starts a new one."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        loss = self._loss / max(self._tokens, 1.0)
        self.seconds_per_step = seconds / max(self._steps, 1)
        rate = self._tokens / seconds
        flops = rate * self._flops_per_token / self._devices
        row = {
            "train/loss": loss,
            "train/ppl": math.exp(min(loss, 700.0)),
            "train/bpb": loss * self._bits_per_byte,
            "lr": float(self._last.lr),
            "grad_norm": float(self._last.grad_norm),
            "train/skipped": float(self._last.skipped),
            "perf/step_s": self.seconds_per_step,
            "perf/tokens_per_s": rate,
            "perf/tflops_per_device": flops / 1e12,
        }
        if self._peak_flops:
            row["perf/mfu"] = flops / self._peak_flops
        self._reset()
        return row
