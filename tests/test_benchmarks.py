"""The parts of the benchmark scripts; test_benchmark_runs.py runs them."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitttt_jax.errors import ConfigError
from bitttt_jax.runs.directory import RunDirectory

ROOT = Path(__file__).parent.parent


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script by its name below the repository's root."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module


def test_all_cases_are_valid_and_told_apart(load):
    cases = load("benchmarks.train_cases")
    for size in (cases.FULL, cases.TINY):
        found = cases.all_cases(size, with_torch=True)
        assert len({dataclasses.astuple(case) for case in found.values()}) == len(found)
        for name, case in found.items():
            assert case.name == name
            assert cases.make_config(case, size).data.seq_len == case.seq_len
        longer = cases.growth_with_length(size, "attention")
        assert len({case.seq_len * case.batch for case in longer}) == 1
        assert len({case.seq_len for case in longer}) == len(longer) > 1


def test_rows_are_packed_documents(load):
    cases, train_case = load("benchmarks.train_cases"), load("benchmarks.train_case")
    case = cases.Case("ttt_linear", "int8", "bfloat16", 512, 4)
    config = cases.make_config(case, cases.FULL)
    rows = train_case.random_rows(config, 32)
    assert {array.shape for array in rows.values()} == {(32, 512)}
    segment, position = rows["segment_ids_BT"], rows["positions_BT"]
    assert segment.max() > 1, "no row has two documents"
    starts = (position == 0) & (segment > 0)
    assert np.all(np.nonzero(starts)[1] % config.model.ttt.mini_batch == 0)
    inside = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)
    same_document = rows["targets_BT"][:, :-1][inside] == rows["tokens_BT"][:, 1:][inside]
    assert np.all(same_document)
    assert 0 < np.mean(segment == 0) < 0.1
    again = train_case.random_rows(config, 32)
    assert all(np.array_equal(rows[key], again[key]) for key in rows)


def test_a_step_begins_before_the_last_one_is_waited_for(load):
    events: list[tuple[str, int]] = []

    def dispatch(number: int) -> int:
        events.append(("begin", number))
        return number

    time_steps = load("benchmarks.train_case").time_steps
    seconds = time_steps(dispatch, lambda n: events.append(("end", n)), 0.0, 5)
    assert len(seconds) == 5
    assert events[:5] == [("begin", 0), ("begin", 1), ("end", 0), ("begin", 2), ("end", 1)]
    begun = [number for event, number in events if event == "begin"]
    assert [number for event, number in events if event == "end"] == begun


def test_spread_is_that_of_numpy(load):
    values = np.random.default_rng(0).normal(10, 1, 101)
    found = load("benchmarks.measure").spread(values.tolist())
    for name, share in (("min", 0), ("q25", 0.25), ("median", 0.5), ("q75", 0.75), ("max", 1)):
        assert found[name] == pytest.approx(np.quantile(values, share), rel=1e-3)
    assert load("benchmarks.measure").spread([3.0])["q25"] == 3.0


@pytest.mark.parametrize(
    ("cpu", "accelerators", "label"),
    [
        ("Intel(R) Xeon(R) Processor", [], "intel-xeon-2-cores"),
        ("Intel(R) Core(TM) i7-8550U CPU @ 1.80GHz", [], "intel-core-i7-8550u-2-cores"),
        ("AMD EPYC 7B13", ["NVIDIA H100 80GB HBM3"], "nvidia-h100-80gb-hbm3"),
        ("AMD EPYC 7B13", ["TPU v4"] * 4, "tpu-v4-4x"),
    ],
)
def test_machines_have_labels(load, cpu: str, accelerators: list[str], label: str):
    machine = {"cpu": cpu, "cores": 2, "accelerators": accelerators}
    assert load("benchmarks.measure").label(machine) == label


def make_observed(**machine: Any) -> dict[str, Any]:
    return {"machine": machine, "versions": {"jax": "1"}, "environment": {}}


def test_a_record_goes_on_only_on_the_same_machine(load, tmp_path: Path):
    records = load("benchmarks.records")
    path, observed = tmp_path / "new" / "record.json", make_observed(cores=2)
    reopen = lambda observed, force=False, **settings: records.open_record(
        path, "x", observed, settings, force=force
    )
    records.write_record(path, reopen(observed, T=8) | {"cases": {"a": 1}})
    assert reopen(observed, T=8)["cases"] == {"a": 1}
    with pytest.raises(ConfigError, match="another machine"):
        reopen(make_observed(cores=4), T=8)
    with pytest.raises(ConfigError, match="T: 8, and now 9"):
        reopen(observed, T=9)
    assert "cases" not in reopen(make_observed(cores=4), force=True)
    path.write_text('{"half')
    with pytest.raises(ConfigError, match=r"record\.json"):
        records.read_record(path)


def test_records_name_no_folders(load):
    portable = load("benchmarks.records").portable
    args = ["--text=/home/me/a.txt", "--config.data.sources=/a/b,/c/d.txt", "--only=x/*,y"]
    assert portable(args) == ["--text=a.txt", "--config.data.sources=b,d.txt", "--only=x/*,y"]


def test_phases_of_a_start_add_up(load, tmp_path: Path):
    run = RunDirectory(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    os.utime(tmp_path / "tokenizer.json", (102.5, 102.5))
    rows = [
        {"t": 60.0, "kind": "compile", "function": "train_step", "seconds": 40.0},
        {"t": 70.0, "kind": "compile", "function": "eval_step", "seconds": 10.0},
        {"t": 108.0, "kind": "compile", "function": "train_step", "seconds": 5.0},
        {"t": 110.25, "kind": "compile", "function": "eval_step", "seconds": 2.25},
        {"t": 112.0, "kind": "warn"},
    ]
    run.events_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_times = load("benchmarks.run_times")
    phases = run_times.start_phases(run, launched=100.0, first_row=111.0)
    assert phases == {
        "import_and_open_data_s": 2.5,
        "compile_s": 5.5,
        "first_step_s": 3.0,
    }
    assert run_times.compile_seconds(run) == 7.25


@pytest.fixture
def drawn_record(load, tmp_path: Path) -> Path:
    cases, spread = load("benchmarks.train_cases"), load("benchmarks.measure").spread
    found = cases.all_cases(cases.TINY, with_torch=True).values()
    record = {
        "title": "train_step",
        "date": "2026-01-01",
        "machine": {"cpu": "a", "cores": 2, "accelerators": []},
        "versions": {"jax": "1"},
        "cases": {
            case.name: dataclasses.asdict(case)
            | {"runs": [], "summary": {"tokens_per_s": spread([9.0, 10.0, 12.0])}}
            for case in found
        },
    }
    path = tmp_path / "train_step-a.json"
    path.write_text(json.dumps(record))
    return path


def test_figures_are_drawn(load, drawn_record: Path):
    pytest.importorskip("matplotlib")
    assert load("benchmarks.plot").main([str(drawn_record)]) == 0
    for name in ("throughput", "growth"):
        picture = drawn_record.with_name(f"train_step-a-{name}.png")
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert "PyTorch" in (text := picture.with_suffix(".svg").read_text()) or name == "growth"
        assert "attention" in text
    assert len(list(drawn_record.parent.iterdir())) == 5


def test_a_figure_needs_a_record(load, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert load("benchmarks.plot").main([str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
