"""A run that was trained for a few steps, for the commands that read one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bitttt_jax import train
from bitttt_jax.errors import ExitCode


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
    overrides = {
        "steps": 4,
        "data.sources": folder / "text",
        "data.validation_fraction": 0.4,
        "data.seq_len": 32,
        "model.dim": 16,
        "model.mlp_dim": 32,
        "model.num_layers": 1,
        "model.mixers": "ttt_linear",
        "model.compute_dtype": "float32",
        "model.ttt.mini_batch": 8,
        "optim.warmup_steps": 1,
        "checkpoint.every_steps": 2,
        "eval.every_steps": 0,
        "eval.sample_prompt": "",
        "log.health_every_steps": 0,
        "log.tensorboard": False,
    }
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    run = folder / "run"
    assert train.main(["--config=debug", f"--workdir={run}", *flags]) == ExitCode.OK
    return run
