"""Cleaning of documents: what `data.clean` changes in them, and which it leaves out.

`clean` looks at one text; `Cleaner` goes through documents, and knows what it has seen before.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator

from bitttt_jax.config import CleanConfig
from bitttt_jax.data.documents import Document
from bitttt_jax.errors import DataError

ALL = CleanConfig(unicode=True, control=True, whitespace=True, duplicates=True)
"""What `bitttt prepare --clean` turns on: all that takes no number."""

_LINE_END = re.compile("\r\n?|\x85")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_BLANK_LINES = re.compile("\n{3,}")


@dataclasses.dataclass(frozen=True, slots=True)
class Cleaned:
    """What a text came to."""

    text: str
    """As it goes on."""
    changes: tuple[str, ...] = ()
    """What was changed: `unicode`, `control`, `whitespace`."""
    removed: str = ""
    """Why it is left out, in words that are the same for all such texts; empty if it isn't."""


def clean(text: str, config: CleanConfig) -> Cleaned:
    """Cleans a text; whether it is a duplicate is for `Cleaner` to tell.

    >>> clean("Cafe\\u0301  \\n\\n\\n\\nopen", CleanConfig(unicode=True, whitespace=True))
    Cleaned(text='Café\\n\\nopen', changes=('unicode', 'whitespace'), removed='')
    """
    changes = []
    for name, change in _CHANGES.items():
        if getattr(config, name):
            before, text = text, change(text)
            changes += [name] if text != before else []
    return Cleaned(text, tuple(changes), _fault(text, config))


class Cleaner:
    """Cleans documents, of one source after the other.

    Args:
      config: what is changed and left out.
    """

    def __init__(self, config: CleanConfig):
        self._config = config
        self._seen: set[bytes] = set()

    def __call__(self, document: Document) -> tuple[Document, Cleaned]:
        """A document with its text, or its messages, cleaned; and what was done to it."""
        if document.messages:
            contents = [clean(message["content"], self._content) for message in document.messages]
            text = "\n\n".join(content.text for content in contents)
            changes = tuple(name for name in _CHANGES if any(name in c.changes for c in contents))
            removed = next((c.removed for c in contents if c.removed), _fault(text, self._config))
            messages = tuple(
                {**message, "content": content.text}
                for message, content in zip(document.messages, contents, strict=True)
            )
            result = Cleaned(text, changes, removed)
        else:
            result, messages = clean(document.text, self._config), ()
        if self._config.duplicates and not result.removed and self._is_known(result.text):
            result = dataclasses.replace(result, removed="duplicate")
        return dataclasses.replace(document, text=result.text, messages=messages), result

    def documents(
        self,
        documents: Iterator[Document],
        skipped: collections.Counter[str],
        changed: collections.Counter[str],
    ) -> Iterator[Document]:
        """The documents that are left of a source.

        Args:
          documents: of the source.
          skipped: counts those that are left out, by reason.
          changed: counts those that are changed, by what is.

        Raises:
          DataError: there is none left.
        """
        if self._config == CleanConfig():
            yield from documents
            return
        count, left_out = 0, collections.Counter[str]()
        for document in documents:
            cleaned, result = self(document)
            if result.removed:
                left_out[result.removed] += 1
                continue
            changed.update(result.changes)
            count += 1
            yield cleaned
        skipped.update(left_out)
        if not count:
            reasons = ", ".join(f"{n} {reason}" for reason, n in left_out.items())
            raise DataError("data.clean leaves no document of a source", f"left out: {reasons}")

    @property
    def _content(self) -> CleanConfig:
        """For a message: the numbers are about whole documents."""
        return dataclasses.replace(self._config, min_characters=0, max_repeated_lines=1.0)

    def _is_known(self, text: str) -> bool:
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        known = digest in self._seen
        self._seen.add(digest)
        return known


def _drop_control(text: str) -> str:
    return _CONTROL.sub("", _LINE_END.sub("\n", text))


def _tidy_spaces(text: str) -> str:
    return _BLANK_LINES.sub("\n\n", "\n".join(line.rstrip() for line in text.split("\n")))


_CHANGES: dict[str, Callable[[str], str]] = {
    "unicode": lambda text: unicodedata.normalize("NFC", text),
    "control": _drop_control,
    "whitespace": _tidy_spaces,
}


def _fault(text: str, config: CleanConfig) -> str:
    if not text.strip():
        return "empty after cleaning"
    if len(text) < config.min_characters:
        return f"under {config.min_characters} characters"
    if config.max_repeated_lines < 1:
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        if len(lines) - len(set(lines)) > config.max_repeated_lines * len(lines):
            return "repeated lines"
    return ""
