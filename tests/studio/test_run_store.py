"""What is said of a run, from its words and its process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from bitttt_jax.config import TrainConfig
from bitttt_jax.config_loading import to_json
from bitttt_jax.runs.status import RunStatus
from bitttt_jax.studio.app import Studio
from bitttt_jax.studio.processes import Job, JobState
from bitttt_jax.studio.run_store import RunStore, derive_state
from tests.studio.conftest import until, write_run

HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> RunStore:
    return RunStore(tmp_path / "runs", tmp_path / "runs/.studio/jobs", clock)


RUNNING = RunStatus(state="running")
DONE, FAILED = RunStatus(state="finished", exit_code=0), RunStatus(state="failed", exit_code=4)


@pytest.mark.parametrize(
    ("status", "alive", "silent", "ended", "forced", "expected"),
    [
        (RUNNING, True, 0, None, False, ("running", None, None)),
        (RUNNING, True, HOUR, None, False, ("running", None, None)),
        (RUNNING, False, 0, None, False, ("lost", None, "lost")),
        (RUNNING, False, 0, JobState("lost"), False, ("lost", None, "lost")),
        (RUNNING, False, 0, JobState("failed", -9), False, ("failed", -9, "killed")),
        (RUNNING, False, 0, JobState("failed", -9), True, ("stopped", -9, None)),
        (RUNNING, False, 0, JobState("failed", 1), False, ("failed", 1, "unexpected")),
        (RUNNING, None, 10, None, False, ("running", None, None)),  # on another host
        (RUNNING, None, HOUR, None, False, ("lost", None, "lost")),
        (DONE, True, 0, None, False, ("finished", 0, None)),  # lingers, and has finished
        (DONE, False, HOUR, JobState("done", 0), False, ("finished", 0, None)),
        (FAILED, False, HOUR, JobState("failed", 4), False, ("failed", 4, None)),
        (None, True, 0, JobState("running"), False, ("starting", None, None)),
        (None, False, 0, JobState("failed", 2), False, ("failed", 2, "config")),
    ],
)
def test_states(status, alive, silent, ended, forced, expected):
    assert derive_state(status, alive, silent, ended, forced) == expected


@pytest.mark.parametrize("skew", [-HOUR, 0, HOUR])
def test_a_silent_process_is_found_whatever_its_clock_says(
    store: RunStore, clock: Clock, tmp_path: Path, skew: float
):
    folder = tmp_path / "runs" / "a"
    write_run(folder, heartbeat=time.time() + skew)
    assert not store.facts("a").not_responding
    clock.now += 59
    assert not store.facts("a").not_responding
    clock.now += 2
    assert store.facts("a").not_responding
    write_run(folder, heartbeat=time.time() + skew + 2)
    assert not store.facts("a").not_responding


def test_an_old_status_file_is_silent_at_first_sight(store: RunStore, tmp_path: Path):
    write_run(tmp_path / "runs" / "a")
    long_ago = time.time() - HOUR
    os.utime(tmp_path / "runs" / "a" / "status.json", (long_ago, long_ago))
    assert store.facts("a").not_responding


def test_a_step_that_hangs(store: RunStore, clock: Clock, tmp_path: Path):
    """The heartbeat comes from another thread, which goes on."""
    folder = tmp_path / "runs" / "a"

    def beats(seconds: int, **status: object) -> bool:
        for _ in range(seconds // 50):
            clock.now += 50
            write_run(folder, heartbeat=clock.now, **status)
            found = store.runs()[0]["not_responding"]
        return found

    write_run(folder)
    (folder / "metrics.jsonl").write_text('{"step": 5, "perf/step_s": 1.0}\n')
    assert not beats(150)
    assert beats(50)
    assert not beats(50, step=6)
    assert not beats(500, step=6, state="compiling")
    (folder / "metrics.jsonl").write_text('{"step": 6, "perf/step_s": 60.0}\n')
    assert not beats(1000, step=7)
    assert beats(300, step=7)


def test_a_process_of_the_same_number_is_another(store: RunStore, tmp_path: Path):
    write_run(tmp_path / "runs" / "a", create_time=1.0)
    facts = store.facts("a")
    assert facts.alive is False and facts.state == "lost"


def test_finished_with_a_lingering_process(fake: Callable[..., Job], studio: Studio):
    fake("linger")
    until((studio.runs / "run" / "ready").exists)
    facts = studio.run_store.facts("run")
    assert (facts.state, facts.alive, facts.exit_code) == ("finished", True, 0)


def test_a_new_start_is_not_judged_by_the_old_status(fake: Callable[..., Job], studio: Studio):
    write_run(studio.runs / "run", state="failed", pid=1, create_time=5.0, exit_code=3)
    assert studio.run_store.facts("run").exit_code == 3
    job = fake("exit", "run", "2")
    assert studio.run_store.facts("run").state in ("starting", "failed")
    until((job.folder / "exit.json").exists)
    until(lambda: studio.run_store.facts("run").exit_code == 2)


def test_the_list(client: TestClient, studio: Studio):
    write_run(studio.runs / "deep" / "er" / "run", create_time=5.0, state="stopped", exit_code=42)
    write_run(studio.runs / "now")
    (studio.runs / "copied").mkdir()
    (studio.runs / "copied" / "config.json").write_text(to_json(TrainConfig()))
    (studio.runs / "none").mkdir()
    (studio.runs / "now" / "old-1").mkdir()
    (studio.runs / "now" / "old-1" / "status.json").write_text("{}")
    (studio.runs / "now" / "metrics.jsonl").write_text(
        '{"step": 1, "eval/loss": 2.5}\n{"step": 5, "train/loss": NaN}\n{"step": 7, "train'
    )
    runs = {run["id"]: run for run in client.get("/api/runs").json()["runs"]}
    assert list(runs) == ["now", "deep/er/run", "copied"]
    now = runs["now"]
    assert (now["state"], now["alive"], now["step"], now["eval_loss"]) == ("running", True, 5, 2.5)
    assert now["train_loss"] is None and now["ternary"] and not now["has_ttt"]
    assert runs["deep/er/run"]["exit_code"] == 42
    one = client.get("/api/runs/deep%2Fer%2Frun").json()
    assert one["id"] == "deep/er/run" and one["can_resume"] and not one["can_stop"]
    assert client.get("/api/runs/deep/er/run").status_code == 404


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"state": "dancing"}', '{"state": "running", "pid": "x"}',
                '{"state": "running", "pid": -5, "create_time": 1e300}', "\x00", '{"a":' * 5000],
)  # fmt: skip
def test_damaged_files_are_no_failure(client: TestClient, studio: Studio, content: str):
    for name in ("status.json", "config.json", "error.json", "events.jsonl", "metrics.jsonl"):
        folder = studio.runs / name.partition(".")[0]
        write_run(folder, create_time=5.0, host=os.uname().nodename)
        (folder / name).write_text(content)
    answer = client.get("/api/runs")
    assert answer.status_code == 200
    for run in answer.json()["runs"]:
        for path in ("", "/series", "/log", "/samples"):
            assert client.get(f"/api/runs/{run['id']}{path}").status_code == 200, run


def test_checkpoints(client: TestClient, studio: Studio):
    folder = studio.runs / "a"
    write_run(folder, create_time=5.0)
    for step in (10, 20, 30):
        path = folder / "ckpt" / str(step)
        (path / "state").mkdir(parents=True)
        (path / "state" / "_METADATA").write_text("x" * step)
        if step < 30:  # the last one is being written
            (path / "_CHECKPOINT_METADATA").write_text('{"commit_timestamp_nsecs": 1}')
    rows = [
        {"kind": "eval", "step": 10, "eval/loss": 1.0},
        {"kind": "eval", "step": 20, "eval/loss": 2.0},
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = client.get("/api/runs/a").json()
    best, latest = found["checkpoints"]
    assert (best["step"], best["is_best"], best["is_latest"], best["eval_loss"]) == (
        10,
        True,
        False,
        1,
    )
    assert (latest["step"], latest["is_best"], latest["is_latest"]) == (20, False, True)
    assert latest["bytes"] == 20 + len('{"commit_timestamp_nsecs": 1}')
    assert found["size_bytes"] > 50 and [e["step"] for e in found["events"]] == [10, 20]
