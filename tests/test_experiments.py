"""The studies run, stop, go on, and read their runs rightly, however good the models get."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bitttt_jax.config_loading import with_vocabulary
from bitttt_jax.data.shards import TokenDataset, load_tokenizer
from bitttt_jax.errors import ConfigError, DataError
from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.files import JsonLines
from tests.scripts import run_script

ROOT = Path(__file__).parent.parent
MIXERS_STUDY = "experiments.mixers_and_ternary.run"
SHAKESPEARE_STUDY = "experiments.char_shakespeare.run"
TOY_MODEL = (
    "--config.model.dim=16", "--config.model.num_layers=2", "--config.model.num_heads=1",
    "--config.model.mlp_dim=256", "--config.data.seq_len=32", "--config.data.batch_size=2",
    "--config.optim.warmup_steps=2", "--config.log.every_steps=2",
)  # fmt: skip


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script by its name below the repository's root."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for n in range(12):
        words = rng.choice(["alpha", "beta", "gamma", "delta"], 60)
        (folder / f"{n:02}.txt").write_text(" ".join(words))
    return folder


def toy_arguments(text: Path) -> list[str]:
    data = (f"sources={text}", "tokenizer.kind=bytes", "validation_fraction=0.5")
    return [*TOY_MODEL, *(f"--config.data.{setting}" for setting in data)]


def test_all_kinds_have_equally_many_parameters(load):
    run, study = load(MIXERS_STUDY), load("experiments.study")
    base = with_vocabulary(study.resolve(run.BASE, []), 2048).model
    wanted = study.count_parameters(base)
    widths = set()
    for mixers in run.MIXERS.values():
        model = run.fit_mlp_dim(dataclasses.replace(base, mixers=mixers), wanted)
        assert study.count_parameters(model) == pytest.approx(wanted, rel=0.01)
        assert dataclasses.replace(model, mlp_dim=base.mlp_dim, mixers=base.mixers) == base
        widths.add(model.mlp_dim)
    assert base.mlp_dim in widths and len(widths) > 1
    small = dataclasses.replace(base, mlp_dim=8, mixers=("ttt_mlp",))
    with pytest.raises(ConfigError, match="ttt_mlp"):
        run.fit_mlp_dim(small, study.count_parameters(small) // 2)


def test_the_text_is_cut_at_nine_tenths(load, tmp_path: Path):
    run, study = load(SHAKESPEARE_STUDY), load("experiments.study")
    text = "".join(np.random.default_rng(0).choice(list("abc \n"), 1003))
    source = tmp_path / "text.txt"
    source.write_text(text)
    config = study.resolve(run.BASE, [])
    texts = run.cut_text(source, tmp_path / "work", config)
    sizes = {name: part["train"]["bytes"] for name, part in texts.items()}
    assert sizes == {"training": 902, "validation": 101}
    parts = []
    for name in ("training", "validation"):
        dataset = TokenDataset.open(tmp_path / "work" / name, "train")
        (shard,) = dataset.sources[0].shards
        tokens = shard.tokens.tolist()
        assert tokens.count(256) == 1  # one document
        parts.append(load_tokenizer(tmp_path / "work" / name).decode(tokens[1:]))
    assert "".join(parts) == text
    assert run.cut_text(source, tmp_path / "work", config) == texts
    with pytest.raises(DataError, match=r"--text=.*none\.txt"):
        run.cut_text(tmp_path / "none.txt", tmp_path / "work", config)


def write_run(path: Path, resumed_at: int) -> RunDirectory:
    """The files of a run whose steps took 0.5 s, and had 100 tokens and 28 of padding."""
    run = RunDirectory(path)
    metrics, events = JsonLines(run.metrics_path), JsonLines(run.events_path)
    for start, seconds in ((0, 50.0), (resumed_at, 3.0)):
        events.append({"kind": "compile", "function": "train_step", "seconds": seconds})
        events.append({"kind": "compile", "function": "eval_step", "seconds": seconds / 10})
        if start:
            events.append({"kind": "resume", "step": start})
    for step in range(10, 50, 10):
        row = {"step": step, "train/loss": 5 - step / 10, "train/skipped": 0.0}
        row |= {"train/tokens": 128.0 * step, "mem/host_peak_gib": 0.5}
        if step != resumed_at + 1:  # one step, the first after a start, has no time
            row |= {"perf/step_s": 0.5, "perf/tokens_per_s": 200.0}
        metrics.append(row)
        if step % 20 == 0:
            metrics.append({"step": step, "eval/loss": 6.0, "eval/bpb": step / 10})
            events.append({"kind": "eval", "step": step, "seconds": 2.0})
    metrics.append({"step": 40, "final/loss": 6.5, "final/bpb": 4.5})
    for log in (metrics, events):
        log.close()
    return run


@pytest.mark.parametrize("resumed_at", [20, 29])
def test_a_run_is_described_by_its_files(load, tmp_path: Path, resumed_at: int):
    found = load("experiments.study").describe_run(write_run(tmp_path, resumed_at))
    assert found["steps"] == 40
    assert found["tokens"] == 4000
    assert found["tokens_and_padding"] == 5120
    assert found["training_s"] == 20.0
    assert found["validation_s"] == 4.0
    assert found["compile_s"] == 3.3
    assert found["tokens_per_s"]["min"] == found["tokens_per_s"]["max"] == 200.0
    assert found["training"]["seconds"] == [5.0, 10.0, 15.0, 20.0]
    assert found["training"]["loss"] == [4.0, 3.0, 2.0, 1.0]
    assert found["validation"]["step"] == [20, 40]
    assert found["validation"]["loss"] == [6.0, 6.5]
    assert found["validation"]["bits_per_byte"] == [2.0, 4.5]


def test_a_study_trains_once_and_is_drawn(load, tmp_path: Path, text: Path):
    args = ["--seeds=1", "--only=float-attention", f"--work={tmp_path}", *toy_arguments(text)]
    args += ["--config.steps=8", "--config.eval.every_steps=4"]
    done = run_script(MIXERS_STUDY, *args)
    assert done.returncode == 0, done.stdout + done.stderr
    path = tmp_path / "results.json"
    record = json.loads(path.read_text())
    assert list(record["runs"]) == ["float-attention-seed0"]
    run = record["runs"]["float-attention-seed0"]
    assert run["steps"] == 8
    assert run["validation"]["step"] == [4, 8]

    metrics = tmp_path / "float-attention-seed0" / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    assert run_script(MIXERS_STUDY, *args).returncode == 0
    assert metrics.stat().st_mtime_ns == before
    assert json.loads(path.read_text())["runs"] == record["runs"]

    done = run_script(MIXERS_STUDY, *args, "--config.steps=6")
    assert done.returncode == 2
    assert "another overrides" in done.stderr
    done = run_script(MIXERS_STUDY, *args, "--config.steps=6", "--force")
    assert done.returncode == 1
    assert "steps was 8, and is 6" in done.stdout

    pytest.importorskip("matplotlib")
    assert load("experiments.mixers_and_ternary.plot").main([str(path)]) == 0
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_stopped_study_goes_on(tmp_path: Path, text: Path):
    args = ["--seeds=1", "--only=float-attention", f"--work={tmp_path}", *toy_arguments(text)]
    args += ["--config.steps=3000", "--config.eval.every_steps=0"]
    command = [sys.executable, "-m", MIXERS_STUDY, *args]
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    run = RunDirectory(tmp_path / "float-attention-seed0")
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not run.read_metrics()[0]:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 130
    finally:
        process.kill()
    status = run.read_status()
    assert status is not None
    assert status.state == "stopped"
    (saved,) = run.checkpoint_steps()
    assert 0 < saved < 3000

    done = run_script(MIXERS_STUDY, *args)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())["runs"]["float-attention-seed0"]
    assert found["steps"] == 3000
    resumed = [event for event in run.read_events()[0] if event["kind"] == "resume"]
    assert [event["step"] for event in resumed] == [saved]


@pytest.mark.slow
def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path: Path, text: Path):
    blocked = tmp_path / "ternary-attention-seed0"
    blocked.write_text("not a folder")
    only = "--only=ternary-attention,ternary-half,float-half"
    args = ["--seeds=1", only, f"--work={tmp_path}", *toy_arguments(text)]
    done = run_script(MIXERS_STUDY, *args, "--config.steps=4", "--config.eval.every_steps=0")
    assert done.returncode == 1
    assert str(blocked) in done.stdout
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert list(runs) == ["ternary-half-seed0", "float-half-seed0"]
    for name, run in runs.items():
        model = json.loads((tmp_path / name / "config.json").read_text())["model"]
        assert model["ternary"]["mlp"] == (run["weights"] == "ternary") == model["ternary"]["mixer"]
        assert model["mlp_dim"] == run["mlp_dim"]
        assert model["mixers"] == ["ttt_linear", "attention"]
    losses = [run["validation"]["loss"][-1] for run in runs.values()]
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_shakespeare_in_little_time(load, tmp_path: Path):
    rng = np.random.default_rng(0)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(rng.choice(["alpha", "beta", "gamma"], 2000)))
    args = [f"--text={text}", "--seeds=1", "--only=ternary-*", "--seconds=0.5"]
    done = run_script(SHAKESPEARE_STUDY, *args, f"--work={tmp_path / 'work'}", *TOY_MODEL)
    assert done.returncode == 0, done.stdout + done.stderr
    path = tmp_path / "work" / "results.json"
    record = json.loads(path.read_text())
    assert str(tmp_path) not in json.dumps(record)
    characters = record["text"]["validation"]["train"]["bytes"]
    for run in record["runs"].values():
        assert run["steps"] > 3
        assert run["compile_s"] > 0
        for found in run["validation_by_length"].values():
            assert found["predictions"] == characters + 1  # and the end of the text
            assert 0 < found["nats_per_character"] < 6
    pytest.importorskip("matplotlib")
    assert load("experiments.char_shakespeare.plot").main([str(path)]) == 0
    assert path.with_name("result.svg").exists()
