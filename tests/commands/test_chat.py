from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitttt_jax.commands.chat import main
from bitttt_jax.commands.chat_session import COMMANDS, Session
from bitttt_jax.errors import BittttError, ConfigError, DataError, ExitCode
from bitttt_jax.inference.load import load
from bitttt_jax.inference.model import Model
from bitttt_jax.inference.sampling import SamplingConfig

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
GREEDY = SamplingConfig(temperature=0)
Captured = pytest.CaptureFixture[str]


# --- a session --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(trained_run: Path) -> Model:
    return dataclasses.replace(load(trained_run), chat_template=TEMPLATE)


@pytest.fixture
def told() -> list[str]:
    return []


def session(model: Model, told: list[str], **changes: object) -> Session:
    values = {
        "model": model,
        "name": "test",
        "sampling": GREEDY,
        "max_tokens": 8,
        "stop": (),
        "seed": 0,
        "context": None,
        "cache": None,
        "notify": told.append,
    }
    return Session(**(values | changes))  # type: ignore[arg-type]


def say(chat: Session, text: str) -> str:
    return "".join(piece.text for piece in chat.reply(chat.submit(text)))


def prompt_text(chat: Session) -> str:
    return chat.model.tokenizer.decode(chat.conversation.tokens())


def test_replies_become_turns(model: Model, told: list[str]):
    chat = session(model, told, system="be kind")
    first = say(chat, "one")
    second = say(chat, "two")
    assert prompt_text(chat) == f"s:be kind\nu:one\na:{first}\nu:two\na:{second}\na:"
    # The same as reading it all at once.
    fresh = session(model, told, system="be kind")
    fresh.conversation.turns = chat.conversation.turns[:2]
    assert say(fresh, "two") == second
    assert chat.command("/reset") == "the conversation is forgotten"
    assert say(chat, "one") == first


def test_saving_and_loading(model: Model, told: list[str], tmp_path: Path):
    chat, path = session(model, told, system="s"), tmp_path / "my chat.json"
    say(chat, "one, and enough to be kept")
    memory = tmp_path / "my chat.json.memory"
    assert chat.command(f"/save {path}") == (
        f"{path} holds 2 turns, and {memory} what was learned from them"
    )
    expected = say(chat, "two")
    other = session(model, told, name="other")
    assert other.command(f"/load {path}") == "2 turns, from a chat with test"
    assert other.conversation.system == "s"
    handle = other.submit("two")
    assert "".join(piece.text for piece in other.reply(handle)) == expected
    assert handle.reused_tokens > 16 and told == []
    # Without it, and with a damaged one, the conversation is read again.
    memory.write_bytes(b"damaged")
    assert other.command(f"/load {path}")
    assert "the conversation is read again" in told[0]
    assert say(other, "two") == expected
    other.command("/ttt off")
    assert other.command(f"/save {path}") == f"{path} holds 4 turns" and not memory.exists()
    for line in ("/save", "/load"):
        with pytest.raises(ConfigError, match="needs the name of a file"):
            chat.command(line)
    with pytest.raises(DataError, match="can't be read"):
        chat.command("/load nowhere.json")


def test_a_long_conversation_is_trimmed(model: Model, told: list[str]):
    """What is forgotten is said; a turn that is too long isn't taken."""
    chat = session(model, told, context=60)
    chat.command("/ttt off")
    for number in range(4):
        say(chat, f"this is turn {number}")
    assert len(chat.conversation.turns) < 8
    assert len(told) >= 1 and "oldest turns are forgotten, and what was learned" in told[0]
    before = list(chat.conversation.turns)
    with pytest.raises(DataError, match="and 52 fit before a reply"):
        chat.submit("x" * 60)
    assert chat.conversation.turns == before
    # A model without attention keeps no tokens: with what it learned going on, all stays.
    chat.command("/ttt on")
    turns, notices = len(chat.conversation.turns), len(told)
    for number in range(4):
        say(chat, f"this is turn {number}")
    assert len(chat.conversation.turns) == turns + 8 and len(told) == notices


def test_ttt_goes_on_or_reads_again(model: Model, told: list[str]):
    """The same text either way, as long as nothing is forgotten; only one way reads it again."""
    on, off = session(model, told), session(model, told)
    off.command("/ttt off")
    texts = ["this is a long first message", "and a second", "and a third"]
    for text in texts:
        replies = []
        for chat in (on, off):
            handle = chat.submit(text)
            replies.append("".join(piece.text for piece in chat.reply(handle)))
            again = chat is on and text != texts[0]
            assert (handle.reused_tokens > 16) == again
        assert replies[0] == replies[1]
    with pytest.raises(ConfigError, match="needs on or off"):
        on.command("/ttt maybe")


def test_commands(model: Model, told: list[str]):
    chat = session(model, told)
    help_text = str(chat.command("/help"))
    assert all(usage in help_text and what in help_text for usage, what in COMMANDS.items())
    assert chat.command("/temp 0.5") == "the temperature is 0.5"
    assert chat.sampling.temperature == 0.5
    for line, message in (("/temp x", "needs a number"), ("/temp -1", "must be finite")):
        with pytest.raises(BittttError, match=message):
            chat.command(line)
    assert chat.sampling.temperature == 0.5
    chat.command("/system Answer briefly.")
    assert prompt_text(chat) == "s:Answer briefly.\na:"
    chat.command("/system")
    assert prompt_text(chat) == "a:"
    with pytest.raises(ConfigError, match=r"did you mean /reset\?"):
        chat.command("/rest")
    assert chat.command("/quit") is None
    say(chat, "one")
    assert "replies       1, " in str(chat.command("/stats"))


def test_a_stopped_reply_stays(model: Model, told: list[str]):
    chat = session(model, told, max_tokens=10_000)
    handle = chat.submit("one")
    text = ""
    for piece in chat.reply(handle):
        text += piece.text
        handle.cancel()
    assert chat.conversation.turns[-1].content == text
    assert handle.finish_reason in ("cancelled", "stop")


# --- through a pipe ---------------------------------------------------------------------------


def talk(model: Path, lines: str | bytes, *flags: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "bitttt_jax", "chat", f"--model={model}", "--max_tokens=8", *flags],
        input=lines.encode() if isinstance(lines, str) else lines,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path), "JAX_NUM_CPU_DEVICES": "1"},
        check=False,
    )


def test_lines_of_a_pipe_are_turns(trained_run: Path, tmp_path: Path):
    saved = tmp_path / "chat.json"
    lines = f"one\r\n\n  \ntwo\n/temp 0\n/ttt off\n//slash\n/save {saved}\n/stats\n/quit\nthree\n"
    found = talk(trained_run, lines)
    assert found.returncode == ExitCode.OK, found.stderr
    content = json.loads(saved.read_text())
    said = [turn["content"] for turn in content["turns"]]
    assert said[::2] == ["one", "two", "/slash"]
    assert found.stdout.decode() == "".join(f"{reply}\n" for reply in said[1::2])
    err = found.stderr.decode()
    assert "This model has no chat template" in err and "later tokens" in err
    assert b"\x1b" not in found.stderr


def test_mistakes_in_a_pipe(trained_run: Path):
    """The others are answered; the exit code remembers."""
    found = talk(trained_run, b"one\n/sav x\nbad \xff\ntwo\n")
    assert found.returncode == ExitCode.DATA
    assert found.stdout.count(b"\n") >= 2
    err = found.stderr.decode()
    assert "did you mean /save" in err and "isn't valid UTF-8" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--context=-1"], ExitCode.USAGE, "--context must be"),
        (["--context=8"], ExitCode.USAGE, "leaves no room"),
        (["--load=nowhere.json"], ExitCode.DATA, "nowhere.json can't be read"),
        (["--model=nowhere"], ExitCode.DATA, "nowhere isn't there"),
        (["--max_tokens=0"], ExitCode.USAGE, "--max_tokens"),
    ],
)
def test_mistakes(trained_run: Path, capsys: Captured, flags: list[str], code: int, message: str):
    assert main([f"--model={trained_run}", "--max_tokens=8", *flags]) == code
    assert message in capsys.readouterr().err


# --- in a terminal ----------------------------------------------------------------------------


# Opened by the leader of a session, the terminal becomes its own: Ctrl-C reaches it.
_IN_TERMINAL = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
os.execv(sys.executable, [sys.executable, "-m", "bitttt_jax", "chat", *sys.argv[1:]])
"""


PROMPT = re.escape("\x1b[?2004h")  # what follows is typed: pasted text shall be marked


class Terminal:
    """A chat in a pseudo-terminal."""

    def __init__(self, model: Path, state: Path, *flags: str):
        master, slave = pty.openpty()
        self._master = master
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_TERMINAL, f"--model={model}", *flags],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=os.environ
            | {
                "PYTHONPATH": ":".join(sys.path),
                "JAX_NUM_CPU_DEVICES": "1",
                "XDG_STATE_HOME": str(state),
                "PROMPT_TOOLKIT_NO_CPR": "1",
                "TERM": "xterm",
            },
        )
        os.close(slave)
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, pattern: str, after: int = 0) -> re.Match[str]:
        """The first match in what was printed after a place."""
        deadline = time.monotonic() + 120
        while True:
            if found := re.compile(pattern, re.DOTALL).search(self.seen, after):
                return found
            assert time.monotonic() < deadline, self.seen
            self._read()

    def end(self) -> int:
        deadline = time.monotonic() + 120
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.seen
            self._read()
        return self.process.returncode

    def _read(self) -> None:
        if select.select([self._master], [], [], 0.1)[0]:
            try:
                self.seen += os.read(self._master, 65536).decode(errors="replace")
            except OSError:  # Linux: the other end is closed
                return

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def terminal(trained_run: Path, state: Path) -> Iterator[Terminal]:
    made = Terminal(trained_run, state, "--max_tokens=100000000", "--temperature=0")
    yield made
    made.close()


def test_ctrl_c_stops_the_reply_then_the_chat(terminal: Terminal, state: Path):
    terminal.wait_for(PROMPT)
    terminal.type("hello\r")
    # The reply has begun, which would take long.
    at = terminal.wait_for(r"\x1b\[\?2004l\r?[^\r\n\x1b]").end()
    terminal.type("\x03")
    at = terminal.wait_for(r"\(stopped\)", at).end()
    terminal.wait_for(PROMPT, at)
    terminal.type("dropped\x03/temp 0.5\r")  # what is typed goes, the chat stays
    at = terminal.wait_for("the temperature is 0.5", at).end()
    terminal.wait_for(PROMPT, at)
    terminal.type("\x03")
    assert terminal.end() == ExitCode.INTERRUPTED
    assert "Traceback" not in terminal.seen
    history = (state / "bitttt" / "chat_history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in history] == ["hello", "/temp 0.5"]
    assert (state / "bitttt" / "chat_history.jsonl").stat().st_mode & 0o077 == 0


def test_history_several_lines_and_the_end(trained_run: Path, state: Path, tmp_path: Path):
    (state / "bitttt").mkdir(parents=True)
    (state / "bitttt" / "chat_history.jsonl").write_text('"/temp 0.25"\n{"torn')
    terminal = Terminal(trained_run, state, "--max_tokens=3")
    try:
        at = terminal.wait_for(PROMPT).end()
        terminal.type("\x1b[A\r")  # arrow up
        at = terminal.wait_for("the temperature is 0.25", at).end()
        terminal.wait_for(PROMPT, at)
        saved = tmp_path / "chat.json"
        terminal.type("one\x1b\rtwo\r")  # Alt-Enter between
        terminal.type(f"\x1b[200~three\nfour\x1b[201~\r/save {saved}\r")  # pasted
        at = terminal.wait_for("holds 4 turns", at).end()
        terminal.wait_for(PROMPT, at)
        terminal.type("\x04")
        assert terminal.end() == ExitCode.OK
        said = [turn["content"] for turn in json.loads(saved.read_text())["turns"]]
        assert said[::2] == ["one\ntwo", "three\nfour"]
    finally:
        terminal.close()
    lines = (state / "bitttt" / "chat_history.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == "/temp 0.25" and json.loads(lines[-1]) == f"/save {saved}"


def test_a_terminal_gets_no_control_characters_of_the_model(
    model: Model, told: list[str], capsys: Captured, monkeypatch: pytest.MonkeyPatch
):
    """A model that writes escape sequences: neither moves the cursor nor changes colours."""
    from bitttt_jax.commands import chat as command

    chat = session(model, told, max_tokens=200, sampling=SamplingConfig(2.0))
    assert re.search(r"[\x00-\x08\x0e-\x1f]", say(chat, "one"))  # bytes at random have some
    chat.command("/reset")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert not command._answer(chat, "one")
    out = capsys.readouterr().out
    assert out and not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out)


def test_help_is_quick():
    script = """
import sys
from bitttt_jax.commands import batch, chat, doctor, inspect
for command in (batch, chat, doctor, inspect):
    try:
        command.main(["--help"])
    except SystemExit as stop:
        assert stop.code == 0
heavy = {"jax", "numpy", "tokenizers", "pydantic", "orbax", "prompt_toolkit", "psutil"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "usage: bitttt chat" in found.stdout and "usage: bitttt batch" in found.stdout
