"""The console: golden output at three widths, a real terminal, files without control characters.

`UPDATE_GOLDEN=1 pytest tests/runs/test_console.py` rewrites the golden files.
"""

import dataclasses
import io
import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.cells import cell_len

import bitttt_jax
from bitttt_jax.runs.console import Console
from bitttt_jax.runs.console_summary import Evaluation

GOLDEN = Path(__file__).parent / "golden"
SCRIPT = Path(__file__).parent / "console_script.py"
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def check_golden(name, text):
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def without_seconds(text):
    return re.sub(r"(train_step) \d+\.\d s", r"\1 0.0 s", text)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_golden_rich(script, width):
    file = io.StringIO()
    with Console(file=file, width=width, mode="rich") as console:
        script.play_lines(console)
        console.failure(script.FAILURE, Path("runs/tiny/error.json"))
    lines = ANSI.sub("", file.getvalue()).splitlines()
    assert max(map(cell_len, lines)) <= width
    check_golden(f"rich_{width}.txt", "".join(line.rstrip() + "\n" for line in lines))


@pytest.mark.parametrize("width", [40, 80, 200])
def test_golden_plain(script, width, tmp_path):
    file = io.StringIO()
    log = tmp_path / "train.log"
    with Console(file=file, width=width, log_file=log, progress_seconds=0) as console:
        script.play_motion(console)
        script.play_lines(console)
    check_golden(f"plain_{width}.txt", without_seconds(file.getvalue()))
    assert log.read_text(encoding="utf-8") == file.getvalue()


def test_plain_output_has_no_control_characters(script, tmp_path):
    file = io.StringIO()
    with Console(file=file, log_file=tmp_path / "log") as console:
        script.play_motion(console)
        script.play_lines(console)
    for text in (file.getvalue(), (tmp_path / "log").read_bytes().decode()):
        assert re.findall(r"[^\x20-\x7e\n·–×Δ…▁-█]", text) == []


def test_every_json_line_is_valid(script):
    file = io.StringIO()
    with Console(file=file, mode="json", progress_seconds=0) as console:
        script.play_motion(console)
        script.play_lines(console)
        console.progress(2, 3, {"train/loss": float("nan")}, float("inf"))
        lost = Evaluation(3, float("nan"), float("inf"))
        console.evaluation(lost, seconds=1.0)
        console.summary(dataclasses.replace(script.SUMMARY, final=lost, status="diverged"))
    rows = [
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
        for line in file.getvalue().splitlines()
    ]
    progress = [row for row in rows if row["kind"] == "progress"]
    assert progress[1]["train/loss"] == 2.214
    assert (progress[-1]["train/loss"], progress[-1]["nonfinite"]) == (
        None,
        ["train/loss", "eta_s"],
    )
    assert rows[-1]["final"]["loss"] is None


@pytest.mark.parametrize("mode", ["plain", "json", "silent"])
def test_failures_go_to_stderr(script, tmp_path, capsys, mode):
    file = io.StringIO()
    with Console(file=file, mode=mode, log_file=tmp_path / "log") as console:
        console.failure(script.FAILURE, Path("runs/tiny/error.json"))
    expected = [
        "error    out of device memory",
        "         RESOURCE_EXHAUSTED",
        "         Try: a",
        "         Try: b",
        "         Details: runs/tiny/error.json",
    ]
    assert capsys.readouterr().err.splitlines() == expected
    assert (tmp_path / "log").read_text().splitlines() == expected
    if mode == "json":
        assert json.loads(file.getvalue())["error_kind"] == "out_of_memory"
    else:
        assert file.getvalue() == ""


def test_silent_console_prints_nothing_but_may_log(script, tmp_path):
    file = io.StringIO()
    with Console(file=file, mode="silent", log_file=tmp_path / "train.1.log") as console:
        script.play_motion(console)
        script.play_lines(console)
    assert file.getvalue() == ""
    assert "fullest: host1:5" in (tmp_path / "train.1.log").read_text()


def test_progress_lines_are_rare_in_files_but_the_last_is_there(script):
    file = io.StringIO()
    with Console(file=file, progress_seconds=1000) as console:
        for step in range(1, 101):
            console.progress(step, 100, script.METRICS)
    assert [line.split()[0] for line in file.getvalue().splitlines()] == [
        "step=1/100",
        "step=100/100",
    ]


def test_a_failing_phase_says_so_and_raises():
    file = io.StringIO()
    console = Console(file=file)
    with pytest.raises(RuntimeError, match="oops"), console.phase("compile", "train_step"):
        raise RuntimeError("oops")
    assert re.search(r"compile  train_step failed after \d\.\d s", file.getvalue())


@pytest.mark.parametrize("mode", ["plain", "rich", "json"])
def test_streams_that_cannot_hold_every_character(script, mode):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    with Console(file=file, mode=mode, width=80) as console:
        script.play_lines(console)
        console.sample("日本", "語 \ud800")
    file.flush()
    text = ANSI.sub("", raw.getvalue().decode("ascii"))
    assert "32x256" in text or mode != "plain"
    assert "host0" in text


def test_output_that_already_goes_to_the_log_is_not_doubled(tmp_path):
    log = tmp_path / "train.log"
    code = (
        "import sys; from pathlib import Path; from bitttt_jax.runs.console import Console\n"
        "with Console(log_file=Path(sys.argv[1])) as console: console.line('note', 'once')\n"
    )
    with log.open("a") as file:
        subprocess.run([sys.executable, "-c", code, str(log)], stdout=file, check=True)
    assert log.read_text() == "note     once\n"


def test_restarts_append_to_the_log(tmp_path):
    for text in ("first", "second"):
        with Console(file=io.StringIO(), log_file=tmp_path / "train.log") as console:
            console.line("note", text)
    assert (tmp_path / "train.log").read_text() == "note     first\nnote     second\n"


def run_in_terminal(log, *args, columns=100, **environment):
    """Runs the script on a pseudo-terminal; returns its exit code and all it wrote."""
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (30, columns))
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    env |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    env |= {"PYTHONPATH": str(Path(bitttt_jax.__file__).parents[1]), **environment}
    command = [sys.executable, str(SCRIPT), str(log), *args]
    with subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=env) as process:
        os.close(side)
        output = b""
        while True:
            try:
                chunk = os.read(main, 65536)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            output += chunk
    os.close(main)
    return process.returncode, output.decode()


def test_terminal_shows_the_bar_and_is_left_clean(script, tmp_path):
    log = tmp_path / "train.log"
    code, output = run_in_terminal(log)
    assert code == 0
    assert "━" in output and "620/1000  loss 2.214" in output and "eval 3/16" in output
    assert output.rindex(SHOW_CURSOR) > output.rindex(HIDE_CURSOR)
    # The bar is gone: after the last erasure of a line comes only the box.
    end = output[output.rindex("\x1b[2K") :]
    assert "Training summary" in end and "loss 2.214" not in end
    text = log.read_bytes().decode()
    assert not {"\r", "\x1b"} & set(text)
    file = io.StringIO()
    with Console(file=file, width=100, mode="plain", progress_seconds=0) as console:
        script.play_motion(console)
        script.play_lines(console)
    assert without_seconds(text) == without_seconds(file.getvalue())


def test_terminal_is_left_clean_by_ctrl_c(tmp_path):
    code, output = run_in_terminal(tmp_path / "train.log", "--interrupt")
    assert code != 0
    assert output.rindex(SHOW_CURSOR) > output.rindex(HIDE_CURSOR)


def test_terminal_honours_no_color_and_columns(tmp_path):
    coloured = re.compile(r"\x1b\[[0-9;]*3[0-9]")
    _, output = run_in_terminal(tmp_path / "a.log")
    assert coloured.search(output)
    _, output = run_in_terminal(tmp_path / "b.log", NO_COLOR="1", COLUMNS="50")
    assert not coloured.search(output)
    lines = re.split(r"[\r\n]+", ANSI.sub("", output))
    assert 45 < max(map(cell_len, lines)) <= 50


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"PYTHONIOENCODING": "ascii"}])
def test_terminals_that_cannot_draw_get_lines(tmp_path, environment):
    code, output = run_in_terminal(tmp_path / "train.log", **environment)
    assert code == 0
    assert "\x1b" not in output
    assert "step=620/1000 loss=2.214" in output
