from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitttt_jax.config import DataConfig, SourceConfig
from bitttt_jax.data.manifest import MANIFEST_FILE, Manifest, Part, Shard, SourceFiles
from bitttt_jax.errors import DataError

SHARD = Shard("00-train-00000.bin", 10, 2, 8, "a" * 64, "b" * 64)
MANIFEST = Manifest(
    tokenizer_fingerprint="c" * 64,
    vocab_size=257,
    bos_id=256,
    eos_id=256,
    dtype="uint16",
    parts=(Part("a", "train", 0, 1.0, "", (SHARD, SHARD)), Part("b", "train", 1, 0.5, "/x", ())),
    sources=(SourceFiles(3, 99, "d" * 64, {"empty": 2}),),
    config=DataConfig(sources=(SourceConfig(path="a", weight=3), SourceConfig(path="b"))),
)


def test_round_trip(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    assert Manifest.load(tmp_path) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_FILE]


def test_sums_and_weights() -> None:
    part, other = MANIFEST.split("train")
    assert (part.tokens, part.documents, part.text_bytes) == (20, 4, 16)
    assert (MANIFEST.weight(part), MANIFEST.weight(other)) == (3.0, 0.5)
    assert MANIFEST.split("validation") == ()


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no prepared tokens\n.*\n.*bitttt prepare"):
        Manifest.load(tmp_path)


def test_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text('{"format_version": 3, "unknown": 0}')
    with pytest.raises(DataError, match="format version 3, this program reads up to 2"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("key", ["", "eos_id", "parts", "format_version"])
def test_damaged(tmp_path: Path, key: str) -> None:
    MANIFEST.save(tmp_path)
    path = tmp_path / MANIFEST_FILE
    text = path.read_text()
    content = {name: value for name, value in json.loads(text).items() if name != key}
    path.write_text(json.dumps(content) if key else text[:-20])
    with pytest.raises(DataError, match=r"manifest.json is damaged"):
        Manifest.load(tmp_path)
