"""JSON objects out of files that nobody vouches for."""

from __future__ import annotations

import json
from typing import Any


def parse_object(data: bytes) -> dict[str, Any]:
    """Parses a JSON object that has no key twice.

    Args:
      data: UTF-8, whose length the caller has bounded: what is parsed takes some 30 times as much.

    Raises:
      ValueError: it is something else, nested too deeply, or has numbers of absurd length; the
        message says which.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it isn't UTF-8") from None
    if not isinstance(value, dict):
        raise ValueError("its JSON isn't an object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"it has the key {twice!r:.99} twice")
    return parsed
