"""A run that was trained for a few steps, for the commands that read one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bitttt_jax import train
from bitttt_jax.errors import ExitCode
from tests.tiny import TINY


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Documents of a few hundred bytes."""
    rng = random.Random(0)
    words = ["def", "return", "naïve", "x += 1", "日本語", "🎉", "\n", "    "]
    return [f"{n}: " + " ".join(rng.choices(words, k=rng.randint(5, 60))) for n in range(30)]


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A run directory with checkpoints of steps 2 and 4; nobody may change it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text").mkdir()
    for n, text in enumerate(texts):
        (folder / "text" / f"{n:02}.txt").write_text(text, encoding="utf-8")
    overrides = TINY | {"data.sources": folder / "text", "log.tensorboard": False}
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    run = folder / "run"
    assert train.main(["--config=debug", f"--workdir={run}", *flags]) == ExitCode.OK
    return run
