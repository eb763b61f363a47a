from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Ends with the code that stands in the file named after its number.
EXIT = 'number=${*: -1}; exit "$(cat "code-${number#--process_id=}")"'

PSUM = """
import sys
import jax, numpy as np
from bitttt_jax.config import MeshConfig
from bitttt_jax.distributed import mesh, processes
from bitttt_jax.train_flags import parse_train_flags

flags = parse_train_flags(["--config=debug", *sys.argv[1:]])
processes.configure(flags.platform, flags.sim_devices)
processes.initialize(flags.coordinator, flags.num_processes, flags.process_id)
grid = mesh.make_mesh(MeshConfig(fsdp=2))
rows = mesh.process_rows(grid, 8)
batch = mesh.to_global(rows[:, None], grid, 8)
add = jax.jit(lambda x: x.sum())
# Many at once: with few cores their collectives would use up all threads and never end.
totals = jax.block_until_ready([add(batch) for _ in range(200)])
(total,) = {int(total) for total in totals}
print(f"rows {rows.tolist()} total {total} of {jax.device_count()}", flush=True)
"""


def launch(
    *args: str, cwd: Path = ROOT, timeout_s: float = 60, **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "launch.sh"), *args],
        cwd=cwd,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)} | environ,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_syntax():
    subprocess.run(["bash", "-n", ROOT / "launch.sh"], check=True)


def test_shellcheck():
    shellcheck = Path(sys.executable).with_name("shellcheck")  # of the `dev` extra
    subprocess.run([shellcheck, ROOT / "launch.sh", ROOT / ".ci" / "run"], check=True)


def test_two_processes_add_up_their_rows(tmp_path: Path):
    script = tmp_path / "psum.py"
    script.write_text(PSUM)
    done = launch("--local_processes=2", "--sim_devices=2", "--", sys.executable, str(script))
    assert done.returncode == 0, done.stderr
    assert "[0] rows [0, 1, 2, 3] total 28 of 4" in done.stdout
    assert "[1] rows [4, 5, 6, 7] total 28 of 4" in done.stdout


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ((0, 0), 0),
        ((0, 42), 42),
        ((42, 130), 130),
        ((5, 42), 5),
        ((130, 4), 4),
    ],
)
def test_worst_exit_code_wins(tmp_path: Path, codes: tuple[int, int], worst: int):
    for number, code in enumerate(codes):
        (tmp_path / f"code-{number}").write_text(str(code))
    done = launch("--local_processes=2", "--", "bash", "-c", EXIT, "-", cwd=tmp_path)
    assert done.returncode == worst


@pytest.mark.parametrize("code", [0, 2, 42])
def test_exit_code_of_one_process(code: int):
    assert launch("--", "bash", "-c", f"exit {code}").returncode == code


def test_failure_ends_processes_that_hang():
    hang = 'trap "" TERM; [[ $* == *--process_id=1* ]] && exit 3; while :; do sleep 0.1; done'
    done = launch("--local_processes=2", "--", "bash", "-c", hang, "-")
    assert done.returncode == 3
    assert "a process failed with exit code 3: killing the others" in done.stderr


def test_output_is_labelled_to_the_last_line():
    lines = 'printf "a\\nb"; printf "c\\n" >&2'
    done = launch("--local_processes=2", "--", "bash", "-c", lines)
    assert sorted(done.stdout.splitlines()) == ["[0] a", "[0] bc", "[1] a", "[1] bc"]


@pytest.mark.parametrize("args", [[], ["--restart"], ["--local_processes=2"]])
@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "TERM"), (signal.SIGINT, "INT")])
def test_signals_reach_the_processes_once(
    tmp_path: Path, args: list[str], number: signal.Signals, name: str
):
    # Counts signals, then ends with 42, which must not start it again after a signal.
    script = (
        f"number=${{*: -1}}; trap 'echo x >>\"seen$number\"; exit 42' {name}; "
        'touch "ready$number"; while :; do sleep 0.02; done'
    )
    process = subprocess.Popen(
        [str(ROOT / "launch.sh"), *args, "--", "bash", "-c", script, "-", "only"],
        cwd=tmp_path,
        env=os.environ | {"PYTHON": sys.executable},
        start_new_session=True,
    )
    try:
        names = ["only"]
        if "--local_processes=2" in args:
            names = ["--process_id=0", "--process_id=1"]
        for each in names:
            wait_for((tmp_path / f"ready{each}").exists)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as the terminal does
        else:
            process.send_signal(number)
        assert process.wait(30) == 42
        assert [(tmp_path / f"seen{each}").read_text() for each in names] == ["x\n"] * len(names)
    finally:
        process.kill()
        process.wait()


def test_third_interrupt_kills(tmp_path: Path):
    script = (
        "import pathlib, signal\n"
        "seen = pathlib.Path('seen')\n"
        "signal.signal(signal.SIGINT, lambda *_: seen.open('a').write('x'))\n"
        "pathlib.Path('ready').touch()\n"
        "while True: signal.pause()\n"
    )
    process = subprocess.Popen(
        [str(ROOT / "launch.sh"), "--restart", "--", sys.executable, "-c", script],
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for((tmp_path / "ready").exists)
        for count in (1, 2):
            os.killpg(process.pid, signal.SIGINT)
            seen = "x" * count
            wait_for(lambda seen=seen: _read(tmp_path / "seen") == seen)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def test_restart_only_on_42_and_only_on_request(tmp_path: Path):
    script = "echo x >>runs; (( $(wc -l <runs) < 3 )) && exit 42; exit 5"
    assert launch("--", "bash", "-c", script, cwd=tmp_path).returncode == 42
    (tmp_path / "runs").unlink()
    assert launch("--restart", "--", "bash", "-c", script, cwd=tmp_path).returncode == 5
    assert (tmp_path / "runs").read_text() == "x\n" * 3


def test_inside_a_slurm_allocation_srun_starts_the_tasks(tmp_path: Path):
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\necho "srun $*"\nexit 42\n')
    srun.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = launch("--", "work", "--a=b c", SLURM_JOB_ID="7", PATH=path)
    assert done.returncode == 42
    assert done.stdout.startswith("srun --label")
    assert done.stdout.endswith("work --a=b c\n")
    inside = launch("--", "echo", "task", SLURM_JOB_ID="7", SLURM_STEP_ID="0", PATH=path)
    assert inside.stdout == "task\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--local_processes=0"], "--local_processes=0 is not a number of 1 or more"),
        (["--local_processes=two"], "--local_processes=two is not"),
        (["--sim_devices=-3"], "--sim_devices=-3 is not"),
        (["--"], "no command follows --"),
        (["--config=debug", "--workdir=/dev/null/x"], "can't write to --workdir=/dev/null/x"),
        (
            ["--config=debug", "--workdir=gs://a/b"],
            "--workdir=gs://a/b is no path of a file system",
        ),
    ],
)
def test_mistake_is_explained_before_anything_starts(args: list[str], words: str):
    done = launch(*args)
    assert done.returncode == 2
    assert f"error: {words}" in done.stderr


def test_python_is_checked(tmp_path: Path):
    missing = launch("--config=debug", PYTHON=str(tmp_path / "python"))
    assert missing.returncode == 2
    assert "is not a Python 3.11 or newer that runs" in missing.stderr

    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    without = launch("--config=debug", PYTHON=str(bare))
    assert without.returncode == 2
    assert "can't run bitttt_jax (ModuleNotFoundError" in without.stderr


def test_help_needs_no_python():
    done = launch("--help", PYTHON="/nonexistent")
    assert done.returncode == 0
    assert "--local_processes=N" in done.stdout
