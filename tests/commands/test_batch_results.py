from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from bitttt_jax.commands.batch_results import Result, ResultFile
from bitttt_jax.errors import ConfigError, DataError

IDS = ["1", "b,\n", '"3"', "4"]
RESULTS = [
    Result("1", 'a "quoted"\nline, \\ and\r more', "stop", 3, 5),
    Result("b,\n", error='went\nwrong "here"'),
    Result('"3"', "\n", "length", 1, 1),
    Result("4", "", "stop", 2, 0),
]


def write(path: Path, results: list[Result], *, resume: bool = False) -> ResultFile:
    file = ResultFile(path, IDS, resume=resume)
    for result in results:
        if result.id not in file.done.ids:
            file.append(result)
    file.close()
    return file


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_a_file_torn_anywhere_is_completed(tmp_path: Path, name: str):
    """Whatever a killed process leaves: the same file at the end, no line lost or twice."""
    whole = tmp_path / name
    write(whole, RESULTS)
    data = whole.read_bytes()
    for end in range(len(data) + 1):
        torn = tmp_path / f"torn-{name}"
        torn.write_bytes(data[:end])
        write(torn, RESULTS, resume=True)
        assert torn.read_bytes() == data
    done = ResultFile(whole, IDS, resume=True).done
    assert (done.ids, done.failed) == (frozenset(IDS), 1)


def test_what_is_written(tmp_path: Path):
    for name in ("a.jsonl", "a.csv", "a.txt"):
        write(tmp_path / name, RESULTS)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    first = {"id": "1", "text": RESULTS[0].text, "finish_reason": "stop"}
    assert rows[0] == first | {"prompt_tokens": 3, "tokens": 5}
    assert rows[1]["error"] == 'went\nwrong "here"'
    with (tmp_path / "a.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert [(row["id"], row["text"], row["error"]) for row in cells] == [
        (result.id, result.text, result.error) for result in RESULTS
    ]
    lines = (tmp_path / "a.txt").read_text().splitlines()
    assert lines == ['a "quoted"\\nline, \\\\ and\\r more', '\\error: went wrong "here"', "\\n", ""]


def test_logprobs_and_odd_characters(tmp_path: Path):
    result = Result("\ud800", "日本", logprobs=({"logprob": -float("inf")},))
    file = ResultFile(tmp_path / "a.jsonl", ["\ud800"], resume=False)
    file.append(result)
    file.close()
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert row["id"] == "\ud800" and row["logprobs"] == [{"logprob": None}]
    assert "日本" in (tmp_path / "a.jsonl").read_text()
    assert ResultFile(tmp_path / "a.jsonl", ["\ud800"], resume=True).done.ids == {"\ud800"}


def test_a_file_that_is_there_is_not_touched(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    write(path, RESULTS[:1])
    with pytest.raises(ConfigError, match="is there already"):
        ResultFile(path, IDS, resume=False)
    with pytest.raises(ConfigError, match="must end in"):
        ResultFile(tmp_path / "a.md", IDS, resume=False)
    with pytest.raises(DataError, match="can't be written"):
        ResultFile(tmp_path / "no" / "a.txt", IDS, resume=False)
    assert json.loads(path.read_text())["id"] == "1"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"id": "other"}\n'),
        ("a.jsonl", "[]\n"),
        ("a.jsonl", "no JSON\n"),
        ("a.csv", "name,text\n"),
        ("a.csv", "id,text,finish_reason,prompt_tokens,tokens,error\n1,2\n"),
        ("a.txt", "\n" * 5),
        ("a.txt", "\xff\n"),
    ],
)
def test_another_file_is_not_resumed(tmp_path: Path, name: str, content: str):
    path = tmp_path / name
    path.write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"isn't a file of results|results of other items"):
        ResultFile(path, IDS, resume=True)
    assert path.read_text(encoding="latin-1") == content


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = ResultFile(tmp_path / "a.jsonl", IDS, resume=False)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DataError, match=r"No space left[^T]*Try: the same with --resume"):
        file.append(RESULTS[0])
    monkeypatch.undo()
    file.close()
