"""Whole-or-absent files and JSON lines: half lines, non-finite numbers, full disks."""

import json
import math
import os

import numpy as np
import pytest

from bitttt_jax.errors import DataError
from bitttt_jax.runs.files import JsonLines, keep_rows, read_rows, to_row, write_atomically


def strict_loads(line):
    """As a browser reads it: NaN is no JSON."""
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_atomic_write_replaces_and_leaves_no_temporary_files(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "one\n")
    write_atomically(path, "zwei ü\n", durable=False)
    assert path.read_bytes() == "zwei ü\n".encode()
    assert os.listdir(tmp_path) == ["a.json"]


def test_failed_atomic_write_keeps_the_old_content(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_rows_are_valid_json_whatever_the_numbers(tmp_path):
    path = tmp_path / "m.jsonl"
    lines = JsonLines(path)
    lines.append({"step": 1, "a": math.nan, "b": -math.inf, "c": 0.1, "d": np.float64("inf")})
    lines.append({"step": 2, "nested": {"x": [1.0, math.nan]}})
    first, second = (strict_loads(line) for line in path.read_text().splitlines())
    assert first["nonfinite"] == ["a", "b", "d"]
    assert (first["a"], first["b"], first["c"], first["d"]) == (None, None, 0.1, None)
    assert second["nested"] == {"x": [1.0, None]}
    assert second["nonfinite"] == ["nested"]
    assert abs(first["t"] - path.stat().st_mtime) < 60


def test_to_row_leaves_finite_rows_alone():
    row = {"a": 1, "b": None, "c": (1, 2.0), "d": {"e": "NaN"}}
    assert to_row(row) == row


def test_each_row_is_on_disk_at_once(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl")
    for step in range(3):
        lines.append({"step": step})
        assert len(read_rows(tmp_path / "m.jsonl")[0]) == step + 1


def test_reader_follows_a_growing_file(tmp_path):
    path = tmp_path / "m.jsonl"
    assert read_rows(path) == ([], 0)
    path.write_bytes(b'{"step": 1}\n{"st')
    rows, offset = read_rows(path)
    assert (rows, offset) == ([{"step": 1}], 12)
    with path.open("ab") as file:
        file.write(b'ep": 2}\n{"step": 3}')
    rows, offset = read_rows(path, offset)
    assert rows == [{"step": 2}]
    assert read_rows(path, offset) == ([], offset)


@pytest.mark.parametrize("bad", [b"{oops}\n", b"[1]\n", b"\xff\xfe\n", b"\n", b"null\n"])
def test_a_malformed_line_is_named(tmp_path, bad):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n' + bad + b'{"step": 2}\n')
    with pytest.raises(DataError, match=r"m\.jsonl has a line that isn't a JSON object"):
        read_rows(path)


def test_appending_after_a_kill_cuts_the_half_line_off(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    JsonLines(path).append({"step": 2})
    assert [row["step"] for row in read_rows(path)[0]] == [1, 2]


def test_keep_rows_drops_by_row_and_replaces_as_a_whole(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"".join(b'{"step": %d}\n' % step for step in (1, 2, 3)) + b'{"step')
    inode = path.stat().st_ino
    assert keep_rows(path, lambda row: row["step"] <= 2) == 1
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert path.stat().st_ino != inode
    assert keep_rows(tmp_path / "none.jsonl", lambda row: True) == 0
    assert not (tmp_path / "none.jsonl").exists()


def test_a_row_that_hits_a_full_disk_is_not_repeated(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl")
    lines._fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space left"):
        lines.append({"step": 1})
    lines.close()  # doesn't raise: nothing is buffered
