"""Whole runs: what they write, how they end, and how they go on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitttt_jax import train
from bitttt_jax.config import CheckpointConfig, EvalConfig, LogConfig, TrainConfig
from bitttt_jax.config_loading import to_json
from bitttt_jax.errors import ExitCode
from bitttt_jax.runs.directory import RunDirectory
from tests.training.samples import make_run_config, write_texts

ROOT = Path(__file__).parent.parent
# Generous, for the machine may be busy: nothing waits this long where all is well.
DEADLINE_S = 180


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("train") / "text")


@pytest.fixture(scope="session")
def config(text: Path) -> TrainConfig:
    """The configuration of nearly all runs here: every other one is compiled anew."""
    config = make_run_config(text)
    # With a constant rate the compiled step doesn't depend on the number of steps.
    optim = dataclasses.replace(config.optim, schedule="constant")
    return dataclasses.replace(config, optim=optim)


@pytest.fixture
def start(tmp_path: Path, config: TrainConfig) -> Callable[..., int]:
    """Trains in this process, in `tmp_path / "run"`; returns the exit code."""

    def run(*flags: str, config: TrainConfig = config) -> int:
        return train.main(arguments(tmp_path / "run", config, *flags))

    return run


def arguments(workdir: Path, config: TrainConfig, *flags: str) -> list[str]:
    path = workdir.with_suffix(".json")
    path.write_text(to_json(config))
    return [f"--config={path}", f"--workdir={workdir}", "--console=plain", *flags]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, config: TrainConfig) -> Path:
    """A run of 12 steps with all its outputs; nobody may change it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    config = dataclasses.replace(
        config, log=LogConfig(every_steps=2, health_every_steps=6, tensorboard=True)
    )
    with (folder.parent / "out.txt").open("w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "bitttt_jax.train", *arguments(folder, config)],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=DEADLINE_S,
        )
    assert done.returncode == ExitCode.OK, (folder.parent / "out.txt").read_text()
    return folder


def rows(folder: Path, tag: str) -> dict[int, float]:
    """Values of a tag by step; no step may have two."""
    found = [
        (row["step"], row[tag]) for row in RunDirectory(folder).read_metrics()[0] if tag in row
    ]
    assert len(dict(found)) == len(found), f"{tag} of a step was written twice"
    return dict(found)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in RunDirectory(folder).read_events()[0] if row["kind"] == kind]


def state_of(folder: Path, config: TrainConfig, step: int) -> dict[str, np.ndarray]:
    """Everything that a checkpoint holds, by path."""
    import jax

    from bitttt_jax.config_loading import with_vocabulary
    from bitttt_jax.models.parameters import flatten
    from bitttt_jax.runs.checkpoints import Checkpoints
    from bitttt_jax.training.step import init_state

    config = with_vocabulary(config, 257)
    target = jax.eval_shape(functools.partial(init_state, config))
    with Checkpoints(folder / "ckpt") as checkpoints:
        restored = checkpoints.restore(target, step)
    return {path: np.asarray(value) for path, value in flatten(restored).items()}


def assert_same_state(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys() and any("mu/" in path for path in a)
    for path, value in a.items():
        np.testing.assert_array_equal(value, b[path], err_msg=path)


def test_what_a_run_writes(finished: Path, config: TrainConfig):
    run = RunDirectory(finished)
    assert run.read_config() == finished.with_suffix(".json").read_text()
    status = run.read_status()
    assert status is not None and status.finished
    assert (status.state, status.step, status.steps, status.exit_code) == ("finished", 12, 12, 0)
    for tag in ("train/loss", "train/bpb", "lr", "grad_norm", "perf/step_s", "mem/host_peak_gib"):
        assert list(rows(finished, tag)) == [2, 4, 6, 8, 10, 12]
    assert list(rows(finished, "eval/loss")) == [4, 8, 12]
    assert list(rows(finished, "final/loss")) == [12]
    assert list(rows(finished, "quant/zero_share")) == [6, 12]
    assert list(rows(finished, "quant/flip_share")) == [12]
    losses = list(rows(finished, "train/loss").values())
    assert losses[0] > 5 and losses[-1] < losses[0]
    tokens = config.data.batch_size * config.data.seq_len
    assert rows(finished, "train/tokens") == {step: step * tokens for step in range(2, 13, 2)}
    assert [event["step"] for event in events(finished, "checkpoint")] == [4, 8, 12]
    assert [event["step"] for event in events(finished, "eval")] == [4, 8, 12, 12]
    assert [event["function"] for event in events(finished, "compile")] == [
        "train_step", "eval_step",
    ]  # fmt: skip
    assert not (finished / "error.json").exists()
    assert "bitttt_jax.train" in (finished / "command.txt").read_text()


def test_bits_per_byte_and_the_final_validation(finished: Path):
    from bitttt_jax.data.shards import TokenDataset

    train_split, held_out = (
        TokenDataset.open(finished / "data", split) for split in ("train", "validation")
    )
    for tag, split in (("train", train_split), ("eval", held_out), ("final", held_out)):
        ratio = split.tokens / split.text_bytes / np.log(2)
        for step, loss in rows(finished, f"{tag}/loss").items():
            assert rows(finished, f"{tag}/bpb")[step] == pytest.approx(loss * ratio, rel=1e-6)
            assert rows(finished, f"{tag}/ppl")[step] == pytest.approx(np.exp(loss), rel=1e-6)
    out = (finished.parent / "out.txt").read_text()
    assert f"all {held_out.tokens:,} held-out tokens" in out
    part, whole = rows(finished, "eval/loss")[12], rows(finished, "final/loss")[12]
    assert part != whole and abs(part - whole) < 0.3


def test_what_a_run_prints(finished: Path):
    out = (finished.parent / "out.txt").read_text()
    labels = [line.split()[0] for line in out.splitlines() if line[:1].strip()]
    order = ["run", "version", "data", "model", "optim", "mesh", "compile", "memory", "log", "eval"]
    positions = [labels.index(label) for label in order]
    assert positions == sorted(positions)
    assert f"NEW RUN {finished}" in out and "8 x cpu" in out and "\r" not in out
    assert out.count("n/a (cpu backend keeps no device statistics)") == 1
    assert re.search(r"^step=12/12 loss=\d.* eta=0s$", out, re.MULTILINE)
    assert out.count("\nckpt ") == 4  # three checkpoints, and their list in the summary
    assert re.search(r"^status +finished, step 12/12$", out, re.MULTILINE)
    assert (finished / "train.log").read_text() == out


def test_histograms_go_to_tensorboard(finished: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tb"))
    events.Reload()
    assert [event.step for event in events.Scalars("eval/loss")] == [4, 8, 12]
    assert [event.step for event in events.Tensors("quant/latent")] == [6, 12]


def copy_run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_finished_run_is_not_touched(
    finished: Path,
    tmp_path: Path,
    start: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
):
    folder = copy_run(finished, tmp_path)
    before = (folder / "metrics.jsonl").read_bytes()
    assert start() == ExitCode.OK
    assert "nothing to do" in (out := capsys.readouterr().out) and "step 12/12" in out
    assert "compile" not in out
    assert (folder / "metrics.jsonl").read_bytes() == before
    status = RunDirectory(folder).read_status()
    assert status is not None and status.finished and status.exit_code == 0


def test_more_steps_go_on_where_the_run_ended(
    finished: Path,
    tmp_path: Path,
    config: TrainConfig,
    start: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
):
    folder = copy_run(finished, tmp_path)
    assert start(config=dataclasses.replace(config, steps=16)) == ExitCode.OK
    out = capsys.readouterr().out
    assert f"RESUMING {folder} from step 12" in out
    assert list(rows(folder, "train/loss")) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert list(rows(folder, "eval/loss")) == [4, 8, 12, 16]
    assert [event["step"] for event in events(folder, "resume")] == [12]
    straight = tmp_path / "straight"
    code = train.main(arguments(straight, dataclasses.replace(config, steps=16)))
    assert code == ExitCode.OK
    assert_same_state(state_of(folder, config, 16), state_of(straight, config, 16))
    for tag in ("train/loss", "eval/loss"):
        assert rows(folder, tag) == rows(straight, tag)


def test_the_best_loss_outlives_a_restart(
    finished: Path,
    tmp_path: Path,
    config: TrainConfig,
    start: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
):
    """The run goes on with a rate that ruins it."""
    copy_run(finished, tmp_path)
    ruinous = dataclasses.replace(config.optim, lr=30.0)
    assert start(config=dataclasses.replace(config, steps=13, optim=ruinous)) == ExitCode.OK
    summary = capsys.readouterr().out.partition("Training summary")[2]
    best = min(rows(finished, "eval/loss").values())
    assert re.search(rf"^best +loss {best:.3f} .*\(step 12\)$", summary, re.MULTILINE)
    assert re.search(r"^final +loss .*\(step 13\)$", summary, re.MULTILINE)


def test_another_configuration_is_refused_moved_or_forced(
    finished: Path,
    tmp_path: Path,
    config: TrainConfig,
    start: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
):
    folder = copy_run(finished, tmp_path)
    other = dataclasses.replace(config, seed=7, steps=14)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert start(config=other) == ExitCode.USAGE
    assert re.search(r"seed +0 +7", capsys.readouterr().err)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert start("--resume=force", config=other) == ExitCode.OK
    assert "from step 12" in capsys.readouterr().out
    assert start("--resume=never") == ExitCode.OK
    assert "NEW RUN" in capsys.readouterr().out
    assert list(rows(folder, "train/loss")) == [2, 4, 6, 8, 10, 12]
    assert list(rows(folder / "old-1", "train/loss"))[-1] == 14


def test_a_time_limit_saves_and_stops(
    tmp_path: Path, config: TrainConfig, finished: Path, start: Callable[..., int]
):
    limited = dataclasses.replace(config, max_minutes=1e-6)
    assert start(config=limited) == ExitCode.PREEMPTED
    folder = tmp_path / "run"
    status = RunDirectory(folder).read_status()
    assert status is not None and (status.state, status.exit_code) == ("stopped", 42)
    assert RunDirectory(folder).checkpoint_steps() == [status.step] == [1]
    assert [(e["step"], e["exit_code"]) for e in events(folder, "stop")] == [(1, 42)]
    assert start() == ExitCode.OK
    assert_same_state(state_of(folder, config, 12), state_of(finished, config, 12))


def test_without_held_out_documents(
    tmp_path: Path,
    config: TrainConfig,
    start: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
):
    """A single document can't be split."""
    (tmp_path / "one.txt").write_text("the cat reads " * 200)
    source = dataclasses.replace(config.data.sources[0], path=str(tmp_path / "one.txt"))
    data = dataclasses.replace(config.data, sources=(source,), validation_fraction=0.05)
    assert start(config=dataclasses.replace(config, data=data)) == ExitCode.OK
    out = capsys.readouterr().out
    assert len(re.findall(r"^warning .*without validation$", out, re.MULTILINE)) == 1
    assert not rows(tmp_path / "run", "eval/loss") and not rows(tmp_path / "run", "final/loss")
    assert RunDirectory(tmp_path / "run").checkpoint_steps() == [8, 12]
    assert len(events(tmp_path / "run", "warn")) == 1


def test_a_run_that_diverges_keeps_its_checkpoint(
    tmp_path: Path,
    config: TrainConfig,
    start: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
):
    assert start(config=dataclasses.replace(config, steps=4)) == ExitCode.OK
    optim = dataclasses.replace(config.optim, lr=1e35, max_skipped=3)
    ruined = dataclasses.replace(config, steps=50, optim=optim)
    assert start(config=ruined) == ExitCode.DIVERGED
    folder = tmp_path / "run"
    error = json.loads((folder / "error.json").read_text())
    assert (error["kind"], error["exit_code"], error["traceback"]) == ("diverged", 4, None)
    assert "3 updates in a row" in error["title"] and "at step 8" in error["title"]
    assert "a lower optim.lr" in error["hints"]
    assert "Traceback" not in capsys.readouterr().err
    status = RunDirectory(folder).read_status()
    assert status is not None and (status.state, status.error_kind) == ("failed", "diverged")
    last = RunDirectory(folder).read_metrics()[0][-1]
    assert last["step"] == 8 and last["train/skipped"] == 3


# --- killed, stopped, and too large: runs in processes of their own ---------------------------


class Process:
    """A training process with one device, or several of them, and the run that they write."""

    compile_cache: Path

    def __init__(self, folder: Path, config: TrainConfig, *flags: str, processes: int = 1):
        self.run = RunDirectory(folder)
        self._output = folder.with_suffix(".out")
        command: list[str | Path] = [sys.executable, "-m", "bitttt_jax.train"]
        if processes > 1:
            command = [ROOT / "launch.sh", f"--local_processes={processes}"]
        with self._output.open("w") as out:
            self.process = subprocess.Popen(
                [*command, *arguments(folder, config, *flags)],
                cwd=ROOT,
                env=os.environ
                | {
                    "PYTHON": sys.executable,
                    "JAX_NUM_CPU_DEVICES": "1",
                    "JAX_COMPILATION_CACHE_DIR": str(self.compile_cache),
                },
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @classmethod
    def compiled_steps(cls) -> set[str]:
        """The train and eval steps that have been compiled in processes so far."""
        return {path.name for path in cls.compile_cache.glob("jit_*_step-*-cache")}

    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, step: int) -> None:
        """Until the metrics of a step are written."""
        self.wait_until(lambda: any(row["step"] >= step for row in self.run.read_metrics()[0]))

    def wait_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.005)

    def exit_code(self) -> int:
        return self.process.wait(DEADLINE_S)


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    Process.compile_cache = tmp_path_factory.mktemp("compile_cache")


@pytest.fixture(scope="session")
def long(config: TrainConfig) -> TrainConfig:
    """Long enough to be interrupted, with rows of every step."""
    return dataclasses.replace(
        config,
        steps=300,
        checkpoint=CheckpointConfig(every_steps=19, keep_last=1),
        eval=EvalConfig(every_steps=100, batches=1),
        log=LogConfig(every_steps=1, health_every_steps=0, tensorboard=False),
    )


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, long: TrainConfig) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert Process(folder, long).exit_code() == ExitCode.OK
    return folder


def interrupt(
    folder: Path, config: TrainConfig, number: signal.Signals, step: int, processes: int = 1
) -> int:
    """Starts or resumes a run; sends it a signal soon after a step, when it has a checkpoint."""
    process = Process(folder, config, processes=processes)
    process.wait_for(step)
    process.wait_until(process.run.checkpoint_steps)
    process.process.send_signal(number)
    return process.exit_code()


def check_interrupted(folder: Path, config: TrainConfig, uninterrupted: Path) -> None:
    """Resumes a run, which then must end with the numbers of one that nothing interrupted."""
    assert Process(folder, config).exit_code() == ExitCode.OK
    for tag in ("train/loss", "eval/loss", "final/loss", "grad_norm"):
        assert rows(folder, tag) == rows(uninterrupted, tag)
    last = config.steps
    assert_same_state(state_of(folder, config, last), state_of(uninterrupted, config, last))


def test_kill_sigterm_and_ctrl_c_then_the_same_numbers(
    tmp_path: Path, long: TrainConfig, uninterrupted: Path
):
    folder, compiled = tmp_path / "run", Process.compiled_steps()
    run = RunDirectory(folder)
    assert interrupt(folder, long, signal.SIGKILL, 25) == -signal.SIGKILL
    status = run.read_status()
    assert status is not None and status.state in ("running", "saving")
    assert not status.process_alive()
    for number, code, step in (
        (signal.SIGTERM, ExitCode.PREEMPTED, 60),
        (signal.SIGINT, ExitCode.INTERRUPTED, 100),
    ):
        assert interrupt(folder, long, number, step) == code
        status = run.read_status()
        assert status is not None and (status.state, status.exit_code) == ("stopped", code)
        assert step <= status.step < long.steps
        assert run.checkpoint_steps()[-1] == status.step
        assert events(folder, "stop")[-1]["step"] == status.step
    check_interrupted(folder, long, uninterrupted)
    resumed = [event["step"] for event in events(folder, "resume")]
    assert len(resumed) == 3 and resumed == sorted(resumed)
    assert resumed[1:] == [event["step"] for event in events(folder, "stop")]
    assert len(compiled) == 2 and Process.compiled_steps() == compiled  # once, for all starts


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_at_random_points(tmp_path: Path, long: TrainConfig, uninterrupted: Path, seed: int):
    """Also while it starts, and while a checkpoint is being written."""
    rng, folder = random.Random(seed), tmp_path / "run"
    config = dataclasses.replace(long, checkpoint=CheckpointConfig(every_steps=2, keep_last=1))
    for _ in range(4):
        process = Process(folder, config)
        if rng.random() < 0.7:
            process.wait_for(rng.randint(1, long.steps - 20))
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.process.wait(rng.uniform(0.5, 6))
        process.process.kill()
        assert process.exit_code() in (-signal.SIGKILL, ExitCode.OK)
    check_interrupted(folder, long, uninterrupted)


@pytest.mark.slow
def test_killed_with_all_mixers_and_muon(tmp_path: Path, long: TrainConfig, text: Path):
    model = make_run_config(text, "ttt_linear", "attention", "ttt_mlp").model
    optim = dataclasses.replace(long.optim, name="muon", accumulation=2)
    config = dataclasses.replace(long, model=model, optim=optim)
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert Process(whole, config).exit_code() == ExitCode.OK
    assert interrupt(folder, config, signal.SIGKILL, 30) == -signal.SIGKILL
    assert interrupt(folder, config, signal.SIGUSR2, 70) == ExitCode.PREEMPTED
    check_interrupted(folder, config, whole)


def test_ctrl_c_twice(tmp_path: Path, long: TrainConfig):
    process = Process(tmp_path / "run", dataclasses.replace(long, steps=10**6))
    process.wait_for(3)
    process.process.send_signal(signal.SIGINT)
    process.wait_until(lambda: "Ctrl-C again stops at once" in process.output())
    process.process.send_signal(signal.SIGINT)
    assert process.exit_code() == ExitCode.INTERRUPTED
    assert "Traceback" not in process.output()
    status = process.run.read_status()
    assert status is not None and (status.state, status.exit_code) == ("stopped", 130)


TOO_LARGE = """
import resource, sys
from bitttt_jax.train import main
resource.setrlimit(resource.RLIMIT_AS, (32 * 2**30,) * 2)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory differ")
@pytest.mark.slow
def test_a_model_that_does_not_fit(tmp_path: Path, config: TrainConfig):
    model = dataclasses.replace(config.model, vocab_size=2**29)  # 64 GiB, and their moments
    folder = tmp_path / "run"
    flags = arguments(folder, dataclasses.replace(config, model=model))
    done = subprocess.run(
        [sys.executable, "-c", TOO_LARGE, *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == ExitCode.OUT_OF_MEMORY, done.stderr
    assert "Traceback" not in done.stderr and "out of device memory" in done.stderr
    error = json.loads((folder / "error.json").read_text())
    assert error["kind"] == "out_of_memory" and error["hints"]
    status = RunDirectory(folder).read_status()
    assert status is not None and (status.state, status.exit_code) == ("failed", 3)


def test_dry_run(tmp_path: Path, config: TrainConfig, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "run"
    before = arguments(folder, config, "--dry_run")
    there = set(tmp_path.rglob("*"))
    assert train.main(before) == ExitCode.OK
    assert set(tmp_path.rglob("*")) == there
    out = capsys.readouterr().out
    assert "vocabulary 320" in out and "data=8 fsdp=1 tensor=1" in out
    assert re.search(r"^memory +[\d.]+ [KM]iB a device", out, re.MULTILINE)
    assert "loss" not in out


# --- many devices, many processes -------------------------------------------------------------


def test_two_processes_train_what_one_does(tmp_path: Path, finished: Path, config: TrainConfig):
    folder = tmp_path / "run"
    config = dataclasses.replace(
        config,
        eval=dataclasses.replace(config.eval, sample_prompt="def ", sample_tokens=5),
        log=LogConfig(every_steps=2, health_every_steps=6, tensorboard=True),
    )
    process = Process(folder, config, processes=2)
    assert process.exit_code() == ExitCode.OK
    out = process.output()
    for tag in ("train/loss", "eval/loss", "final/loss", "quant/zero_share"):
        found, expected = rows(folder, tag), rows(finished, tag)
        assert list(found) == list(expected)
        assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-5)
    assert "data=2 fsdp=1 tensor=1" in out and "1 local of 2 devices" in out
    assert out.count("sample ") == 3
    others = [line for line in out.splitlines() if line.startswith("[1]")]
    assert all("[Gloo]" in line for line in others), out
    assert len(list((folder / "tb").iterdir())) == 1


@pytest.mark.slow
def test_two_processes_stop_and_go_on_together(tmp_path: Path, long: TrainConfig):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert Process(whole, long, processes=2).exit_code() == ExitCode.OK
    assert interrupt(folder, long, signal.SIGTERM, 20, processes=2) == ExitCode.PREEMPTED
    run = RunDirectory(folder)
    status = run.read_status()
    assert status is not None and run.checkpoint_steps()[-1] == status.step < long.steps
    assert Process(folder, long, processes=2).exit_code() == ExitCode.OK
    last = long.steps
    assert_same_state(state_of(folder, long, last), state_of(whole, long, last))


def test_a_failure_of_process_0_ends_all(tmp_path: Path, finished: Path, config: TrainConfig):
    copy_run(finished, tmp_path)
    other = dataclasses.replace(config, seed=3)
    process = Process(tmp_path / "run", other, processes=2)
    assert process.exit_code() == ExitCode.USAGE
    out = process.output()
    assert "holds another run" in out and "[1] error: process 0 failed" in out
    assert "Traceback" not in out


@pytest.mark.slow
def test_the_debug_preset_on_a_mesh(tmp_path: Path, text: Path):
    """Equal but for rounding, until that has moved enough codes of weights and activations."""
    losses = []
    for name, *mesh in (
        ("one", "--sim_devices=1"),
        ("eight", "--sim_devices=8", "--config.mesh.fsdp=4", "--config.mesh.tensor=2"),
    ):
        flags = [f"--workdir={tmp_path / name}", f"--config.data.sources={text}", *mesh]
        flags += ["--config.data.validation_fraction=0.3", "--config.log.every_steps=1"]
        done = subprocess.run(
            [sys.executable, "-m", "bitttt_jax.train", "--config=debug", *flags],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE_S,
        )
        assert done.returncode == ExitCode.OK, done.stderr
        assert "sample   def " in done.stdout
        losses.append(rows(tmp_path / name, "train/loss"))
        assert list(rows(tmp_path / name, "ttt/inner_loss_updated")) == [20, 40, 60]
    one, eight = (np.array(list(values.values())) for values in losses)
    assert len(one) == 60
    np.testing.assert_allclose(eight[:20], one[:20], rtol=1e-5)
    np.testing.assert_allclose(eight, one, rtol=1e-2)
