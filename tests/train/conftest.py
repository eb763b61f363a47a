"""The text and the configuration of the runs here, and one run that is finished."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitttt_jax import train
from bitttt_jax.config import LogConfig, TrainConfig
from bitttt_jax.errors import ExitCode
from tests.train.runs import DEADLINE_S, ROOT, arguments
from tests.training.samples import make_run_config, write_texts


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
