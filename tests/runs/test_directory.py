"""The run directory: who may write, what failing leaves, what readers see."""

import json
import subprocess
import sys

import pytest

from bitttt_jax.errors import ConfigError, DivergedError
from bitttt_jax.runs.directory import RunDirectory, tail


@pytest.fixture
def run(tmp_path):
    with RunDirectory.open(tmp_path / "runs/a", writer=True) as run:
        run.start()
        yield run


def test_round_trip(run):
    run.write_config('{"seed": 1}\n')
    run.update(state="running", step=3, steps=10)
    run.metric({"step": 1, "train/loss": 2.0})
    run.event("checkpoint", step=1, path="ckpt/1", bytes=12)
    run.close()
    reader = RunDirectory(run.path)
    assert reader.read_config() == '{"seed": 1}\n'
    assert reader.read_status().state == "running"
    (row,), offset = reader.read_metrics()
    assert (row["step"], row["train/loss"]) == (1, 2.0)
    assert reader.read_metrics(offset) == ([], offset)
    (event,), _ = reader.read_events()
    assert (event["kind"], event["path"], event["bytes"]) == ("checkpoint", "ckpt/1", 12)
    assert reader.checkpoint_steps() == []


def test_an_empty_folder_reads_as_nothing(tmp_path):
    reader = RunDirectory(tmp_path / "none")
    assert reader.read_config() is None
    assert reader.read_status() is None
    assert reader.read_metrics() == ([], 0)
    assert reader.checkpoint_steps() == []
    assert not (tmp_path / "none").exists()


def test_other_processes_write_nothing(tmp_path):
    with RunDirectory.open(tmp_path / "a", writer=False) as run:
        run.start()
        run.write_config("{}")
        run.write_command(["x"])
        run.update(state="running")
        run.metric({"step": 1})
        run.event("stop")
        run.truncate_metrics(0)
        run.finish("finished", 0)
    assert list(tmp_path.iterdir()) == []


def test_opening_changes_nothing_until_start(tmp_path):
    with RunDirectory.open(tmp_path, writer=True) as run:
        run.start()
        run.fail(DivergedError("lost"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with RunDirectory.open(tmp_path, writer=True) as run:
        failure = run.fail(ConfigError("not this run"))
        assert failure.exit_code == 2
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        run.start()
        assert not run.error_path.exists()
        assert run.read_status().state == "starting"
    assert [event["kind"] for event in run.read_events()[0]] == ["fail"]


def test_workdir_that_is_a_file(tmp_path):
    (tmp_path / "a").write_text("")
    for path in (tmp_path / "a", tmp_path / "a/b"):
        with pytest.raises(ConfigError, match="is a file"):
            RunDirectory.open(path, writer=True)


def test_two_processes_cannot_write_to_one_folder(tmp_path):
    code = (
        "import sys, time; from bitttt_jax.runs.directory import RunDirectory; "
        "run = RunDirectory.open(sys.argv[1], writer=True); run.start(); "
        "run.update(state='running', step=7, steps=9); print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "up\n"
        with pytest.raises(ConfigError, match=f"process {child.pid} is already writing"):
            RunDirectory.open(tmp_path, writer=True)
        RunDirectory.open(tmp_path, writer=False)
        child.kill()
    RunDirectory.open(tmp_path, writer=True).close()


def test_failure_leaves_error_status_and_event(run):
    run.log_path.write_text("".join(f"line {i}\n" for i in range(100)))
    try:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.")
    except RuntimeError as error:
        failure = run.fail(error)
    assert failure.exit_code == 3
    error = json.loads(run.error_path.read_text())
    assert set(error) == {"kind", "exit_code", "title", "detail", "hints", "traceback", "tail"}
    assert error["title"] == "out of device memory: there is no room for 16 GiB more"
    assert error["tail"] == [f"line {i}" for i in range(50, 100)]
    run.close()
    status = run.read_status()
    assert (status.state, status.exit_code, status.error_kind) == ("failed", 3, "out_of_memory")
    assert status.over and not status.finished


def test_failing_on_a_full_disk_still_names_the_failure(tmp_path):
    code = """
import errno, resource, signal, sys
from bitttt_jax.runs.directory import RunDirectory
with RunDirectory.open(sys.argv[1], writer=True) as run:
    run.start()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    print(run.fail(OSError(errno.ENOSPC, "No space left on device")).title)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=True
    )
    assert result.stdout == "the disk is full\n"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_the_first_worker_to_fail_owns_error_json(run):
    worker = RunDirectory.open(run.path, writer=False)
    worker.start()
    worker.fail(ValueError("cause"))
    other = RunDirectory.open(run.path, writer=False)
    other.start()
    other.fail(ValueError("consequence"))
    assert "cause" in json.loads(run.error_path.read_text())["title"]
    (second,) = run.path.glob("error.*-*.json")
    assert "consequence" in json.loads(second.read_text())["title"]


def test_an_interrupt_stops_the_run_without_an_error(run):
    assert run.fail(KeyboardInterrupt()).exit_code == 130
    run.close()
    assert (run.read_status().state, run.read_status().exit_code) == ("stopped", 130)
    assert not run.error_path.exists()


def test_finish(run):
    run.update(state="running", step=10, steps=10, eta_s=5.0)
    run.finish("finished", 0)
    run.close()
    status = run.read_status()
    assert status.finished
    assert (status.exit_code, status.eta_s) == (0, None)


def test_truncate_metrics(run):
    for step in (1, 2, 3):
        run.metric({"step": step})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 4, "half')
    assert run.truncate_metrics(2) == 1
    run.metric({"step": 3, "again": True})
    rows = run.read_metrics()[0]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["again"]


def test_command_txt_keeps_every_start(run):
    run.write_command(["first"])
    run.write_command(["second"])
    text = (run.path / "command.txt").read_text()
    assert "$ first\n" in text and "$ second\n" in text


def test_tail_of_long_lines(tmp_path):
    path = tmp_path / "log"
    path.write_text("x" * 100_000 + "\nlast\n")
    assert tail(path, 3)[-1] == "last"
    assert tail(tmp_path / "none") == []


def test_reading_a_run_loads_no_jax():
    code = (
        "import sys; import bitttt_jax.runs.directory, bitttt_jax.runs.resume; "
        "bad = {'jax', 'orbax', 'tensorboard', 'rich'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
