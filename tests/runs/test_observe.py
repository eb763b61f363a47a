from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bitttt_jax.errors import DivergedError
from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.observe import SILENT_SECONDS, STUCK_SECONDS, explain, is_stuck, observe
from bitttt_jax.runs.status import RunStatus

RUN = """
import sys, time
from bitttt_jax.runs.directory import RunDirectory
with RunDirectory.open(sys.argv[1], writer=True) as run:
    run.start()
    run.update(state="running", step=7, steps=9)
    print("started", flush=True)
    sys.stdin.read()
    run.finish("stopped", 42)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "run").mkdir()
    return RunDirectory(tmp_path / "run")


def write(run: RunDirectory, **fields: object) -> None:
    process = psutil.Process()
    status = RunStatus(
        state="running", step=7, steps=9, pid=process.pid, create_time=process.create_time(),
        host=socket.gethostname(), heartbeat=time.time(),
    )  # fmt: skip
    changed = dataclasses.replace(status, **fields)  # type: ignore[arg-type]
    run.status_path.write_text(json.dumps(dataclasses.asdict(changed)))


def test_before_it_says_anything(run: RunDirectory):
    seen = observe(run)
    assert (seen.state, seen.alive, seen.over) == ("queued", False, False)
    assert explain(run, seen) is None


def test_a_run_that_works_and_one_that_hangs(run: RunDirectory):
    write(run)
    seen = observe(run)
    assert (seen.state, seen.alive, seen.not_responding, seen.over) == (
        "running", True, False, False,
    )  # fmt: skip
    assert explain(run, seen) is None
    silent = observe(run, time.time() + SILENT_SECONDS + 5)
    assert silent.not_responding and not silent.over
    told = explain(run, silent)
    assert told is not None and told.kind == "not_responding" and str(os.getpid()) in told.title


def test_silence_of_a_run_that_is_over_means_nothing(run: RunDirectory):
    write(run, state="finished", exit_code=0)
    seen = observe(run, time.time() + 1e6)
    assert (seen.state, seen.not_responding, seen.over) == ("finished", False, True)
    assert explain(run, seen) is None


def test_a_run_on_another_host_is_never_lost(run: RunDirectory):
    write(run, host="elsewhere", pid=2**22 + 1)
    assert observe(run).state == "running" and observe(run).alive is None
    assert observe(run, time.time() + SILENT_SECONDS + 5).not_responding


@pytest.mark.parametrize("asked", [True, False], ids=["asked_to_end", "killed"])
def test_a_process_that_ends(run: RunDirectory, asked: bool):
    command = [sys.executable, "-c", RUN, str(run.path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "started\n"
        while observe(run).state != "running":
            assert process.poll() is None
        assert observe(run).alive
        if asked:
            process.stdin.close()
        else:
            process.send_signal(signal.SIGKILL)
        process.wait(120)
    seen = observe(run)
    assert seen.over and seen.alive is False
    if asked:
        assert seen.state == "stopped" and explain(run, seen) is None
        return
    assert seen.state == "lost"
    told = explain(run, seen)
    assert told is not None and told.kind == "lost"
    assert f"process {process.pid} " in told.title and "step 7/9" in told.title
    assert told.hints == ("the same command starts anew: nothing was saved yet",)


def test_a_failure_has_the_words_of_its_error_file(run: RunDirectory):
    with RunDirectory.open(run.path, writer=True) as writer:
        writer.start()
        writer.fail(DivergedError("3 bad updates", "why", "a lower optim.lr; a smaller clip"))
    told = explain(run, observe(run))
    assert told is not None and (told.kind, told.title, told.why) == (
        "diverged", "3 bad updates", "why",
    )  # fmt: skip
    assert told.hints == ("a lower optim.lr", "a smaller clip")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"kind": "x"}'])
def test_a_failure_without_a_proper_error_file(run: RunDirectory, content: str | None):
    write(run, state="failed", exit_code=5, error_kind="data")
    if content is not None:
        run.error_path.write_text(content)
    told = explain(run, observe(run))
    assert told is not None and told.kind == "data" and "exit code 5" in told.title


def test_a_step_is_stuck_after_many_usual_ones():
    assert is_stuck("running", STUCK_SECONDS + 1, usual=0)
    assert is_stuck("running", STUCK_SECONDS + 1, usual=STUCK_SECONDS / 20)
    assert not is_stuck("running", STUCK_SECONDS + 1, usual=60)  # a step of minutes takes minutes
    assert not is_stuck("running", STUCK_SECONDS - 1, usual=0)
    assert not is_stuck("saving", 10 * STUCK_SECONDS, usual=1)
