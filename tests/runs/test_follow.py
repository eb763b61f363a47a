from __future__ import annotations

from pathlib import Path

import pytest

from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.files import JsonLines
from bitttt_jax.runs.follow import Follower, LogFollower


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.open(tmp_path / "run", writer=True)


def steps(rows: list[dict]) -> list[int]:
    return [row["step"] for row in rows]


def test_rows_come_once_and_whole(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    follower = Follower(path)
    assert follower.read() == ([], False)
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert follower.read() == ([{"step": 1}, {"step": 2}], False)
    assert follower.read() == ([], False)
    with path.open("a") as file:
        file.write('ep": 3}\n')
    assert follower.read() == ([{"step": 3}], False)


@pytest.mark.parametrize("more", [0, 1, 7], ids="{}_rows_after".format)
@pytest.mark.parametrize("kept", [0, 2, 4])
def test_a_resumed_run_is_read_anew(run: RunDirectory, kept: int, more: int):
    for step in range(1, 6):
        run.metric({"step": step, "loss": 1.0})
    follower = Follower(run.metrics_path)
    assert steps(follower.read()[0]) == [1, 2, 3, 4, 5]
    run.truncate_metrics(kept)
    for step in range(kept + 1, kept + 1 + more):
        run.metric({"step": step, "loss": 2.0})
    rows, restarted = follower.read()
    assert restarted and steps(rows) == list(range(1, kept + 1 + more))
    assert follower.read() == ([], False)


def test_a_cut_after_the_last_row_is_none(run: RunDirectory):
    run.metric({"step": 1})
    follower = Follower(run.metrics_path)
    follower.read()
    run.truncate_metrics(3)
    run.metric({"step": 2})
    rows, restarted = follower.read()
    assert steps(rows) == [2] and not restarted


def test_a_file_that_vanishes_starts_over(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    lines = JsonLines(path)
    lines.append({"step": 1})
    lines.close()
    follower = Follower(path)
    follower.read()
    path.unlink()
    assert follower.read() == ([], True)
    assert follower.read() == ([], False)
    lines.append({"step": 9})
    lines.close()
    assert steps(follower.read()[0]) == [9]


@pytest.mark.parametrize("bad", ["nonsense", "[1]", "3", "", '{"a": }', "\ufffd\x00"])
def test_lines_that_are_no_rows_are_left_out(tmp_path: Path, bad: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n', encoding="utf-8")
    assert steps(Follower(path).read()[0]) == [1, 2]


def test_log_lines_come_once_and_whole(tmp_path: Path):
    path = tmp_path / "train.log"
    follower = LogFollower(path)
    assert follower.read() == []
    path.write_bytes("first\nhälf".encode()[:-2])
    assert follower.read() == ["first"]
    with path.open("ab") as file:
        file.write(b"lf\n\nthird\n")
    assert follower.read() == ["hälf", "", "third"]
    assert follower.read() == []
    path.write_text("anew\n")
    assert follower.read() == ["anew"]
    path.unlink()
    assert follower.read() == []


def test_of_a_flood_the_end_is_read(tmp_path: Path):
    path = tmp_path / "train.log"
    path.write_text("".join(f"line {number}\n" for number in range(10_000)))
    follower = LogFollower(path, most_bytes=100)
    lines = follower.read()
    assert lines[-1] == "line 9999" and 5 < len(lines) < 12
    assert all(line.startswith("line ") for line in lines)
    with path.open("a") as file:
        file.write("x" * 1000)
    assert follower.read() == []
    with path.open("a") as file:
        file.write("\nlast\n")
    assert follower.read()[-1] == "last"
