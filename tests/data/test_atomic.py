from __future__ import annotations

from pathlib import Path

import pytest

from bitttt_jax.data import atomic


def test_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in ("one\r\n", "zwei ✓"):
        atomic.write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic.write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
