"""The parts of the benchmark scripts; test_benchmark_runs.py runs them."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
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


def test_steps_of_packed_models_are_drawn(load, tmp_path: Path):
    pytest.importorskip("matplotlib")
    spread = load("benchmarks.measure").spread
    steps = {str(context): spread([0.01, 0.02]) for context in (512, 1024)}
    record = {
        "title": "packed",
        "date": "2026-01-01",
        "machine": {"cpu": "a", "cores": 2, "accelerators": []},
        "versions": {"jax": "1"},
        "cases": {name: {"summary": {"step_s": steps}} for name in ("attention", "ttt_linear")},
    }
    path = tmp_path / "packed-a.json"
    path.write_text(json.dumps(record))
    assert load("benchmarks.plot").main([str(path)]) == 0
    text = (tmp_path / "packed-a-latency.svg").read_text()
    assert "TTT-Linear" in text and "llama.cpp" not in text


def test_cases_take_turns_and_go_on_after_a_failure(load, tmp_path: Path, monkeypatch):
    turns, measure = load("benchmarks.turns"), load("benchmarks.measure")
    observed = {"load": [0.0], "calibration_gflops": {"float32": 1.0}}
    monkeypatch.setattr(measure, "observe", lambda: observed)
    path, order, broken = tmp_path / "record.json", [], {"b"}

    def case(name: str):
        def run() -> dict[str, int]:
            order.append(name)
            if name in broken:
                raise measure.ChildFailed("it broke")
            return {"seconds": len(order)}

        return turns.Case({"about": name}, run)

    cases = {name: case(name) for name in "ab"}
    summarise = lambda entry: {"count": len(entry["runs"])}
    go = lambda record, rounds: turns.take_turns(
        path, record, cases, rounds, observed, summarise, str
    )
    assert not go({}, 2)
    assert order == ["a", "b", "a", "b"]
    broken.clear()
    record = json.loads(path.read_text())
    assert "it broke" in record["cases"]["b"]["error"]
    assert go(record, 2)
    assert order[4:] == ["b", "b"]
    record = json.loads(path.read_text())
    assert [entry["summary"]["count"] for entry in record["cases"].values()] == [2, 2]
    assert "error" not in record["cases"]["b"]
    assert record["cases"]["a"]["summary"]["lowest_calibration"] == 1.0


def test_cases_are_chosen_by_patterns(load):
    chosen = load("benchmarks.turns").chosen
    assert list(chosen({"ab": 1, "bc": 2, "cd": 3}, "a*,cd")) == ["ab", "cd"]
    with pytest.raises(ConfigError, match="--only=x"):
        chosen({"ab": 1}, "x")


def test_a_peer_may_be_missing_unless_it_is_named(load, capsys: pytest.CaptureFixture[str]):
    find_peer = load("benchmarks.measure").find_peer
    assert find_peer("", ["json"]) == sys.executable
    assert find_peer("", ["no_such_package"]) is None
    assert "no_such_package" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no_such_package"):
        find_peer(sys.executable, ["json", "no_such_package"])
    with pytest.raises(ConfigError, match="can't be run"):
        find_peer("/no/such/python", ["json"])


def test_blocks_for_llama_cpp_hold_valid_numbers(load):
    peer = load("benchmarks.peers.llama_cpp")
    rng = np.random.default_rng(0)
    blocks = peer.random_tq2_0(rng, 512, 3).reshape(3, 2, 66)
    codes = blocks[..., :64, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    assert set(np.unique(codes)) == {0, 1, 2}
    assert np.all(blocks[..., 64:].copy().view(np.float16) == np.float16(0.02))
    blocks = peer.random_q6_k(rng, 512, 3).reshape(3, 2, 210)
    assert np.all(np.isfinite(blocks[..., 208:].copy().view(np.float16)))


def test_the_readme_says_what_the_records_say(load):
    report = load("benchmarks.report")
    text = report.README.read_text(encoding="utf-8")
    written = report.with_section(text, report.section(report.read_records()))
    assert written == text, "python -m benchmarks.report writes the README's numbers"


def test_peers_of_a_real_model_may_be_missing(load):
    parts, spread = load("benchmarks.report_parts"), load("benchmarks.measure").spread
    summary = {"prefill_s": spread([0.5]), "step_s": spread([0.01]), "lowest_calibration": 0.95}
    run = {"versions": {"jax": "1.2"}}
    record = {"versions": {"python": "3.11.1", "jax": "1.2"}, "threads": 2, "prefill": 512}
    record["cases"] = {"int8": {"runs": [run], "summary": summary}, "llama_cpp_q8_0": {"runs": []}}
    intro, table = parts.smollm2(record)
    assert "one round" in intro
    assert table.splitlines()[2:] == ["| ours, int8 | 1,024 | 100.0 |"]
    peer = run | {"versions": {"llama-cpp-python": "7"}, "settings": "without repacked weights"}
    record["cases"]["llama_cpp_q8_0"] = {
        "runs": [peer],
        "summary": summary | {"lowest_calibration": 0.5},
    }
    _, table, notes = parts.smollm2(record)
    assert "| llama.cpp, Q8_0 | 1,024\\* | 100.0\\* |" in table
    assert "llama-cpp-python 7 without repacked weights." in notes and "PyTorch" not in notes


@pytest.mark.parametrize(
    "title", ["train_step", "startup", "overhead", "packed", "smollm2", "serve"]
)
def test_another_record_makes_another_section(load, title: str):
    report = load("benchmarks.report")
    records = report.read_records()
    before = report.section(records)
    assert report.section(records | {title: doubled_medians(records[title])}) != before


def doubled_medians(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: 2 * v if k == "median" else doubled_medians(v) for k, v in value.items()}
    return [doubled_medians(v) for v in value] if isinstance(value, list) else value


def test_the_section_needs_its_marks(load):
    report = load("benchmarks.report")
    text = f"a\n{report.BEGIN}\nold\n{report.END}\nb"
    assert "old" not in report.with_section(text, "new")
    assert report.with_section(text, "new").endswith(f"new\n\n{report.END}\nb")
    with pytest.raises(ConfigError, match="marks"):
        report.with_section(f"a {report.BEGIN}", "new")


def test_a_figure_needs_a_record(load, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert load("benchmarks.plot").main([str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
