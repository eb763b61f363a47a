from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import bitttt_jax
from bitttt_jax import __main__ as cli
from bitttt_jax.errors import DataError, DivergedError, did_you_mean, run_main

ROOT = Path(__file__).parent.parent


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a function as the command `probe`."""

    def install(function: Callable[[Sequence[str]], int | None]) -> None:
        module = types.ModuleType("probe_command")
        module.main = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "probe_command", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", ("probe_command", "for this test"))

    return install


def test_arguments_and_exit_code_pass_through(command: Callable[..., None]):
    seen: list[str] = []

    def function(argv: Sequence[str]) -> int:
        seen.extend(argv)
        return 42

    command(function)
    assert cli.main(["probe", "--a=1", "b"]) == 42
    assert seen == ["--a=1", "b"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(DataError("what", "why", "fix"), 5), (DivergedError("what", "why", "fix"), 4)],
)
def test_explained_failure_is_a_message_and_a_code(
    command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
):
    def function(argv: Sequence[str]) -> None:
        raise error

    command(function)
    assert cli.main(["probe"]) == code
    assert capsys.readouterr().err == "error: what\n  why\n  Try: fix\n"


def test_interrupt_is_130(command: Callable[..., None], capsys: pytest.CaptureFixture[str]):
    def function(argv: Sequence[str]) -> None:
        raise KeyboardInterrupt

    command(function)
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == ""


def test_bug_keeps_its_traceback(command: Callable[..., None]):
    def function(argv: Sequence[str]) -> None:
        raise RuntimeError("a bug")

    command(function)
    with pytest.raises(RuntimeError):
        cli.main(["probe"])


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_commands(argv: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.main(argv) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text and line in text for name, (_, line) in cli.COMMANDS.items())


def test_version(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"bitttt-jax {bitttt_jax.__version__}\n"


def test_unknown_command(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_there(name: str):
    assert importlib.util.find_spec(cli.COMMANDS[name][0])


def test_help_of_the_process_needs_no_jax():
    code = (
        "import sys\n"
        "from bitttt_jax.__main__ import main\n"
        "assert main(['--help']) == 0\n"
        "assert 'jax' not in sys.modules and 'pydantic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_reader_that_goes_away_is_no_traceback():
    # The pipe takes 64 KiB; the rest meets a closed reader.
    code = (
        "import sys\n"
        "from bitttt_jax.errors import run_main\n"
        "sys.exit(run_main(lambda argv: print('x\\n' * 200_000), []))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    process.stdout.read(2)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 141
    process.stderr.close()


def test_success_without_a_code():
    assert run_main(lambda argv: None, []) == 0


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("trian", ["train", "chat"], " (did you mean train?)"),
        ("xyz", ["train", "chat"], ""),
        ("dim", ["model.dim", "mesh.data"], " (did you mean model.dim?)"),
        ("optim.dmi", ["model.dim", "optim.lr"], " (did you mean model.dim?)"),
        ("a.rate", ["b.rate", "a.late"], " (did you mean b.rate?)"),
    ],
)
def test_did_you_mean(name: str, known: list[str], expected: str):
    assert did_you_mean(name, known) == expected


LEFT_BEHIND = """
import sys, threading
from bitttt_jax.errors import exit_process
threading.Thread(target=threading.Event().wait, args=eval(sys.argv[1])).start()
print("told")
exit_process(int(sys.argv[2]))
"""


@pytest.mark.parametrize(("seconds", "code"), [("()", 130), ("(0.1,)", 0), ("(0.1,)", 3)])
def test_after_ctrl_c_no_thread_is_waited_for(seconds: str, code: int):
    """Such as one that waits for the checkpoint that was being written."""
    argv = [sys.executable, "-c", LEFT_BEHIND, seconds, str(code)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, "told\n", "")
