"""Tokenizers of GGUF files (stands in until the real module is merged)."""

from __future__ import annotations

import json
from collections.abc import Mapping

from bitttt_jax.data.tokenizers import Tokenizer

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def from_gguf(metadata: Mapping[str, object]) -> Tokenizer:
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = metadata["tokenizer.ggml.merges"]
    special = [i for i, kind in enumerate(types) if kind in (3, 4)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    first = {"type": "Digits", "individual_digits": True}
    regex = True
    if metadata.get("tokenizer.ggml.pre", "llama-bpe") == "llama-bpe":
        first = {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated"}
        first["invert"] = regex = False
    elif metadata["tokenizer.ggml.pre"] == "gpt-2":
        first = None
    steps = [step for step in (first, byte_level | {"use_regex": regex}) if step]
    return Tokenizer(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [
                    {
                        "id": i,
                        "content": tokens[i],
                        "special": True,
                        "single_word": False,
                        "lstrip": False,
                        "rstrip": False,
                        "normalized": False,
                    }
                    for i in special
                ],
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
                "decoder": byte_level | {"use_regex": regex},
                "model": {
                    "type": "BPE",
                    "vocab": {token: i for i, token in enumerate(tokens)},
                    "merges": list(merges),
                    "ignore_merges": not regex,
                },
            }
        )
    )
