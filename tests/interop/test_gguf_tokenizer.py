"""Tokenizers as GGUF has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import TokenType

from bitttt_jax.data.tokenizers import END_OF_TEXT, Tokenizer
from bitttt_jax.errors import DataError
from bitttt_jax.interop import gguf_tokenizer, tokenizers
from bitttt_jax.interop.pre_tokenizers import PATTERNS

TEXT = "The theme then, 1234 — naïve 🎉\n\n  x = [1, 2]\r\n" * 3
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES = WORDS | {"use_regex": False}


def split(pattern: str) -> dict[str, Any]:
    regex = {"Regex": pattern}
    return {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


@pytest.fixture
def trained() -> Tokenizer:
    return Tokenizer.train([TEXT], 300)


def changed(tokenizer: Tokenizer, folder: Path, **changes: Any) -> Tokenizer:
    """The same with other parts of its tokenizer.json."""
    tokenizer.save(folder / "tokenizer.json")
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    return Tokenizer(json.dumps(content | changes))


def test_a_trained_tokenizer_is_read_back(trained: Tokenizer):
    found = gguf_tokenizer.metadata(trained, 320)
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(types, np.ndarray)
    size = trained.vocab_size
    assert size < 320
    assert tokens[trained.eos_id] == END_OF_TEXT
    assert types[trained.eos_id] == TokenType.CONTROL
    assert tokens[size:] == [f"[PAD{i}]" for i in range(size, 320)]
    assert set(types[size:].tolist()) == {TokenType.UNUSED}
    assert set(types[:size].tolist()) == {TokenType.CONTROL, TokenType.NORMAL}
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    again = tokenizers.from_gguf(found)
    np.testing.assert_array_equal(again.encode(TEXT), trained.encode(TEXT))
    assert again.eos_id == trained.eos_id


@pytest.mark.parametrize("end", ["<|end|>", "<|fin|>"])
def test_the_token_that_ends_replies_is_read_back(end: str):
    tokenizer = Tokenizer.bytes(["<|user|>", end])
    tokenizer = Tokenizer(tokenizer.text, stop_ids=[258])
    again = tokenizers.from_gguf(gguf_tokenizer.metadata(tokenizer, 320))
    assert again.stop_ids == tokenizer.stop_ids == (256, 258)


def test_single_bytes_need_no_pre_tokenizer():
    found = gguf_tokenizer.metadata(Tokenizer.bytes(), 257)
    assert (found["tokenizer.ggml.pre"], found["tokenizer.ggml.merges"]) == ("gpt-2", [])
    again = tokenizers.from_gguf(found)
    np.testing.assert_array_equal(again.encode(TEXT), list(TEXT.encode()))


@pytest.mark.parametrize(
    ("name", "pre_tokenizer"),
    [
        ("gpt-2", WORDS),
        ("gpt-2", sequence(WORDS)),
        ("smollm", sequence({"type": "Digits", "individual_digits": True}, WORDS)),
        ("llama-bpe", sequence(split(QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)), BYTES)),
        ("qwen2", sequence(split(QWEN2), BYTES)),
    ],
)
def test_pre_tokenizers_are_known_by_what_they_do(trained, tmp_path, name, pre_tokenizer):
    one = changed(trained, tmp_path, pre_tokenizer=pre_tokenizer)
    assert gguf_tokenizer.metadata(one, 320)["tokenizer.ggml.pre"] == name


def test_the_probe_tells_all_pre_tokenizers_apart():
    cuts = [gguf_tokenizer.cut(name) for name in PATTERNS]
    assert all(cuts.count(cut) == 1 for cut in cuts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "its pre-tokenizer is none of default gpt-2"),
        ({"pre_tokenizer": None}, "its pre-tokenizer is none of default gpt-2"),
        ({"normalizer": {"type": "Lowercase"}}, "isn't byte-level BPE"),
    ],
)
def test_other_kinds_are_refused(trained, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        gguf_tokenizer.metadata(changed(trained, tmp_path, **changes), 320)


def test_more_tokens_than_rows_are_refused(trained: Tokenizer):
    size = trained.vocab_size
    with pytest.raises(DataError, match=f"it has {size} tokens, and the model's embedding 270"):
        gguf_tokenizer.metadata(trained, 270)
