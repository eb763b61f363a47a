"""JSON files of other programs' models, each value checked where it is read."""

from __future__ import annotations

import math
from collections.abc import Container
from pathlib import Path
from typing import Any

from bitttt_jax.data import strict_json
from bitttt_jax.errors import DataError

_MOST_BYTES = 20_000_000
_LARGEST = 2**31


def read_json(path: Path) -> Fields:
    """Reads a JSON object.

    Raises:
      DataError: no such file, one that is too large, or no JSON object.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        return Fields(path, strict_json.parse_object(path.read_bytes()))
    except OSError as error:
        raise DataError(f"{path} can't be read", error.strerror or str(error)) from None
    except ValueError as error:
        raise DataError(f"{path} isn't a JSON object that can be used", str(error)) from None


class Fields:
    """The fields of a JSON object; one that is null counts as absent.

    Args:
      path: the file, named in messages.
      values: the object.
      prefix: of the names in messages, where the object lies in another.
    """

    def __init__(self, path: Path, values: dict[str, Any], prefix: str = ""):
        self.path = path
        self.values = values
        self._prefix = prefix

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def integer(self, name: str, default: int | None = None, *, low: int = 1) -> int:
        """A whole number from `low` up; required without a default."""
        value = self._value(name, default)
        if type(value) is not int or not low <= value <= _LARGEST:
            raise self.fault(name, f"it must be a whole number from {low} to {_LARGEST}")
        return value

    def number(self, name: str, default: float | None = None, *, low: float = 0.0) -> float:
        """A finite number of at least `low`."""
        value = self._value(name, default)
        if type(value) not in (int, float) or not low <= value < math.inf:
            raise self.fault(name, f"it must be a number of at least {low}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._value(name, default)
        if type(value) is not bool:
            raise self.fault(name, "it must be true or false")
        return value

    def text(self, name: str, default: str | None = None, among: Container[str] = ()) -> str:
        """A text, one of a few where these are given."""
        value = self._value(name, default)
        if type(value) is not str:
            raise self.fault(name, "it must be a text")
        if among and value not in among:
            known = ", ".join(among) if isinstance(among, (tuple, list, dict)) else ""
            raise self.fault(name, f"this program knows {known}")
        return value

    def texts(self, name: str) -> list[str] | None:
        """A list of texts; None where there is none."""
        value = self.values.get(name)
        if value is None:
            return None
        if type(value) is not list or any(type(item) is not str for item in value):
            raise self.fault(name, "it must be a list of texts")
        return value

    def object(self, name: str) -> Fields | None:
        """An object; None where there is none."""
        value = self.values.get(name)
        if value is None:
            return None
        if type(value) is not dict:
            raise self.fault(name, "it must be an object")
        return Fields(self.path, value, f"{self._prefix}{name}.")

    def refuse(self, name: str, neutral: Container[Any], why: str) -> None:
        """Sees that a field, where there is one, has a value that changes nothing."""
        value = self.values.get(name)
        if value is not None and (type(value) in (list, dict) or value not in neutral):
            raise self.fault(name, why)

    def fault(self, name: str, why: str, fix: str = "") -> DataError:
        """The error about a field's value."""
        value = self.values.get(name)
        shown = "is missing" if value is None else f"is {value!r:.99}"
        return DataError(f"{self.path}: {self._prefix}{name} {shown}", why, fix)

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value
