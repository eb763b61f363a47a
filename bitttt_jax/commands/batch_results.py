"""Results of `bitttt batch`: appended a whole line at a time, so that a killed process can resume.

JSON lines and CSV name the item in every row. A text file has a line for each item, in their order;
line breaks and backslashes of a text are written as `\\n` and `\\\\`, and an item that failed as
`\\error: ` and why.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bitttt_jax.errors import ConfigError, DataError
from bitttt_jax.runs.files import to_row

Format = Literal["jsonl", "csv", "txt"]
FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".csv": "csv", ".txt": "txt"}


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of an item."""

    id: str
    text: str = ""
    finish_reason: str = ""
    """`stop`, `length`, or empty after an error."""
    prompt_tokens: int = 0
    tokens: int = 0
    error: str = ""
    logprobs: tuple[dict[str, Any], ...] | None = None
    """Of each token, where they were asked for; JSON lines only."""


_TEXT_ERROR = "\\error: "  # no text begins so: its backslashes come in pairs, or before n and r
_COLUMNS = [field.name for field in dataclasses.fields(Result) if field.name != "logprobs"]


@dataclasses.dataclass(frozen=True)
class Done:
    """What a file of results holds already."""

    ids: frozenset[str]
    failed: int


class ResultFile:
    """Appends results to a file.

    Args:
      path: `.jsonl`, `.csv` or `.txt`.
      ids: of all items, in the order in which results will come.
      resume: go on with a file that is there, without its last line if that is torn.

    Raises:
      ConfigError: another ending; or the file is there, and isn't to be resumed.
      DataError: it can't be written, or holds something else than results of these items.
    """

    def __init__(self, path: Path, ids: Sequence[str], *, resume: bool):
        if path.suffix not in FORMATS:
            raise ConfigError(f"--output={path} must end in {', '.join(FORMATS)}")
        self._path, self._format = path, FORMATS[path.suffix]
        if path.exists() and not resume:
            raise ConfigError(
                f"--output={path} is there already",
                fix="--resume, which goes on with it, or another",
            )
        try:
            data = path.read_bytes() if path.exists() else b""
            whole = data[: _whole_bytes(data, self._format)]
            self.done = _read(whole, self._format, path, ids)
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.ftruncate(self._fd, len(whole))
        except OSError as error:
            raise DataError(f"--output={path} can't be written", error.strerror or "") from None
        if self._format == "csv" and not whole:
            self._write(_csv_line(_COLUMNS))

    def append(self, result: Result) -> None:
        """Adds one result.

        Raises:
          DataError: the disk is full.
        """
        self._write(_line(result, self._format))

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    def _write(self, line: str) -> None:
        # Half a surrogate pair, from a JSON id, becomes its escape.
        data = line.encode("utf-8", "backslashreplace")
        try:
            # One call: whoever reads or kills meanwhile finds whole lines.
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise DataError(
                f"{self._path} can't be written", error.strerror or "", "the same with --resume"
            ) from None


def _line(result: Result, kind: Format) -> str:
    if kind == "txt":
        if result.error:
            return f"{_TEXT_ERROR}{' '.join(result.error.split())}\n"
        return result.text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n") + "\n"
    values = {name: getattr(result, name) for name in _COLUMNS}
    if kind == "csv":
        return _csv_line([values[name] for name in _COLUMNS])
    if result.logprobs is not None:
        values["logprobs"] = result.logprobs
    if not result.error:
        del values["error"]
    return json.dumps(to_row(values), ensure_ascii=False, allow_nan=False) + "\n"


def _csv_line(cells: Sequence[Any]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _whole_bytes(data: bytes, kind: Format) -> int:
    """Length of the complete lines."""
    end = data.rfind(b"\n") + 1
    if kind == "csv":
        # A line break in a cell lies between an odd number of quotes and the rest of them.
        while end and data.count(b'"', 0, end) % 2:
            end = data.rfind(b"\n", 0, end - 1) + 1
    return end


def _read(data: bytes, kind: Format, path: Path, ids: Sequence[str]) -> Done:
    """The items that have a result.

    Raises:
      DataError: a row isn't a result of these items.
    """
    try:
        found, failed = _rows(data, kind, ids)
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(
            f"--output={path} isn't a file of results", str(error), "another --output"
        ) from None
    if unknown := set(found).difference(ids):
        raise DataError(
            f"--output={path} has results of other items, such as {min(unknown)!r}",
            fix="another --output, or the --input that it was made from",
        )
    return Done(frozenset(found), failed)


def _rows(data: bytes, kind: Format, ids: Sequence[str]) -> tuple[list[str], int]:
    text = data.decode()
    if kind == "txt":
        lines = text.split("\n")[:-1]
        if len(lines) > len(ids):
            raise ValueError(f"it has {len(lines)} lines, and the input {len(ids)} items")
        failed = sum(line.startswith(_TEXT_ERROR) for line in lines)
        return list(ids[: len(lines)]), failed
    if kind == "jsonl":
        rows = [json.loads(line) for line in text.split("\n") if line]
        return [str(row["id"]) for row in rows], sum("error" in row for row in rows)
    names, *cells = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [_COLUMNS]
    if names != _COLUMNS:
        raise ValueError(f"its first row isn't {','.join(_COLUMNS)}")
    rows = [dict(zip(names, row, strict=True)) for row in cells]
    return [row["id"] for row in rows], sum(bool(row["error"]) for row in rows)
