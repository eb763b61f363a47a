from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from bitttt_jax.data import json_rows
from bitttt_jax.data.documents import UnusableDocumentError
from bitttt_jax.data.json_rows import Row, first_row, read_rows


def read(path: Path, text: str | bytes) -> list[Any]:
    """Fields of the rows, and the reasons and places of those that aren't any."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [
        row.fields if isinstance(row, Row) else (row.reason, str(row).split(": ")[0])
        for row in read_rows(path)
    ]


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_arrays_whatever_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK_CHARS", chunk)
    rng = random.Random(0)
    rows = [
        {"text": "".join(rng.choices('ab"\\]},[{ é🎉\n', k=rng.randint(0, 40))), "n": [1, {}]}
        for _ in range(30)
    ]
    for ascii_only in (False, True):
        text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
        assert read(tmp_path / "a.json", f"\n {text}\n") == rows
        assert read(tmp_path / "a.json", b"\xef\xbb\xbf" + text.encode()) == rows


def test_lines_and_their_faults(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = b'\n{"a": 1}\n\n{"a": \n7\n"\xff"\n{"b": 2}'
    assert read(path, text) == [
        {"a": 1},
        ("invalid JSON", f"{path}:4"),
        ("not a JSON object", f"{path}:5"),
        ("invalid UTF-8", f"{path}:6"),
        {"b": 2},
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[]", ["empty"]),
        ("", ["empty"]),
        (" \n", ["empty"]),
        ("[", ["invalid JSON"]),
        ('[{"a": 1}', [{"a": 1}, "invalid JSON"]),
        ('[{"a": 1} {"a": 2}]', [{"a": 1}, "invalid JSON"]),
        ('[{"a": 1},]', [{"a": 1}, "invalid JSON"]),
        ('[{"a": 1}, {"a": }, {"a": 3}]', [{"a": 1}, "invalid JSON"]),
        ('[{"a": 1}, 7, null, [], {"a": 3}]', [{"a": 1}, *["not a JSON object"] * 3, {"a": 3}]),
        ("[" * 200_000, ["invalid JSON"]),
        (b'[{"a": "\xff"}]', ["invalid UTF-8"]),
    ],
)
def test_arrays_and_their_faults(tmp_path: Path, text: str | bytes, found: list[Any]) -> None:
    rows = read(tmp_path / "a.json", text)
    assert [row if isinstance(row, dict) else row[0] for row in rows] == found


def test_an_element_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "_MOST_CHARS", 1000)
    monkeypatch.setattr(json_rows, "_CHUNK_CHARS", 100)
    path = tmp_path / "a.json"
    path.write_text('[{"a": "' + "x" * 5000)
    (row,) = read_rows(path)
    assert isinstance(row, UnusableDocumentError) and "more than 1,000 characters" in str(row)


def test_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text, expected in (('[{"a": 1}]', {"a": 1}), ('{"a": 1}\n7', {"a": 1}), ("7", None)):
        path.write_text(text)
        assert first_row(path) == expected
    assert first_row(tmp_path / "missing.json") is None
