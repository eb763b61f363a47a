from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from bitttt_jax.commands import prepare, progress
from bitttt_jax.errors import ExitCode


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_for_another_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    text = tmp_path / "text"
    text.mkdir()
    for n in range(50):
        (text / f"{n}.txt").write_text(f"document {n}")
    path = tmp_path / "progress.jsonl"
    monkeypatch.setenv(progress.PROGRESS_VARIABLE, str(path))
    flags = [f"--source={text}", f"--output={tmp_path / 'tokens'}", "--tokenizer=bpe"]
    assert prepare.main([*flags, "--vocab_size=270"]) == ExitCode.OK
    *shown, last = rows(path)
    size = sum(path.stat().st_size for path in text.iterdir())
    activities = list(dict.fromkeys(row["activity"] for row in shown))
    assert activities == [f"learn tokens from {text}", f"encode {text}"]
    for activity in activities:
        own = [row for row in shown if row["activity"] == activity]
        assert own[0]["done"] == 0 and own[-1]["done"] == size == own[-1]["total"]
        assert len(own) < 10  # not one for each document
    out, err = capsys.readouterr()
    assert last["report"] in out and "bytes/token" in last["report"]
    assert err == ""


def test_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    path = tmp_path / "progress.jsonl"
    monkeypatch.setenv(progress.PROGRESS_VARIABLE, str(path))
    with progress.show_progress() as show:
        for done in (0, 10, 40, 100):
            show("work", done, 100)
            now[0] += 1
    assert [(row["done"], row["eta_s"]) for row in rows(path)] == [
        (0, None),
        (10, 9.0),
        (40, 3.0),
        (100, None),
    ]
