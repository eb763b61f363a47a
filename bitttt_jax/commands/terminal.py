"""Text to and from the person at the terminal, or the pipe in its place."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bitttt_jax.runs.console_text import safe_text
from bitttt_jax.runs.files import write_atomically

if TYPE_CHECKING:
    from prompt_toolkit.history import History

_KEPT_LINES = 1000


def show(text: str) -> None:
    """Prints a piece of text; on a terminal, without what could move the cursor or hide text."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    print(safe_text(text, multiline=True) if sys.stdout.isatty() else text, end="", flush=True)


def read_stdin() -> str:
    """All of stdin; what isn't UTF-8 is refused where prompts are encoded."""
    return sys.stdin.buffer.read().decode("utf-8-sig", "surrogateescape")


class Interrupt:
    """Whether Ctrl-C was pressed while a reply was being made."""

    pressed = False

    def __bool__(self) -> bool:
        return self.pressed


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Lets the body see the first Ctrl-C where it can stop; the second ends it at once."""
    interrupt = Interrupt()

    def press(*_: object) -> None:
        if interrupt:
            raise KeyboardInterrupt
        interrupt.pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


class Input(Protocol):
    """Where a chat's turns come from."""

    def read(self) -> str | None:
        """The next turn; None at the end.

        Raises:
          KeyboardInterrupt: Ctrl-C where nothing was typed.
        """


class PipedInput:
    """A turn a line, from stdin."""

    def read(self) -> str | None:
        """The next line that isn't empty."""
        for line in sys.stdin.buffer:
            text = line.decode("utf-8", "surrogateescape").removeprefix("\ufeff").rstrip("\r\n")
            if text.strip():
                return text
        return None


class TerminalInput:
    """Lines that can be edited, with the history of earlier chats.

    Args:
      words: what Tab completes at the start of a line.
    """

    def __init__(self, words: Iterable[str]):
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

        keys = KeyBindings()

        @keys.add("enter")
        def _send(event: KeyPressEvent) -> None:
            event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        self._session: PromptSession[str] = PromptSession(
            "> ",
            history=_history(history_path()),
            key_bindings=keys,
            multiline=True,  # pasted text may have several lines
            prompt_continuation="  ",
            completer=WordCompleter(list(words), sentence=True),
            complete_while_typing=False,
        )

    def read(self) -> str | None:
        """What was typed; an empty line asks again."""
        while True:
            try:
                text = self._session.prompt()
            except EOFError:
                return None
            except KeyboardInterrupt:
                if not self._session.default_buffer.text:
                    raise
                continue  # what was typed is dropped, as in a shell
            if text.strip():
                return text


def history_path() -> Path:
    """File of what was typed in chats."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "bitttt" / "chat_history.jsonl"


def _history(path: Path) -> History:
    """Keeps lines in a file, which nobody else may read; in memory where that can't be."""
    from prompt_toolkit.history import History, InMemoryHistory

    class LineHistory(History):
        def load_history_strings(self) -> Iterable[str]:
            return reversed(_load_lines(path))

        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):
                data = (json.dumps(string) + "\n").encode()
                file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                os.write(file, data)  # whole or not at all, also from two chats at once
                os.close(file)

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = _load_lines(path)
        is_torn = path.exists() and not path.read_bytes().endswith(b"\n")
        if len(lines) > _KEPT_LINES or is_torn:
            write_atomically(path, "".join(json.dumps(x) + "\n" for x in lines[-_KEPT_LINES:]))
    except OSError as error:
        print(f"what is typed isn't kept for the next chat: {error}", file=sys.stderr)
        return InMemoryHistory()
    return LineHistory()


def _load_lines(path: Path) -> list[str]:
    """Lines of the file, without those that are torn."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            if isinstance(text := json.loads(line), str):
                lines.append(text)
    return lines
