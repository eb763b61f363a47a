"""How far a page has read: positions in files by name, as one word that a page sends back."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from bitttt_jax.runs.follow import Position

Cursor = dict[str, Position]

_MAX_LENGTH = 1 << 16


def encode(cursor: Mapping[str, Position]) -> str:
    """The word for positions; keys are `m:RUN` for metrics and `l:RUN` for logs."""
    text = json.dumps({key: list(position) for key, position in cursor.items()})
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(word: str) -> Cursor:
    """The positions of a word; of one that isn't one, none: then a page begins anew."""
    if len(word) > _MAX_LENGTH:
        return {}
    try:
        content = json.loads(base64.urlsafe_b64decode(word + "=" * (-len(word) % 4)))
        found = {str(key): Position(*value) for key, value in content.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        key: position
        for key, position in found.items()
        if all(type(x) is int and 0 <= x < 2**53 for x in position)
    }
