"""Streamed text that ends before any of some strings."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Gives text out piece by piece until one of some strings is complete in it.

    The first one that is complete counts, of those that end together the longest: where pieces
    begin and end makes no difference. Text that may turn out to be the beginning of one is held
    back.

    Args:
      strings: none of them empty.

    >>> text = StopStrings(["<end>"])
    >>> text.push("one <e"), text.push("lse> two <en"), text.push("d> three"), text.found
    ('one ', '<else> two ', '', True)
    """

    def __init__(self, strings: Sequence[str]):
        self._strings = tuple(strings)
        self._held = ""
        self.found = False
        """Whether one of the strings has come; all text after it is dropped."""

    def push(self, text: str) -> str:
        """Takes more text; returns what of all text so far is certain and hasn't been given out."""
        if self.found:
            return ""
        text = self._held + text
        places = ((text.find(stop), stop) for stop in self._strings)
        matches = [(at + len(stop), at) for at, stop in places if at >= 0]
        if matches:
            self.found, self._held = True, ""
            return text[: min(matches)[1]]
        keep = len(text) - self._longest_beginning(text)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        """Returns what is held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self, text: str) -> int:
        """How many characters at the end of a text a string begins with."""
        longest = max(map(len, self._strings), default=0) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(len(stop) > size and stop.startswith(text[-size:]) for stop in self._strings):
                return size
        return 0
