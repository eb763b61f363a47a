from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.series import Curve, Series, decimate


def test_curves_follow_the_file(tmp_path: Path):
    run = RunDirectory.open(tmp_path / "run", writer=True)
    series = Series(run.metrics_path)
    assert series.update() == [] and series.last("lr") is None
    run.metric({"step": 1, "train/loss": 5.0, "lr": 0.1})
    run.metric({"step": 2, "train/loss": math.nan, "lr": 0.2})
    assert len(series.update()) == 2
    assert series.curves == {"train/loss": Curve([1], [5.0]), "lr": Curve([1, 2], [0.1, 0.2])}
    run.metric({"step": 3, "train/loss": 4.0})
    series.update()
    assert series.curves["train/loss"] == Curve([1, 3], [5.0, 4.0])
    assert series.last("train/loss") == 4.0
    run.truncate_metrics(1)
    series.update()
    assert series.curves == {"train/loss": Curve([1], [5.0]), "lr": Curve([1], [0.1])}


@pytest.mark.parametrize("count", [0, 1, 2, 9, 10, 11, 1000, 1001])
def test_thinning_keeps_peaks_order_and_ends(count: int):
    rng = random.Random(count)
    values = [rng.gauss(0, 1) for _ in range(count)]
    steps = sorted(rng.sample(range(5000), count))
    thin_steps, thin_values = decimate(steps, values, 10)
    assert len(thin_steps) == len(thin_values) <= 10
    assert set(zip(thin_steps, thin_values, strict=True)) <= set(zip(steps, values, strict=True))
    assert thin_steps == sorted(thin_steps)
    if count:
        assert (min(thin_values), max(thin_values)) == (min(values), max(values))
    if count <= 10:
        assert thin_values == values
