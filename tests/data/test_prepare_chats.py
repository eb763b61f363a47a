"""Conversations on their way from files through shards to batches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitttt_jax.config import DataConfig, SourceConfig, TokenizerConfig
from bitttt_jax.data.batches import Batches
from bitttt_jax.data.chat_templates import CHATML, ROLES
from bitttt_jax.data.manifest import MANIFEST_FILE, Manifest
from bitttt_jax.data.prepare import prepare
from bitttt_jax.data.shards import TokenDataset, load_tokenizer, verify
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import ConfigError, DataError
from tests.data.chats import make_chats, tokens_by_hand, write_chats

CHATS = make_chats()


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    return write_chats(tmp_path / "chats.jsonl", CHATS)


def config_of(*paths: Path, **settings: Any) -> DataConfig:
    sources = tuple(SourceConfig(path=str(path)) for path in paths)
    return DataConfig(sources=sources, **{"validation_fraction": 0.2, **settings})


def stored(folder: Path) -> dict[tuple[int, ...], list[int]]:
    """Documents of all splits and sources by their tokens, with their masks."""
    found = {}
    for split in ("train", "validation"):
        for source in TokenDataset.open(folder, split).sources:  # type: ignore[arg-type]
            for shard in source.shards:
                for low, high in zip(shard.offsets, shard.offsets[1:], strict=False):
                    tokens = tuple(shard.tokens[int(low) : int(high)].tolist())
                    mask = np.ones(len(tokens), int) if shard.mask is None else shard.mask[low:high]
                    found[tokens] = mask.tolist()
    return found


def test_shards_hold_conversations_and_their_masks(tmp_path: Path, chats: Path) -> None:
    manifest = prepare(config_of(chats), tmp_path / "tokens")
    by_hand = {tuple(ids): mask for ids, mask in map(tokens_by_hand, CHATS)}
    assert stored(tmp_path / "tokens") == by_hand
    assert verify(tmp_path / "tokens") == manifest
    assert manifest.chat_template == ROLES and manifest.vocab_size == 261
    assert sum(p.predictions for p in manifest.parts) == sum(map(sum, by_hand.values()))
    replies = [m["content"] for messages in CHATS for m in messages if m["role"] == "assistant"]
    assert sum(p.predicted_bytes for p in manifest.parts) == len("".join(replies).encode())
    assert all(part.documents for part in manifest.parts) and len(manifest.parts) == 2


def test_the_same_bytes_again(tmp_path: Path, chats: Path) -> None:
    for name in ("a", "b"):
        prepare(config_of(chats), tmp_path / name)
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab"
    ]
    assert contents[0] == contents[1] and "00-train-00000.mask" in contents[0]


def test_trained_tokenizers_have_the_tokens_too(tmp_path: Path, chats: Path) -> None:
    bpe = TokenizerConfig(kind="bpe", vocab_size=290)
    prepare(config_of(chats, tokenizer=bpe), tmp_path / "tokens")
    tokenizer = load_tokenizer(tmp_path / "tokens")
    assert tokenizer.vocab_size <= 290
    for name in ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"):
        id_ = tokenizer.token_id(name)
        assert id_ is not None and len(tokenizer.encode(name)) > 1
    assert tokenizer.token_id("<|end|>") in tokenizer.stop_ids
    learned = {
        tokenizer.decode([t for t, flag in zip(ids[1:], mask, strict=False) if flag])
        for ids, mask in stored(tmp_path / "tokens").items()
    }
    assert learned == {
        "".join(m["content"] for m in messages if m["role"] == "assistant") for messages in CHATS
    }
    with pytest.raises(ConfigError, match=r"vocab_size=260 .*\n.*<\|user\|>"):
        small = TokenizerConfig(kind="bpe", vocab_size=260)
        prepare(config_of(chats, tokenizer=small), tmp_path / "small")


def test_texts_are_stored_as_ever(tmp_path: Path, corpus: Path) -> None:
    """With what earlier versions wrote, byte for byte."""
    prepare(config_of(corpus), tmp_path / "tokens")
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in (tmp_path / "tokens").iterdir()
        if path.suffix != ".json"
    }
    assert digests == {
        "00-train-00000.bin": "c36aa5ef7e41c037",
        "00-train-00000.offsets": "605b1715aa26c629",
        "00-validation-00000.bin": "0de11dc9525f89ae",
        "00-validation-00000.offsets": "be3d6791dbff781d",
    }


def test_folders_of_version_1_are_read(tmp_path: Path, corpus: Path) -> None:
    config = config_of(corpus)
    prepare(config, tmp_path / "tokens")
    path = tmp_path / "tokens" / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    for shard in (shard for part in manifest["parts"] for shard in part["shards"]):
        assert shard.pop("mask") is None
    for source in manifest["sources"]:
        assert source.pop("cleaned") == {}
    del manifest["config"]["clean"], manifest["config"]["chat_template"], manifest["chat_template"]
    path.write_text(json.dumps(manifest | {"format_version": 1}))
    assert Manifest.load(path.parent).format_version == 1
    before = path.stat().st_mtime_ns
    verify(path.parent)
    prepare(config, path.parent)
    assert path.stat().st_mtime_ns == before
    prepare(dataclasses.replace(config, batch_size=7), path.parent)
    assert Manifest.load(path.parent).format_version == 2


def test_damaged_masks_are_found(tmp_path: Path, chats: Path) -> None:
    prepare(config_of(chats), tmp_path / "tokens")
    path = tmp_path / "tokens" / "00-train-00000.mask"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    TokenDataset.open(path.parent, "train")
    with pytest.raises(DataError, match=r"mask is damaged or missing\n.*SHA-256"):
        verify(path.parent)
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"mask is damaged or missing\n.*bytes"):
        TokenDataset.open(path.parent, "train")


def test_mixed_with_text_by_weight(tmp_path: Path, chats: Path, corpus: Path) -> None:
    config = config_of(chats, corpus)
    weighted = (dataclasses.replace(config.sources[0], weight=3.0), config.sources[1])
    manifest = prepare(dataclasses.replace(config, sources=weighted), tmp_path / "tokens")
    masked = {part.source: part.shards[0].mask is not None for part in manifest.parts}
    assert masked == {0: True, 1: False}
    data = Batches(tmp_path / "tokens", "train", seq_len=64, batch_size=8, seed=0, align=16)
    ignored = [
        (targets < 0).any() for step in range(50) for targets in data.batch(step)["targets_BT"]
    ]
    assert 0.65 < np.mean(ignored) < 0.8  # 3 of 4, but for rows within a long reply
    counted = sum(
        int(((b["segment_ids_BT"] > 0) & (b["targets_BT"] >= 0)).sum())
        for b in data.validation_windows()
    )
    assert counted == data.num_predictions < data.num_tokens


@pytest.mark.parametrize("align", [1, 16])
def test_batches_count_what_masks_do(tmp_path: Path, chats: Path, align: int) -> None:
    prepare(config_of(chats), tmp_path / "tokens")
    data = Batches(tmp_path / "tokens", "train", seq_len=32, batch_size=4, seed=0, align=align)
    targets = np.concatenate(
        [b["targets_BT"][b["segment_ids_BT"] > 0] for b in data.validation_windows()]
    )
    (shard,) = TokenDataset.open(tmp_path / "tokens", "train").sources[0].shards
    following = np.append(shard.tokens[1:], 256).astype(int)
    following[shard.offsets[1:].astype(int) - 1] = 256
    np.testing.assert_array_equal(targets, np.where(shard.mask, following, -1))
    for batch in data.validation_windows():
        starts = (batch["segment_ids_BT"] > 0) & (batch["positions_BT"] == 0)
        assert not (np.nonzero(starts)[1] % align).any()


# --- templates --------------------------------------------------------------------------------


def test_a_template_of_ones_own(tmp_path: Path, chats: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}<|fin|>{% endfor %}")
    config = config_of(chats, chat_template=str(path))
    manifest = prepare(config, tmp_path / "tokens")
    assert manifest.chat_template == path.read_text()
    tokenizer = load_tokenizer(tmp_path / "tokens")
    assert (tokenizer.vocab_size, tokenizer.stop_ids) == (258, (256, 257))
    prepare(config, tmp_path / "tokens")
    path.write_text(path.read_text() + "\n")
    with pytest.raises(DataError, match=r"own\.jinja has changed"):
        prepare(config, tmp_path / "tokens")
    path.unlink()
    prepare(config, tmp_path / "tokens")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("rols", r"no chat template 'rols' \(did you mean roles\?\)"),
        ("nowhere.jinja", "no chat template 'nowhere.jinja'"),
    ],
)
def test_templates_that_are_not_there(tmp_path: Path, chats: Path, name: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        prepare(config_of(chats, chat_template=name), tmp_path / "tokens")


def test_templates_that_are_wrong(tmp_path: Path, chats: Path) -> None:
    path = tmp_path / "own.jinja"
    for content, error in ((b"\xff", "not UTF-8"), (b"{% if %}", "can't be rendered")):
        path.write_bytes(content)
        with pytest.raises((ConfigError, DataError), match=error):
            prepare(config_of(chats, chat_template=str(path)), tmp_path / "tokens")


def test_text_with_a_template_gets_its_tokens(tmp_path: Path, corpus: Path, chats: Path) -> None:
    """So that what is trained on text first can learn conversations later."""
    prepare(config_of(corpus, chat_template="roles"), tmp_path / "text")
    assert Manifest.load(tmp_path / "text").chat_template == ROLES
    manifest = prepare(config_of(tmp_path / "text", chats), tmp_path / "both")
    assert manifest.chat_template == ROLES and len(manifest.parts) == 4
    with pytest.raises(DataError, match="prepared with another chat template"):
        prepare(config_of(tmp_path / "text", chats, chat_template="chatml"), tmp_path / "other")
    prepare(config_of(corpus), tmp_path / "plain")
    with pytest.raises(DataError, match="no special tokens for conversations"):
        prepare(config_of(tmp_path / "plain", chats), tmp_path / "other")
    with pytest.raises(DataError, match=r"no token <\|system\|> <\|assistant\|>"):
        prepare(config_of(tmp_path / "plain", chats, chat_template="roles"), tmp_path / "other")


def test_a_given_tokenizer_speaks_for_a_template(tmp_path: Path, chats: Path) -> None:
    path = tmp_path / "tokenizer.json"
    given = TokenizerConfig(kind="file", path=str(path))
    for names, expected in ((["<|im_start|>", "<|im_end|>"], CHATML), (ROLE_NAMES, ROLES)):
        Tokenizer.bytes(names).save(path)
        folder = tmp_path / str(len(names))
        assert prepare(config_of(chats, tokenizer=given), folder).chat_template == expected
        prepare(config_of(chats, tokenizer=given), folder)


ROLE_NAMES = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
