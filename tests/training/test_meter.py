from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest

from bitttt_jax.training.meter import Meter
from bitttt_jax.training.step import StepMetrics


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def metrics(
    loss: float, tokens: float = 10, lr: float = 0.1, skipped: int = 0, read: float | None = None
) -> StepMetrics:
    values = (loss, tokens, tokens if read is None else read, 2.0, lr, skipped, 0)
    return StepMetrics(*(np.asarray(value) for value in values))  # type: ignore[arg-type]


def make(peak_flops: float = 0.0) -> tuple[Meter, Clock]:
    clock = Clock()
    return Meter(4.0, 1e9, peak_flops, devices=2, clock=clock), clock


def add(meter: Meter, clock: Clock, seconds: float, steps: Iterable[StepMetrics]) -> None:
    for step in steps:
        clock.now += seconds
        meter.add(step)


def test_means_weigh_every_token_the_same():
    meter, clock = make()
    add(meter, clock, 1.0, [metrics(1.0, 10), metrics(4.0, 30, lr=0.2, skipped=1)])
    row = meter.row()
    assert row["train/loss"] == 3.25
    assert row["train/ppl"] == pytest.approx(math.exp(3.25))
    assert row["train/bpb"] == pytest.approx(3.25 / math.log(2) / 4)
    assert (row["lr"], row["grad_norm"], row["train/skipped"]) == (0.2, 2.0, 1)
    add(meter, clock, 1.0, [metrics(7.0)])
    assert meter.row()["train/loss"] == 7.0
    assert meter.total_tokens == 50


def test_rates_are_of_what_is_read_and_losses_of_what_counts():
    meter, clock = make()
    add(meter, clock, 1.0, [metrics(1.0, 10, read=100), metrics(4.0, 30, read=200)])
    row = meter.row()
    assert row["train/loss"] == 3.25 and row["perf/tokens_per_s"] == 200
    assert meter.total_tokens == 300


def test_the_first_step_and_pauses_are_not_timed():
    meter, clock = make(peak_flops=1e12)
    clock.now += 60  # until the first batch is there
    meter.add(metrics(1.0))
    assert meter.seconds_per_step() is None
    add(meter, clock, 0.5, [metrics(1.0)] * 3)
    assert meter.seconds_per_step() == pytest.approx(0.5)
    with meter.paused():
        clock.now += 1000
    add(meter, clock, 0.5, [metrics(1.0)])
    clock.now += 7  # the row may be asked for late
    row = meter.row()
    assert row["perf/step_s"] == pytest.approx(0.5)
    assert row["perf/tokens_per_s"] == pytest.approx(20)
    assert row["perf/tflops_per_device"] == pytest.approx(20 * 1e9 / 2 / 1e12)
    assert row["perf/mfu"] == pytest.approx(0.01)
    clock.now -= 7
    add(meter, clock, 2.0, [metrics(1.0)])
    assert meter.seconds_per_step() == pytest.approx(0.5)
    assert meter.row()["perf/step_s"] == pytest.approx(2.0) == meter.seconds_per_step()


def test_a_row_of_the_first_step_alone_has_no_rates():
    meter, clock = make()
    meter.add(metrics(2.0))
    row = meter.row()
    assert row["train/loss"] == 2.0 and not [tag for tag in row if tag.startswith("perf/")]
    add(meter, clock, 3.0, [metrics(1.0)])
    assert meter.row()["perf/step_s"] == pytest.approx(3.0)


def test_losses_that_are_not_finite_are_left_out():
    meter, _ = make()
    for loss in (math.nan, 2.0, math.inf):
        meter.add(metrics(loss))
    assert meter.row()["train/loss"] == 2.0
    meter.add(metrics(math.nan))
    row = meter.row()
    assert math.isnan(row["train/loss"]) and math.isnan(row["train/ppl"])
    meter.add(metrics(1e9))
    assert meter.row()["train/ppl"] == math.inf
