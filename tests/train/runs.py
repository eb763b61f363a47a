"""What the tests of whole runs share: how to start one, and how to read what it left."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from bitttt_jax.config import TrainConfig
from bitttt_jax.config_loading import to_json
from bitttt_jax.runs.directory import RunDirectory

ROOT = Path(__file__).parent.parent.parent
# Generous, for the machine may be busy: nothing waits this long where all is well.
DEADLINE_S = 180


def arguments(workdir: Path, config: TrainConfig, *flags: str) -> list[str]:
    path = workdir.with_suffix(".json")
    path.write_text(to_json(config))
    return [f"--config={path}", f"--workdir={workdir}", "--console=plain", *flags]


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


def copy_run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))
