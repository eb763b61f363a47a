"""Conversations as they are found in files: Alpaca, ShareGPT, and messages as OpenAI has them.

    {"instruction": "…", "input": "…", "output": "…"}
    {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}
    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}

All become messages with a role (system, user or assistant) and a content.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitttt_jax.data.documents import Document, UnusableDocumentError

_LISTS = ("messages", "conversations", "conversation")
_ALPACA = ("instruction", "output")
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
}


class _NoConversationError(Exception):
    """What is wrong with a row: a few words, and what exactly."""

    def __init__(self, reason: str, why: str = ""):
        self.reason, self.why = reason, why
        super().__init__(reason)


def is_conversation(row: object) -> bool:
    """Whether a row has the fields of one of the formats."""
    if not isinstance(row, Mapping):
        return False
    is_listed = any(isinstance(row.get(name), list) for name in _LISTS)
    return is_listed or all(name in row for name in _ALPACA)


def read_conversation(
    row: Mapping[str, Any], origin: str, size: int = 0
) -> Document | UnusableDocumentError:
    """The conversation of a row.

    Args:
      row: an object of a JSON file, or a row of a dataset.
      origin: where it stands, for messages.
      size: bytes that it took.
    """
    try:
        messages = _messages(row)
        if not any(message["role"] == "assistant" for message in messages):
            raise _NoConversationError("no reply", "no message is from an assistant")
        text = "\n\n".join(message["content"] for message in messages)
        text.encode()
    except _NoConversationError as error:
        return UnusableDocumentError(origin, error.reason, error.why)
    except UnicodeEncodeError as error:
        return UnusableDocumentError(origin, "invalid Unicode", str(error))
    return Document(text, origin, size, tuple(messages))


def _messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    name = next((name for name in _LISTS if row.get(name) is not None), None)
    if name is None:
        return _of_alpaca(row)
    entries = row[name]
    if not isinstance(entries, list):
        raise _NoConversationError(f"field {name!r} is no list", f"it is {_kind(entries)}")
    found = [_message(entry, number) for number, entry in enumerate(entries, start=1)]
    messages = [*_system(row), *(message for message in found if message is not None)]
    if any(message["role"] == "system" for message in messages[1:]):
        raise _NoConversationError("a system message after the first message")
    return messages


def _of_alpaca(row: Mapping[str, Any]) -> list[dict[str, str]]:
    missing = [name for name in _ALPACA if name not in row]
    if missing:
        names = ", ".join(map(repr, row)) or "none"
        why = f"there is no list {' or '.join(map(repr, _LISTS))}, and no {missing[0]!r}"
        raise _NoConversationError("not a conversation", f"{why}; its fields are {names}")
    instruction, given, output = (_text(row, name) for name in ("instruction", "input", "output"))
    for name, text in (("instruction", instruction), ("output", output)):
        if not text.strip():
            raise _NoConversationError("an empty message", f"its {name!r} is empty")
    question = f"{instruction}\n\n{given}" if given.strip() else instruction
    return [
        *_system(row),
        {"role": "user", "content": question},
        {"role": "assistant", "content": output},
    ]


def _system(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Instructions that stand beside the messages."""
    text = _text(row, "system")
    return [{"role": "system", "content": text}] if text.strip() else []


def _text(row: Mapping[str, Any], name: str) -> str:
    """The text of a field; empty where there is none."""
    text = row.get(name)
    if text is not None and not isinstance(text, str):
        raise _NoConversationError(f"field {name!r} is not text", f"it is {_kind(text)}")
    return text or ""


def _message(entry: object, number: int) -> dict[str, str] | None:
    """One message; None for instructions that are empty."""
    where = f"message {number}"
    if not isinstance(entry, Mapping):
        raise _NoConversationError("a message is no object", f"{where} is {_kind(entry)}")
    named = entry.get("role", entry.get("from"))
    role = _ROLES.get(named.lower()) if isinstance(named, str) else None
    if role is None:
        known = ", ".join(_ROLES)
        why = f"{where} is of {named!r}; known are {known}" if named else f"{where} has none"
        raise _NoConversationError("a message of no known role", why)
    content = _content(entry.get("content", entry.get("value")), where)
    if not content.strip():
        if role == "system":
            return None
        raise _NoConversationError("an empty message", f"{where}, of {named!r}")
    if entry.get("weight") not in (None, 1):
        why = f"{where} has weight {entry['weight']!r}; replies count or don't all alike"
        raise _NoConversationError("a message with a weight", why)
    return {"role": role, "content": content}


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):  # parts, of which some may be images
        texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    raise _NoConversationError("a message is not text", f"{where} has {_kind(content)}")


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
