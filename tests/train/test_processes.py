"""Runs in processes of their own: killed, stopped, too large, and several at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitttt_jax.config import CheckpointConfig, EvalConfig, LogConfig, TrainConfig
from bitttt_jax.errors import ExitCode
from bitttt_jax.runs.directory import RunDirectory
from tests.train.runs import (
    DEADLINE_S,
    ROOT,
    arguments,
    assert_same_state,
    copy_run,
    events,
    rows,
    state_of,
)
from tests.training.samples import make_run_config


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


def losses_of_the_debug_preset(folder: Path, text: Path, *flags: str) -> np.ndarray:
    """Of all steps of a run, which must end well."""
    flags += (f"--workdir={folder}", f"--config.data.sources={text}")
    flags += ("--config.data.validation_fraction=0.3", "--config.log.every_steps=1")
    done = subprocess.run(
        [sys.executable, "-m", "bitttt_jax.train", "--config=debug", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
    )
    assert done.returncode == ExitCode.OK, done.stderr
    assert "sample   def " in done.stdout
    assert list(rows(folder, "ttt/inner_loss_updated")) == [20, 40, 60]
    losses = rows(folder, "train/loss")
    assert len(losses) == 60
    return np.array(list(losses.values()))


MESH = ("--sim_devices=8", "--config.mesh.fsdp=4", "--config.mesh.tensor=2")


@pytest.mark.slow
def test_the_debug_preset_on_a_mesh(tmp_path: Path, text: Path):
    """Equal but for rounding, until that has moved enough codes of weights and activations."""
    one = losses_of_the_debug_preset(tmp_path / "one", text, "--sim_devices=1")
    flags = (*MESH, "--config.model.ttt.implementation=xla")
    eight = losses_of_the_debug_preset(tmp_path / "eight", text, *flags)
    np.testing.assert_allclose(eight[:20], one[:20], rtol=1e-5)
    np.testing.assert_allclose(eight, one, rtol=1e-2)


@pytest.mark.slow
def test_kernels_on_a_mesh_where_rounding_can_move_no_code(tmp_path: Path, text: Path):
    floats = ("--config.model.ternary.mixer=False", "--config.model.ternary.mlp=False")
    one = losses_of_the_debug_preset(tmp_path / "one", text, "--sim_devices=1", *floats)
    eight = losses_of_the_debug_preset(tmp_path / "eight", text, *MESH, *floats)
    np.testing.assert_allclose(eight, one, rtol=1e-6)
