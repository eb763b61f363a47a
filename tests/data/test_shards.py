from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitttt_jax.config import DataConfig
from bitttt_jax.data.manifest import MANIFEST_FILE, Manifest
from bitttt_jax.data.prepare import prepare
from bitttt_jax.data.shards import ShardWriter, TokenDataset, load_tokenizer, verify
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError

TOKENS = "00-train-00000.bin"
OFFSETS = "00-train-00000.offsets"


@pytest.fixture
def prepared(tmp_path: Path, corpus: Path, data_config: Callable[..., DataConfig]) -> Path:
    prepare(data_config(corpus), tmp_path / "tokens")
    return tmp_path / "tokens"


def test_writer_starts_a_shard_before_a_document_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitttt_jax.data.shards._SHARD_TOKENS", 10)
    lengths = [4, 5, 1, 3, 30, 2]
    documents = [np.arange(length) + 100 * index for index, length in enumerate(lengths)]
    with ShardWriter(tmp_path, "00-train", "uint16") as writer:
        for document in documents:
            writer.add(document, text_bytes=7)
        shards = writer.finish()
    assert [(shard.documents, shard.tokens) for shard in shards] == [
        (3, 10),
        (1, 3),
        (1, 30),
        (1, 2),
    ]
    assert [shard.text_bytes for shard in shards] == [21, 7, 7, 7]
    stored = np.concatenate([np.fromfile(tmp_path / shard.file, "<u2") for shard in shards])
    np.testing.assert_array_equal(stored, np.concatenate(documents))
    offsets = np.fromfile(tmp_path / shards[0].offsets_file, "<u8")
    assert offsets.tolist() == [0, 4, 9, 10]


def test_writer_without_documents_leaves_no_file(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "00-train", "uint16") as writer:
        assert writer.finish() == ()
    assert list(tmp_path.iterdir()) == []


def test_writer_keeps_large_ids(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "x", "uint32") as writer:
        writer.add(np.array([70_000], np.int32), 1)
        shard = writer.finish()[0]
    assert np.fromfile(tmp_path / shard.file, "<u4").tolist() == [70_000]


def test_open_gives_the_documents(prepared: Path, texts: list[str]) -> None:
    found = []
    for split in ("train", "validation"):
        dataset = TokenDataset.open(prepared, split)
        (source,) = dataset.sources
        (shard,) = source.shards
        stored = np.split(shard.tokens, shard.offsets[1:-1].astype(int))
        assert all(document[0] == 256 for document in stored)
        found += [bytes(document[1:].tolist()).decode() for document in stored]
        assert dataset.documents == len(stored)
        assert dataset.tokens == sum(map(len, stored))
        assert dataset.text_bytes == dataset.tokens - dataset.documents
        assert isinstance(shard.tokens, np.memmap)
    assert sorted(found) == sorted(texts)


@pytest.mark.parametrize("name", [TOKENS, OFFSETS])
def test_truncated_and_missing_files(prepared: Path, name: str) -> None:
    path = prepared / name
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    expected = rf"{name} is damaged.*\n.*should have {len(data)} bytes and has {len(data) - 3}"
    with pytest.raises(DataError, match=expected):
        TokenDataset.open(prepared, "train")
    path.write_bytes(b"")
    with pytest.raises(DataError, match=name):
        TokenDataset.open(prepared, "train")
    path.unlink()
    with pytest.raises(DataError, match=rf"{name} .*\n  No such file"):
        TokenDataset.open(prepared, "train")


def test_offsets_of_another_shard(prepared: Path) -> None:
    path = prepared / OFFSETS
    offsets = np.fromfile(path, "<u8")
    offsets[-1] += 1
    offsets.tofile(path)
    with pytest.raises(DataError, match="don't span"):
        TokenDataset.open(prepared, "train")


@pytest.mark.parametrize("name", [TOKENS, OFFSETS, "00-validation-00000.bin"])
def test_verify_finds_a_changed_byte(prepared: Path, name: str) -> None:
    assert verify(prepared) == Manifest.load(prepared)
    data = bytearray((prepared / name).read_bytes())
    data[8] ^= 1
    (prepared / name).write_bytes(data)
    TokenDataset.open(prepared, "train")
    with pytest.raises(DataError, match=rf"{name} is damaged.*\n.*SHA-256"):
        verify(prepared)


def test_tokenizer_must_be_the_one_of_the_tokens(prepared: Path) -> None:
    assert load_tokenizer(prepared).fingerprint == Tokenizer.bytes().fingerprint
    Tokenizer.train(["abab"], 300).save(prepared / "tokenizer.json")
    with pytest.raises(DataError, match=r"tokenizer.json is damaged"):
        load_tokenizer(prepared)
    with pytest.raises(DataError, match=r"tokenizer.json is damaged"):
        verify(prepared)


def test_empty_split(tmp_path: Path, corpus: Path, data_config: Callable[..., DataConfig]) -> None:
    prepare(data_config(corpus, validation_fraction=0.0), tmp_path / "tokens")
    with pytest.raises(DataError, match=r"no validation documents\n.*0\.0 of 60.*\n.*Try"):
        TokenDataset.open(tmp_path / "tokens", "validation")


def test_newer_format_is_refused(prepared: Path) -> None:
    path = prepared / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 3}))
    with pytest.raises(DataError, match=rf"{MANIFEST_FILE} has format version 3"):
        TokenDataset.open(prepared, "train")
