"""Jobs and runs of the studio: what becomes of processes that behave well or badly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bitttt_jax.studio import processes
from bitttt_jax.studio.app import Studio
from bitttt_jax.studio.processes import Job, JobState, job_state, load_jobs, start_job, stop_job
from tests.studio.conftest import until

Fake = Callable[..., Job]


def ended(job: Job) -> JobState:
    until(lambda: job_state(job).state != "running")
    return job_state(job)


def forget() -> None:
    """Makes this process know as little of its jobs as a studio that was started anew."""
    processes._children.clear()
    processes._known.clear()
    processes._ended.clear()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("code", [0, 1, 2, 3, 42])
def test_exit_codes_are_known(fake: Fake, studio: Studio, code: int):
    state = ended(fake("exit", "run", str(code)))
    assert (state.state, state.exit_code) == ("failed" if code else "done", code)
    facts = studio.run_store.facts("run")
    assert facts.alive is False and facts.exit_code == (code or None if code else 0)
    assert facts.state == ("failed" if code else "finished")


def test_a_killed_process_is_told_from_others(fake: Fake, studio: Studio):
    assert ended(fake("kill")).exit_code == -signal.SIGKILL
    facts = studio.run_store.facts("run")
    assert (facts.state, facts.error_kind, facts.exit_code) == ("failed", "killed", -9)


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_jobs_are_found_again_after_a_restart(fake: Fake, studio: Studio):
    running, over = fake("sleep", "a"), fake("exit", "b", "5")
    until((studio.runs / "a" / "ready").exists)
    ended(over)
    forget()
    found = {job.id: job for job in load_jobs(studio.jobs)}
    assert found.keys() == {running.id, over.id}
    assert job_state(found[running.id]) == JobState("running")
    assert job_state(found[over.id]).exit_code == 5
    fresh = Studio(studio.runs).run_store
    assert fresh.facts("a").state == "running" and fresh.facts("a").alive
    os.kill(psutil.Process(running.pid).children()[0].pid, signal.SIGKILL)
    # Nobody but the small parent is told how it ended, and this process isn't its parent now.
    until((running.folder / "exit.json").exists)
    assert ended(found[running.id]).exit_code == -9


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_what_passing_jobs_leave_is_removed_in_time(fake: Fake, studio: Studio):
    def redated(job: Job, **changes: object) -> str:
        path = job.folder / "job.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return job.id

    month_ago = time.time() - 30 * 24 * 3600
    old, recent, trained = (fake("exit", name, "0") for name in "abc")
    running = fake("sleep", "d")
    until((studio.runs / "d" / "ready").exists)
    for job in (old, recent, trained):
        ended(job)
    redated(old, kind="estimate", started=month_ago)
    kept = {redated(recent, kind="estimate"), redated(trained, started=month_ago)}
    kept.add(redated(running, kind="serve", started=month_ago))
    forget()
    Studio(studio.runs)
    assert {job.id for job in load_jobs(studio.jobs)} == kept
    assert not old.folder.exists()
    stop_job(running, force=True)


def test_stop_lets_a_run_save(fake: Fake, studio: Studio):
    job = fake("save")
    until((studio.runs / "run" / "ready").exists)
    assert stop_job(job, force=False) == []
    assert ended(job).exit_code == 42
    facts = studio.run_store.facts("run")
    assert (facts.state, facts.exit_code, facts.status.step) == ("stopped", 42, 2)


def test_force_ends_the_whole_tree(fake: Fake, studio: Studio, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "_TERM_SECONDS", 0.3)
    job = fake("stubborn")
    folder = studio.runs / "run"
    until((folder / "ready").exists)
    pids = [int((folder / f"child-{apart}").read_text()) for apart in (False, True)]
    assert all(map(alive, pids))
    stop_job(job, force=False)
    assert job_state(job).state == "running" and all(map(alive, pids))
    assert stop_job(job, force=True) == []
    assert not any(map(alive, [job.pid, *pids]))
    assert ended(job).exit_code == -signal.SIGKILL
    assert studio.run_store.facts("run").state == "stopped"  # it was asked for: not killed


def test_what_is_left_of_a_job_whose_parent_is_gone(fake: Fake, studio: Studio):
    job = fake("sleep")
    until((studio.runs / "run" / "ready").exists)
    os.kill(job.pid, signal.SIGKILL)
    processes._children.pop(str(job.folder)).wait()
    assert job_state(job).state == "running"  # the training itself goes on
    assert studio.run_store.facts("run").alive
    stop_job(job, force=True)
    assert ended(job) == JobState("lost")
    assert studio.run_store.facts("run").state == "stopped"


def test_a_flood_of_output_blocks_nobody(fake: Fake, studio: Studio):
    """An undrained pipe would stop it after 64 KiB."""
    job = fake("flood", "run", str(20 << 20))
    assert ended(job).exit_code == 0
    assert job.log.stat().st_size > 19 << 20


def test_jobs_get_no_secrets_no_input_and_no_open_files(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BITTTT_STUDIO_TOKEN", "the-secret-of-the-studio")
    (tmp_path / "shows.py").write_text(
        "import os, sys\nprint(dict(os.environ), sorted(os.listdir('/proc/self/fd')), os.getsid(0))"
        "\nprint(repr(sys.stdin.read()))"
    )
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        job = start_job(
            studio.jobs, "train", "x", [], module="shows", env={"PYTHONPATH": str(tmp_path)}
        )
        assert ended(job).exit_code == 0
    text = job.log.read_text()
    assert "the-secret" not in text and f" {job.pid}\n''" in text
    assert "BITTTT_PROGRESS" in text and "'3'" in text and "'4'" not in text


def test_a_command_that_cannot_start(studio: Studio, tmp_path: Path):
    exit_file = tmp_path / "exit.json"
    command = ["-m", "bitttt_jax.studio.child", str(exit_file), "--", "/no/such/program"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert "can't start" in done.stderr and '"exit_code": 127' in exit_file.read_text()


def test_the_small_parent_loads_little():
    code = "import sys, bitttt_jax.studio.child; print([m for m in %r if m in sys.modules])"
    names = ["jax", "numpy", "pydantic", "starlette", "rich"]
    done = subprocess.run([sys.executable, "-c", code % names], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_damaged_job_folders_are_passed_over(studio: Studio):
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"id": "c"}'), ("d", None)):
        (studio.jobs / name).mkdir()
        if text is not None:
            (studio.jobs / name / "job.json").write_text(text)
    assert load_jobs(studio.jobs) == []
