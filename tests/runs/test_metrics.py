"""Metrics: valid JSON beside event files that TensorBoard itself reads, also after a resume."""

import json
import logging
import math
import subprocess
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.data.provider import RunTagFilter

from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.metrics import MetricsWriter


@pytest.fixture
def run(tmp_path):
    with RunDirectory.open(tmp_path, writer=True) as run:
        yield run


class Board:
    """Reads a folder the way TensorBoard's web server does."""

    def __init__(self, folder):
        multiplexer = EventMultiplexer()
        multiplexer.AddRunsFromDirectory(str(folder))
        multiplexer.Reload()
        self._provider = MultiplexerDataProvider(multiplexer, str(folder))

    def _read(self, method, plugin):
        data = method(
            RequestContext(),
            experiment_id="",
            plugin_name=plugin,
            downsample=1000,
            run_tag_filter=RunTagFilter(),
        )
        return next(iter(data.values()), {})

    def scalars(self):
        read = self._read(self._provider.read_scalars, "scalars")
        return {tag: [(p.step, round(p.value, 4)) for p in points] for tag, points in read.items()}

    def tensors(self, plugin):
        read = self._read(self._provider.read_tensors, plugin)
        return {tag: [(p.step, p.numpy) for p in points] for tag, points in read.items()}


def test_scalars_reach_both_files(run):
    with MetricsWriter(run) as metrics:
        for step in (10, 20):
            metrics.scalars(step, {"train/loss": 1.0 / step, "perf/tokens_per_s": np.float32(step)})
            # On disk at once, for someone who watches.
            assert run.read_metrics()[0][-1]["step"] == step
            assert Board(run.tensorboard_path).scalars()["train/loss"][-1] == (step, 1 / step)
    rows, _ = run.read_metrics()
    assert [(row["step"], row["train/loss"]) for row in rows] == [(10, 0.1), (20, 0.05)]
    assert Board(run.tensorboard_path).scalars() == {
        "train/loss": [(10, 0.1), (20, 0.05)],
        "perf/tokens_per_s": [(10, 10.0), (20, 20.0)],
    }


def test_non_finite_values(run):
    with MetricsWriter(run) as metrics:
        metrics.scalars(1, {"train/loss": math.nan, "grad_norm": math.inf, "lr": 0.5})
        metrics.scalars(2, {})
    (line,) = run.metrics_path.read_text().splitlines()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert row["nonfinite"] == ["train/loss", "grad_norm"]
    assert (row["train/loss"], row["grad_norm"], row["lr"]) == (None, None, 0.5)
    ((_, value),) = Board(run.tensorboard_path).scalars()["train/loss"]
    assert math.isnan(value)


def test_histograms_and_texts(run):
    values = np.random.default_rng(0).normal(size=1000)
    counts, edges = np.histogram(values, bins=16)
    with MetricsWriter(run) as metrics:
        metrics.histogram(5, "quant/scales", counts, edges)
        metrics.text(5, "eval/sample", "To be <b>\n# not a title\ud800")
    board = Board(run.tensorboard_path)
    ((step, bins),) = board.tensors("histograms")["quant/scales"]
    assert step == 5
    np.testing.assert_array_equal(bins, np.stack([edges[:-1], edges[1:], counts], axis=1))
    ((step, text),) = board.tensors("text")["eval/sample"]
    assert (step, text.item().decode()) == (5, "    To be <b>\n    # not a title?")


def test_histogram_needs_one_more_edge(run):
    with (
        MetricsWriter(run, tensorboard=False) as metrics,
        pytest.raises(ValueError, match="4 edges"),
    ):
        metrics.histogram(1, "x", [1, 2, 3], [0, 1, 2])


def _train(run, steps, offset, resumed_step=None):
    with MetricsWriter(run, resumed_step=resumed_step) as metrics:
        for step in steps:
            metrics.scalars(step, {"train/loss": offset + step})
            metrics.text(step, "eval/sample", str(offset + step))


def test_tensorboard_forgets_what_a_resumed_run_writes_again(run):
    _train(run, range(1, 9), 0)
    run.truncate_metrics(5)
    _train(run, range(6, 8), 100, resumed_step=5)
    run.truncate_metrics(6)
    _train(run, range(7, 9), 200, resumed_step=6)
    expected = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 106), (7, 207), (8, 208)]

    assert Board(run.tensorboard_path).scalars()["train/loss"] == expected
    texts = Board(run.tensorboard_path).tensors("text")["eval/sample"]
    assert [step for step, _ in texts] == [step for step, _ in expected]
    accumulator = EventAccumulator(str(run.tensorboard_path))
    accumulator.Reload()
    assert [(s.step, s.value) for s in accumulator.Scalars("train/loss")] == expected
    rows = run.read_metrics()[0]
    assert [(row["step"], row["train/loss"]) for row in rows] == expected
    assert len(list(run.tensorboard_path.iterdir())) == 3


def test_a_resume_without_new_rows_also_forgets(run):
    _train(run, range(1, 9), 0)
    MetricsWriter(run, resumed_step=5).close()
    assert Board(run.tensorboard_path).scalars()["train/loss"][-1] == (5, 5)


def test_an_event_file_cut_short_by_a_kill_does_not_hide_the_next(run):
    _train(run, range(1, 9), 0)
    (file,) = run.tensorboard_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    _train(run, range(6, 8), 100, resumed_step=5)
    assert Board(run.tensorboard_path).scalars()["train/loss"][-2:] == [(6, 106), (7, 107)]


def test_only_the_writer_writes(tmp_path):
    run = RunDirectory.open(tmp_path / "a", writer=False)
    with MetricsWriter(run) as metrics:
        metrics.scalars(1, {"train/loss": 1.0})
        metrics.histogram(1, "x", [1], [0, 1])
        metrics.text(1, "x", "y")
        metrics.flush()
    assert not (tmp_path / "a").exists()


def test_without_tensorboard(run):
    with MetricsWriter(run, tensorboard=False) as metrics:
        metrics.scalars(1, {"train/loss": 1.0})
        metrics.text(1, "x", "y")
    assert len(run.read_metrics()[0]) == 1
    assert not run.tensorboard_path.exists()


def test_tensorflow_is_never_imported(tmp_path):
    """Also where it is installed: that takes seconds, and memory of the accelerator."""
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from bitttt_jax.runs.directory import RunDirectory\n"
        "from bitttt_jax.runs.metrics import MetricsWriter\n"
        "assert 'tensorboard' not in sys.modules\n"
        "run = RunDirectory.open(sys.argv[1] + '/run', writer=True)\n"
        "metrics = MetricsWriter(run)\n"
        "metrics.scalars(1, {'a': 1.0}); metrics.text(1, 'b', 'c')\n"
        "metrics.histogram(1, 'd', [1], [0, 1]); metrics.close()\n"
        "assert 'jax' not in sys.modules\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.fixture(autouse=True)
def _quiet_tensorboard():
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
