"""What `bitttt watch` draws and prints, on a terminal and elsewhere.

`UPDATE_GOLDEN=1 pytest tests/commands/test_watch.py` rewrites the golden files.
"""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

from bitttt_jax.commands import watch
from bitttt_jax.commands.watch_picture import Page, picture, plain
from bitttt_jax.commands.watch_run import WatchedRun
from bitttt_jax.errors import DivergedError
from bitttt_jax.runs.directory import RunDirectory
from tests.commands.watch_runs import GONE, make_run, write_status

ROOT = Path(__file__).parent.parent.parent
GOLDEN = Path(__file__).parent / "golden"
DEADLINE_S = 120
ALT_SCREEN, MAIN_SCREEN, SHOW_CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def looked_at(path: str) -> WatchedRun:
    run = WatchedRun(Path(path))
    run.update()
    return run


def drawn(path: str, width: int = 100, height: int = 45, encoding: str = "utf-8") -> str:
    return plain(picture(looked_at(path), Page(width, height, encoding)))


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "bitttt_jax", "watch", *args]


def environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm-256color",
        "COLUMNS": "",
        "LINES": "",
    }


# --- the picture ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "encoding"), [(100, 45, "utf-8"), (60, 30, "utf-8"), (80, 40, "ascii")]
)
def test_golden(width: int, height: int, encoding: str):
    make_run(Path("runs/tiny"))
    text = drawn("runs/tiny", width, height, encoding) + "\n"
    assert max(map(cell_len, text.splitlines())) <= width
    assert len(text.splitlines()) == height
    text.encode(encoding)
    path = GOLDEN / f"watch_{width}_{encoding}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("height", [1, 2, 5, 12, 20])
def test_a_small_terminal_gets_what_fits(height: int):
    make_run(Path("run"))
    lines = drawn("run", 20, height).splitlines()
    assert 0 < len(lines) <= height and lines[0].startswith("run  running")
    assert max(map(cell_len, lines)) <= 20


def test_nothing_moves_the_cursor():
    make_run(Path("run"))
    text = drawn("run")
    assert "\x1b" not in text and "def [31mred(x):" in text and "日本語" in text


def test_before_the_first_step():
    run = RunDirectory(Path("run"))
    run.path.mkdir()
    run.config_path.write_text("{}")
    text = drawn("run")
    assert text.startswith("run  queued") and "nothing was measured yet" in text
    write_status(run, state="compiling", step=0, phase="compiling train_step")
    assert "compiling train_step" in drawn("run").splitlines()[0]


def test_a_failure_is_explained():
    run = make_run(Path("run"))
    with RunDirectory.open(run.path, writer=True) as writer:
        writer.start()
        writer.update(step=3, steps=9)
        writer.fail(DivergedError("10 bad updates", "the loss is infinite", "a lower optim.lr; b"))
    lines = drawn("run").splitlines()
    assert lines[0].split() == ["run", "failed", "step", "3/9", "33", "%", "exit", "code", "4"]
    assert [line.split(maxsplit=1) for line in lines[2:6]] == [
        ["diverged", "10 bad updates"], ["the", "loss is infinite"], ["try", "a lower optim.lr"],
        ["b"],
    ]  # fmt: skip


def test_a_lost_and_a_silent_run_are_explained():
    make_run(Path("run"), pid=GONE)
    lines = drawn("run").splitlines()
    assert lines[0].startswith("run  lost  step 620/1000") and "eta" not in lines[0]
    assert f"process {GONE} " in lines[2]
    assert lines[4].split(maxsplit=1) == ["try", "the same command goes on from step 600"]
    make_run(Path("silent"), heartbeat=time.time() - 100)
    lines = drawn("silent").splitlines()
    assert lines[0].startswith("silent  not responding") and "said nothing for 1:4" in lines[2]


def test_a_step_that_does_not_end_is_told():
    run = make_run(Path("run"))
    now = [1000.0]
    watched = WatchedRun(run.path, clock=lambda: now[0])
    watched.update()
    now[0] += 119
    watched.update()
    assert watched.explanation is None
    now[0] += 2
    watched.update()
    lines = plain(picture(watched, Page(100, 45))).splitlines()
    assert lines[0].startswith("run  not responding  step 620/1000")
    assert lines[2].endswith("no step has ended for 2:01, where one usually takes 0.2 s")
    write_status(run, step=621)
    watched.update()
    assert watched.explanation is None and not watched.seen.not_responding
    now[0] += 500
    write_status(run, step=621, state="evaluating")
    watched.update()
    assert watched.explanation is None


def test_a_resumed_run_has_one_curve():
    run = make_run(Path("run"))
    watched = looked_at("run")
    assert watched.series.curves["train/loss"].steps[-1] == 620
    with RunDirectory.open(run.path, writer=True) as writer:
        writer.truncate_metrics(400)
        writer.metric({"step": 410, "train/loss": 9.0})
    watched.update()
    assert list(watched.series.curves["train/loss"].steps) == list(range(10, 411, 10))
    assert watched.series.last("train/loss") == 9.0
    assert watched.checkpoints == [200, 400, 600] and watched.best_step == 400


# --- printing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no run is named"),
        (["nowhere"], "there is no such folder"),
        (["runs"], "a run's folder has a config.json\n  Try: one of runs/tiny"),
        (["runs/tny"], "Try: one of runs/tiny"),
        (["runs/tiny", "--every=0"], "--every=0.0 must be"),
    ],
)
def test_mistakes(args: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    make_run(Path("runs/tiny"))
    assert watch.main(args) == 2
    assert message in capsys.readouterr().err


def test_once_prints_all_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "90")
    make_run(Path("a"))
    make_run(Path("b"), state="finished", step=1000, exit_code=0)
    assert watch.main(["a", "b", "--once"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("a  running  step 620/1000") and "\nb  finished  step 1000/1000" in out
    assert max(map(cell_len, out.splitlines())) <= 90


def test_it_needs_no_jax():
    make_run(Path("a"))
    code = (
        "import sys; from bitttt_jax.commands import watch; assert not watch.main(['a', '--once'])"
    )
    code += "; print(sorted({'jax', 'flax', 'orbax', 'tensorboard'} & set(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env=environment(),
        timeout=120,
    ).stdout.decode()
    assert out.splitlines()[-1] == "[]"


@pytest.fixture
def lines() -> Iterator[subprocess.Popen[str]]:
    """The command with its output in a pipe, looking at the runs a and b."""
    make_run(Path("a"))
    make_run(Path("b"), state="finished", step=1000, exit_code=0)
    process = subprocess.Popen(
        command("a", "b", "--every=0.05"), stdout=subprocess.PIPE, text=True, env=environment()
    )
    with process:
        yield process
        process.kill()


def read_until(process: subprocess.Popen[str], wanted: str) -> list[str]:
    assert process.stdout is not None
    read: list[str] = []
    while wanted not in "".join(read[-1:]):
        line = process.stdout.readline()
        assert line, read
        read.append(line)
    return read


def test_without_a_terminal_lines_are_printed_until_all_runs_are_over(lines):
    first = read_until(lines, "b: state    finished at step 1000/1000")
    assert first[0] == "a: step=611/1000 loss=2.2\n" and "a: state    running\n" in first
    run = RunDirectory(Path("a"))
    with run.log_path.open("a") as log:
        log.write("step=630/1000 \x1b[1mloss=2.1\n")
    assert read_until(lines, "630")[-1] == "a: step=630/1000 [1mloss=2.1\n"
    write_status(run, state="saving")
    read_until(lines, "a: state    saving")
    write_status(run, state="failed", step=630, exit_code=5, error_kind="data")
    last = read_until(lines, "a: state    failed")[-1]
    assert "at step 630/1000: the run failed with exit code 5." in last
    assert lines.wait(DEADLINE_S) == 0


def test_ctrl_c_without_a_terminal(lines):
    read_until(lines, "state    running")
    lines.send_signal(signal.SIGINT)
    assert lines.wait(DEADLINE_S) == 130


# --- a terminal ----------------------------------------------------------------------------------


# Ctrl-C reaches the processes that a terminal belongs to.
ON_ITS_TERMINAL = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from bitttt_jax.__main__ import run
run()
"""


class Terminal:
    """The command on a terminal of 30 rows of 90 columns."""

    def __init__(self, *args: str):
        self.fd, inner = pty.openpty()
        termios.tcsetwinsize(self.fd, (30, 90))
        self.before = termios.tcgetattr(inner)
        self.inner = inner
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_ITS_TERMINAL, "watch", *args],
            stdin=inner, stdout=inner, stderr=inner, env=environment(), start_new_session=True,
        )  # fmt: skip
        self.text = ""

    def read_until(self, wanted: str) -> None:
        self.text = ""
        deadline = time.monotonic() + DEADLINE_S
        while wanted not in self.text:
            assert time.monotonic() < deadline, self.text
            self.text += os.read(self.fd, 4096).decode(errors="replace")

    def press(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def end(self) -> int:
        code = self.process.wait(DEADLINE_S)
        os.set_blocking(self.fd, False)
        with contextlib.suppress(OSError):  # nothing more to read
            while True:
                self.text += os.read(self.fd, 2**16).decode(errors="replace")
        assert termios.tcgetattr(self.inner) == self.before
        assert MAIN_SCREEN in self.text and SHOW_CURSOR in self.text
        os.close(self.inner)
        os.close(self.fd)
        return code


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    make_run(Path("first"))
    make_run(Path("second"))
    terminal = Terminal("first", "second", "--every=0.1")
    terminal.read_until("run 1 of 2")
    yield terminal
    if terminal.process.poll() is None:
        terminal.process.kill()
        terminal.process.wait()


def test_keys_go_from_run_to_run(terminal: Terminal):
    assert ALT_SCREEN in terminal.text and "first" in terminal.text
    for keys, number in [
        ("\t", 2),
        ("\t", 1),
        ("\x1b[Z", 2),
        ("\x1b[C", 1),
        ("\x1b[D", 2),
        ("x", 2),
    ]:
        terminal.press(keys)
        if keys != "x":
            terminal.read_until(f"run {number} of 2")
    write_status(RunDirectory(Path("second")), step=621)
    terminal.read_until("step 621/1000")
    terminal.press("q")
    assert terminal.end() == 0


def test_ctrl_c_puts_the_terminal_back(terminal: Terminal):
    terminal.press("\x03")
    assert terminal.end() == 130


def test_sigterm_puts_the_terminal_back(terminal: Terminal):
    terminal.process.terminate()
    assert terminal.end() == 128 + signal.SIGTERM
