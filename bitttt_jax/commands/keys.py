"""Single key presses, read without waiting for the return key."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time
import tty

_NAMES = {
    "\t": "tab", "\x1b[Z": "shift-tab",
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left",
    "\x1bOA": "up", "\x1bOB": "down", "\x1bOC": "right", "\x1bOD": "left",
}  # fmt: skip
_KEY = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)


class Keys:
    """The keyboard of the terminal, within `with`; Ctrl-C interrupts as ever."""

    def __enter__(self) -> Keys:
        self._fd = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)
        return self

    def __exit__(self, *_: object) -> None:
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def read(self, seconds: float) -> list[str]:
        """Waits for a key.

        Args:
          seconds: how long at most.

        Returns:
          The pressed keys: characters, or names such as `tab` and `left`. A terminal that is gone
            counts as q.
        """
        if not select.select([self._fd], [], [], seconds)[0]:
            return []
        try:
            data = os.read(self._fd, 1024)
        except OSError:
            data = b""
        if not data:
            time.sleep(0.01)
            return ["q"]
        found = _KEY.findall(data.decode(errors="replace"))
        return [_NAMES.get(key, key) for key in found]
