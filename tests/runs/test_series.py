from __future__ import annotations

import math
import random
from array import array
from pathlib import Path

import pytest

from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.follow import Follower, Position
from bitttt_jax.runs.series import Curve, Series, decimate


def curve(steps: list[int], values: list[float]) -> Curve:
    return Curve(array("q", steps), array("d", values))


def test_curves_follow_the_file(tmp_path: Path):
    run = RunDirectory.open(tmp_path / "run", writer=True)
    series = Series(run.metrics_path)
    assert series.update() == [] and series.last("lr") is None
    run.metric({"step": 1, "train/loss": 5.0, "lr": 0.1})
    run.metric({"step": 2, "train/loss": math.nan, "lr": 0.2})
    assert len(series.update()) == 2
    assert series.curves == {"train/loss": curve([1], [5.0]), "lr": curve([1, 2], [0.1, 0.2])}
    run.metric({"step": 3, "train/loss": 4.0})
    series.update()
    assert series.curves["train/loss"] == curve([1, 3], [5.0, 4.0])
    assert series.last("train/loss") == 4.0
    run.truncate_metrics(1)
    series.update()
    assert series.curves == {"train/loss": curve([1], [5.0]), "lr": curve([1], [0.1])}


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


def test_rows_of_different_shape_keep_their_order(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        '{"step": 1, "a": 1}',
        '{"a": 2, "step": 2, "b": null}',
        '{"step": 3, "a": "text", "b": [1]}',
        '{"a": 3}',
        '{"step": 1e300, "a": 4}',
        '{"step": NaN, "a": 5}',
        '{"step": 4, "b": 6, "a": 7, "nonfinite": ["c"]}',
        '{"step": 5, "a": Infinity}',
    ]
    path.write_text("\n".join(rows) + "\n")
    series = Series(path)
    series.update()
    assert series.curves == {"a": curve([1, 2, 4], [1, 2, 7]), "b": curve([4], [6])}


def test_a_position_goes_on_where_it_was(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a"')
    series = Series(path)
    series.update()
    with path.open("a") as file:
        file.write(": 2}\n")
    follower = Follower(path, Position(*series.position))
    assert follower.read() == ([{"step": 2, "a": 2}], False)
    path.write_text('{"step": 1, "a": 3}\n{"step": 2, "a": 2}\n')
    assert Follower(path, series.position).read() == (
        [{"step": 1, "a": 3}, {"step": 2, "a": 2}],
        True,
    )
