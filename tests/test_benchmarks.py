"""The benchmark scripts work; nothing here looks at how long anything takes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
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
TOY_CONFIG = """
import pathlib
from bitttt_jax.config import *

def get_config():
    return TrainConfig(
        name="toy",
        steps=8,
        model=ModelConfig(dim=16, num_layers=1, num_heads=1, mlp_dim=16),
        data=DataConfig(
            sources=(SourceConfig(path=str(pathlib.Path(__file__).parent / "text")),),
            seq_len=32,
            batch_size=2,
            validation_fraction=0.5,
        ),
        optim=OptimConfig(warmup_steps=2),
        eval=EvalConfig(every_steps=4),
        log=LogConfig(health_every_steps=10),
    )
"""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script by its name below the repository's root."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of a toy run on a toy text."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "text").mkdir()
    rng = np.random.default_rng(0)
    for n in range(12):
        words = rng.choice(["alpha", "beta", "gamma", "delta"], 300)
        (folder / "text" / f"{n:02}.txt").write_text(" ".join(words))
    (folder / "toy.py").write_text(TOY_CONFIG)
    return folder / "toy.py"


def run_script(module: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Runs a script as the user does, on one device."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, args)],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
    )


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
        "compile_s": 7.75,
        "first_step_s": 0.75,
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


def test_one_case_is_measured():
    name = "attention-ternary_int8-float32-T32-b2"
    done = run_script("benchmarks.train_case", name, 0, 3, "--tiny")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["step_s"]) == 3
    assert found["positions"] == 64 >= found["tokens"] > 56
    assert found["skipped"] == 0
    assert set(found["lower_and_compile_s"]) == {"train_step", "eval_step"}
    assert 0 < found["argument_mib"] < 1 < found["peak_rss_before_steps_mib"]
    assert found["peak_rss_mib"] >= found["peak_rss_before_steps_mib"]


@pytest.mark.slow
def test_train_step_goes_on_where_it_stopped(tmp_path: Path):
    path, name = tmp_path / "record.json", "attention-ternary_int8-float32-T32-b2"
    args = ["--tiny", "--seconds=0", "--steps=2", f"--output={path}", f"--only={name}"]
    for rounds, runs in ((1, 1), (1, 1), (2, 2)):
        done = run_script("benchmarks.train_step", *args, f"--rounds={rounds}")
        assert done.returncode == 0, done.stderr
        record = json.loads(path.read_text())
        assert list(record["cases"]) == [name]
        assert len(record["cases"][name]["runs"]) == runs
        summary = record["cases"][name]["summary"]
        assert summary["step_s"]["count"] == 2 * runs
        assert summary["lower_and_compile_s"]["count"] == runs
    assert record["machine"]["cores"] > 0
    assert str(tmp_path) not in record["command"]
    first, second = record["cases"][name]["runs"]
    assert first["calibration_gflops"][0].keys() == {"float32", "bfloat16", "int8"}
    assert first["date"] <= second["date"]


def test_train_step_names_its_cases():
    done = run_script("benchmarks.train_step", "--list", "--only=*primal*,attention-float-*b8")
    assert done.stdout.split() == ["ttt_linear-primal-ternary_int8-bfloat16-T512-b4"]
    done = run_script("benchmarks.train_step", "--only=nothing")
    assert done.returncode == 2
    assert "--only=nothing" in done.stderr


@pytest.mark.slow
def test_startup_is_measured(tmp_path: Path, toy: Path):
    path = tmp_path / "record.json"
    done = run_script("benchmarks.startup", f"--config={toy}", "--repeats=1", f"--output={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(path.read_text())
    for kind in ("cold", "warm"):
        parts = {phase: found["median"] for phase, found in record[kind].items()}
        total = parts.pop("total_s")
        assert total == pytest.approx(sum(parts.values()), abs=0.01)
        assert all(seconds > 0 for seconds in parts.values())


@pytest.mark.slow
def test_startup_of_a_run_that_fails(tmp_path: Path, toy: Path):
    path = tmp_path / "record.json"
    args = [f"--config={toy}", "--repeats=1", f"--output={path}", "--config.mesh.data=3"]
    done = run_script("benchmarks.startup", *args)
    assert done.returncode == 2
    assert "mesh.data=3" in done.stderr
    assert not path.exists()


@pytest.mark.slow
def test_overhead_is_measured(tmp_path: Path, toy: Path):
    path = tmp_path / "record.json"
    args = [f"--config={toy}", "--rounds=2", "--steps=12", f"--output={path}"]
    done = run_script("benchmarks.overhead", *args)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(path.read_text())
    assert {way: found["count"] for way, found in record["step_s"].items()} == {
        "bare": 2,
        "loop": 2,
        "full": 2,
    }
    assert set(record["overhead_percent"]) == {"loop", "full"}
