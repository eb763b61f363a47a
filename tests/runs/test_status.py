"""status.json: changes, heartbeats, and whether the process behind it lives."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from bitttt_jax.runs import status as status_module
from bitttt_jax.runs.status import Heartbeat, RunStatus, read_status


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
    return True


def test_changes_are_written_by_the_heartbeat_and_the_last_by_close(tmp_path, monkeypatch):
    monkeypatch.setattr(status_module, "HEARTBEAT_SECONDS", 0.05)
    path = tmp_path / "status.json"
    heartbeat = Heartbeat(path)
    first = read_status(path)
    assert (first.state, first.pid, first.host) == ("starting", os.getpid(), socket.gethostname())
    assert first.create_time == psutil.Process().create_time()
    assert first.process_alive()

    heartbeat.update(state="running", phase="train", step=1, steps=10)
    wait_until(lambda: read_status(path).state == "running")
    heartbeat.update(step=5, eta_s=12.5)
    wait_until(lambda: read_status(path).step == 5)
    assert read_status(path).heartbeat > first.heartbeat

    heartbeat.update(state="finished", step=10, exit_code=0, eta_s=float("nan"))
    heartbeat.close()
    last = read_status(path)
    assert last.finished and last.over
    assert last.eta_s is None
    assert json.loads(path.read_text())["exit_code"] == 0
    heartbeat.close()
    assert os.listdir(tmp_path) == ["status.json"]


def test_state_changes_do_not_wait_for_the_next_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(status_module, "HEARTBEAT_SECONDS", 1000.0)
    heartbeat = Heartbeat(tmp_path / "status.json")
    for state in ("running", "evaluating", "saving"):
        heartbeat.update(state=state)
        wait_until(lambda state=state: read_status(tmp_path / "status.json").state == state)
    heartbeat.close()


def test_unknown_fields_are_a_programmers_error(tmp_path):
    heartbeat = Heartbeat(tmp_path / "status.json")
    with pytest.raises(TypeError):
        heartbeat.update(stepp=1)
    heartbeat.close()


def test_a_folder_that_vanishes_does_not_end_the_run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    heartbeat = Heartbeat(folder / "status.json")
    (folder / "status.json").unlink()
    folder.rmdir()
    heartbeat.update(state="running")
    heartbeat.close()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"state": "dancing"}', "\ufeff"])
def test_unreadable_status_is_none(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    assert read_status(tmp_path / "status.json") is None
    assert read_status(tmp_path / "missing.json") is None


def test_status_of_a_newer_version_is_readable(tmp_path):
    (tmp_path / "status.json").write_text('{"state": "running", "step": 3, "new_field": 1}')
    assert read_status(tmp_path / "status.json") == RunStatus(state="running", step=3)


def test_process_alive_sees_kills_zombies_and_reused_pids(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; "
        "from bitttt_jax.runs.status import Heartbeat; "
        "h = Heartbeat(Path(sys.argv[1])); h.update(state='running'); print('up', flush=True); "
        "time.sleep(60)"
    )
    path = tmp_path / "status.json"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "up\n"
        wait_until(lambda: read_status(path).state == "running")
        status = read_status(path)
        assert status.pid == child.pid
        assert status.process_alive() is True
        assert (
            dataclasses.replace(status, create_time=status.create_time - 100).process_alive()
            is False
        )
        assert dataclasses.replace(status, host="elsewhere").process_alive() is None
        child.send_signal(signal.SIGKILL)
        wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
        assert status.process_alive() is False
        child.wait()
    assert status.process_alive() is False
    assert read_status(path).state == "running"  # nobody was there to say otherwise
