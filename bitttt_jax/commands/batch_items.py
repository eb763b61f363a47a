"""Prompts of `bitttt batch`: from text, JSON lines, JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic

from bitttt_jax.errors import DataError, did_you_mean

_LONGEST_FIELD = 100_000_000
_PLACE = re.compile(r"\{(\w+)\}")


class ItemError(Exception):
    """An item that can't be run, while the others can."""


class Message(pydantic.BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Settings(pydantic.BaseModel):
    """What an item may set for itself; None is left to the command's flags."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    messages: list[Message] | None = None
    """A conversation in place of a prompt."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One prompt of many."""

    id: str
    fields: Mapping[str, Any]
    """What the file says about it, its prompt among it."""
    error: str = ""
    """Why it can't be run."""


def read_items(path: Path, field: str) -> list[Item]:
    """Reads all items of a file, or of the text files in a folder.

    Items without an `id` are numbered from 1 by their place. An item that can't be read has an
    `error`; where that can't be told from its neighbours the whole file is refused.

    Args:
      path: `.txt`, an item a line; a folder, an item for each of its `.txt` files; `.jsonl`, an
        object or a text a line; `.json`, a list of the same; `.csv`, with names in its first row.
      field: name for the text of `.txt` files and of plain texts in JSON.

    Raises:
      DataError: the file is missing, of another kind, or damaged; or two items have the same id.
    """
    readers: Mapping[str, Callable[[bytes, str, Path], Iterator[Item]]] = {
        ".txt": _lines,
        ".jsonl": _json_lines,
        ".json": _json,
        ".csv": _csv,
    }
    try:
        if path.is_dir():
            items = list(_files(path, field))
        elif path.suffix in readers:
            items = list(readers[path.suffix](path.read_bytes(), field, path))
        else:
            known = f"a folder, {', '.join(readers)}"
            raise DataError(f"{path} has an ending that says nothing about its format", fix=known)
    except OSError as error:
        raise DataError(f"{path} can't be read", error.strerror or str(error)) from None
    _check_ids(items, path)
    return items


def prompt_of(item: Item, field: str, template: str) -> str:
    """The text to continue: the item's field, or a template filled with its fields.

    Args:
      item: what was read.
      field: which of its fields is the prompt.
      template: text with `{name}` for a field; empty for none.

    Raises:
      ItemError: a field is missing or no text.
    """
    if not template:
        return _text(item, field)
    return _PLACE.sub(lambda place: _text(item, place[1]), template)


def settings_of(item: Item) -> Settings:
    """What an item sets for itself.

    Raises:
      ItemError: a value of the wrong type.
    """
    fields = {name: item.fields.get(name) for name in Settings.model_fields}
    given = {name: value for name, value in fields.items() if value not in (None, "")}  # CSV: ""
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    try:
        return Settings.model_validate(given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ItemError(f"{where}: {first['msg']}") from None


def _text(item: Item, field: str) -> str:
    if field not in item.fields:
        known = did_you_mean(field, item.fields) or f"; it has {', '.join(item.fields) or 'none'}"
        raise ItemError(f"there is no field {field!r}{known}")
    value = item.fields[field]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ItemError(f"the field {field!r} isn't a text")
    return value


def _files(folder: Path, field: str) -> Iterator[Item]:
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise DataError(f"{folder} holds no .txt files")
    for path in paths:
        try:
            yield Item(path.name, {field: path.read_bytes().decode("utf-8-sig")})
        except UnicodeDecodeError as error:
            yield Item(path.name, {}, f"not UTF-8 at byte {error.start}")


def _lines(data: bytes, field: str, path: Path) -> Iterator[Item]:
    for number, line in _numbered(data):
        try:
            yield Item(str(number), {field: line.decode()})
        except UnicodeDecodeError as error:
            yield Item(str(number), {}, f"not UTF-8 at byte {error.start} of its line")


def _json_lines(data: bytes, field: str, path: Path) -> Iterator[Item]:
    for number, line in _numbered(data):
        try:
            yield _object(json.loads(line), number, field)
        except (ValueError, RecursionError) as error:
            yield Item(str(number), {}, f"its line isn't JSON: {error}")


def _json(data: bytes, field: str, path: Path) -> Iterator[Item]:
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} isn't JSON", str(error)) from None
    if not isinstance(content, list):
        raise DataError(f"{path} isn't a list of items", fix='[{"prompt": "…"}, …]')
    for number, value in enumerate(content, 1):
        yield _object(value, number, field)


def _csv(data: bytes, field: str, path: Path) -> Iterator[Item]:
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        names = next(rows, [])
        if not names or len(set(names)) < len(names):
            raise DataError(f"{path} doesn't begin with a row of different names")
        for number, row in enumerate((row for row in rows if row), 1):
            if len(row) != len(names):
                why = f"its row has {len(row)} cells, and there are {len(names)} names"
                yield Item(str(number), {}, why)
            else:
                yield _object(dict(zip(names, row, strict=True)), number, field)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} isn't UTF-8", f"at byte {error.start}") from None
    except csv.Error as error:
        raise DataError(f"{path} isn't CSV", f"line {rows.line_num}: {error}") from None


def _object(value: Any, number: int, field: str) -> Item:
    if isinstance(value, str):
        return Item(str(number), {field: value})
    if not isinstance(value, dict):
        return Item(str(number), {}, "it is neither an object nor a text")
    id_ = value.get("id", number)
    if not isinstance(id_, (str, int)) or isinstance(id_, bool):
        return Item(str(number), {}, f"its id is {id_!r}, not a text or a whole number")
    return Item(str(id_) or str(number), value)


def _numbered(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Lines that aren't empty, with their numbers in the file."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(data.split(b"\n"), 1):
        line = line.removesuffix(b"\r")
        if line.strip():
            yield number, line


def _check_ids(items: list[Item], path: Path) -> None:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"{path} has two items with the id {item.id!r}", fix="different ids")
        seen.add(item.id)
