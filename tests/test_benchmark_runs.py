"""The benchmark scripts run; nothing here looks at how long anything takes."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from bitttt_jax.config import ModelConfig, TernaryConfig
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.interop import gguf_export
from bitttt_jax.models.transformer import init_params
from tests.scripts import run_script

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
TOY_MODEL = ModelConfig(
    vocab_size=320,
    dim=64,
    num_layers=1,
    num_heads=1,
    mlp_dim=64,
    ternary=TernaryConfig(mixer=False, mlp=False),
)


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


def test_one_case_is_measured():
    name = "attention-ternary_int8-float32-T32-b2"
    done = run_script("benchmarks.train_case", name, 0, 3, "--tiny")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["step_s"]) == 3
    assert found["positions"] == 64 >= found["tokens"] > 56
    assert found["skipped"] == 0
    assert set(found["lower_and_compile_s"]) == {"train_step"}
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
def test_the_studio_is_measured(tmp_path: Path):
    path = tmp_path / "record.json"
    flags = ["--rows=500", "--repeats=1", "--updates=2", "--watched_s=1", "--flood_mb=2"]
    done = run_script("benchmarks.studio", *flags, f"--output={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(path.read_text())
    for name in ("start_s", "open_s", "open_again_s", "update_s", "flood_answer_s"):
        assert 0 < record[name]["median"] < 60, name
    for pages in (0, 1, 8):
        assert 0 <= record[f"cpu_with_{pages}_pages_percent"] < 100


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


@pytest.mark.slow
def test_packed_models_are_measured(tmp_path: Path):
    path = tmp_path / "record.json"
    done = run_script("benchmarks.packed", "--tiny", "--rounds=1", f"--output={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(tmp_path) not in path.read_text()
    record = json.loads(path.read_text())
    tables = ["attention", "attention_int4", "attention_int4x2"]
    cases = [*tables, "batch", "ttt_linear", "load"]
    assert list(record["cases"]) == cases
    assert list(record["cases"]["batch"]["summary"]["step_s"]) == ["16"]
    for name in (*tables, "ttt_linear"):
        summary = record["cases"][name]["summary"]
        assert list(summary["prefill_s"]) == ["16"]
        assert list(summary["step_s"]) == ["16", "32"]
        (result,) = record["cases"][name]["runs"]
        assert summary["step_s"]["32"]["median"] == pytest.approx(
            result["runs"][2]["median"], rel=1e-3
        )
    load = record["cases"]["load"]["summary"]["load"]
    assert load["peak_resident_bytes"]["median"] >= load["resident_bytes"]["median"] > 0


@pytest.mark.slow
def test_loading_is_measured(tmp_path: Path):
    path = tmp_path / "record.json"
    args = ["--tiny", "--rounds=1", "--steps=2", f"--output={path}"]
    done = run_script("benchmarks.load_2b4t", *args)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(tmp_path) not in path.read_text()
    record = json.loads(path.read_text())
    assert list(record["cases"]) == ["bfloat16", "int8"]
    for case in record["cases"].values():
        (run,) = case["runs"]
        assert run["description"] == "GGUF, bitnet-b1.58, I2_S and F16"
        assert case["summary"]["peak_resident_bytes"]["median"] > run["file_bytes"] > 2**20


@pytest.mark.slow
def test_a_real_model_is_measured_without_peers(tmp_path: Path):
    model, path = tmp_path / "toy.gguf", tmp_path / "record.json"
    tokenizer = Tokenizer.train(["a b c d e f g"], TOY_MODEL.vocab_size)
    values = init_params(TOY_MODEL, jax.random.key(0))
    gguf_export.write(model, TOY_MODEL, values, tokenizer, "gguf-f16", name="toy", context=64)
    args = [f"--model={model}", "--only=bfloat16,int8", "--prefill=16", "--steps=4"]
    done = run_script("benchmarks.smollm2", *args, "--rounds=1", f"--output={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(tmp_path) not in path.read_text()
    record = json.loads(path.read_text())
    assert record["model"] == "toy.gguf"
    assert list(record["cases"]) == ["bfloat16", "int8"]
    for name, case in record["cases"].items():
        assert f"--weights={name}" in case["command"]
        prompt, step = case["runs"][0]["runs"]
        assert (prompt["tokens"], step["context"]) == (16, 16)
        assert case["summary"]["step_s"]["median"] == pytest.approx(step["median"], rel=1e-3)


def test_a_model_that_is_not_there_cannot_be_measured(tmp_path: Path):
    done = run_script("benchmarks.smollm2", f"--model={tmp_path / 'none.gguf'}")
    assert done.returncode == 2
    assert "none.gguf" in done.stderr
