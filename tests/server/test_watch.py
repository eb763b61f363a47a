"""Newer checkpoints of a run that goes on, and ones that can't be loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from bitttt_jax.inference.model import Model
from bitttt_jax.server.watch import Watcher
from tests.server import live as live_server
from tests.server.live import running, until


def checkpoint(run: Path, step: int) -> None:
    folder = run / "ckpt" / str(step)
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "_METADATA").touch()
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps({"commit_timestamp_nsecs": 1}))


def test_newer_checkpoints_are_taken_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    loaded: list[int] = []

    def load(step: int) -> Model:
        loaded.append(step)
        if step == 3:
            raise FileNotFoundError("it is gone")
        model = live_server.model("ttt_linear")
        return dataclasses.replace(model, step=step, description=f"step {step}")

    checkpoint(tmp_path, 1)
    with running(lambda: load(1), playground=True) as live, live.client() as http:
        watcher = Watcher(tmp_path, load, live.worker, 0.01)
        watcher.start()
        found = lambda: http.get("/bitttt/model").json()
        until(lambda: found()["newest_step"] == 1)
        checkpoint(tmp_path, 2)
        until(lambda: found()["step"] == 2)
        checkpoint(tmp_path, 3)
        until(lambda: found()["newest_step"] == 3)
        assert found()["step"] == 2
        checkpoint(tmp_path, 4)
        until(lambda: found()["step"] == 4)
        watcher.stop()
    assert loaded == [1, 2, 3, 4]
    assert "step 3 can't be loaded: it is gone" in capsys.readouterr().err
