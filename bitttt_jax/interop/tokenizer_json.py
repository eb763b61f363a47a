"""The text of a tokenizer.json, out of what other formats keep of a vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

SPACE = "▁"
"""How SentencePiece writes a space."""


def byte_level(
    tokens: Sequence[str],
    merges: Sequence[str] | Sequence[tuple[str, str]],
    added: Mapping[int, bool],
    patterns: Sequence[str],
    *,
    ignore_merges: bool,
) -> str:
    """Byte-pair merges on bytes, each byte written as a character, as GPT-2 did.

    Args:
      tokens: by id.
      merges: two tokens, which may have a space between them; the first is done first.
      added: ids of tokens that are found as a whole, and whether they are special.
      patterns: regular expressions that cut text before merging (`pre_tokenizers`).
      ignore_merges: a piece that is a token stays whole, whatever the merges come to.
    """
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    steps = [split | {"pattern": {"Regex": pattern}} for pattern in patterns]
    return _tokenizer_json(
        tokens,
        added,
        normalizer=None,
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [*steps, bytes_ | {"use_regex": False}],
        },
        decoder=bytes_ | {"use_regex": True},
        model={"merges": merges, "ignore_merges": ignore_merges},
    )


def sentence_piece(
    tokens: Sequence[str],
    priorities: Mapping[str, float],
    added: Mapping[int, bool],
    unknown: str | None,
    *,
    adds_space: bool,
) -> str:
    """SentencePiece's byte-pair merges: characters, and bytes for those that have no token.

    Args:
      tokens: by id; those of bytes are `<0x00>` to `<0xFF>`.
      priorities: of the tokens that merges may give; the lowest is done first.
      added: ids of tokens that are found as a whole, and whether they are special.
      unknown: the token of what has none.
      adds_space: a text begins with a space that it doesn't have.
    """
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    words = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    # Where no token goes on behind a word's end, words can be merged (and remembered) one by one.
    has_phrases = any(SPACE in token.lstrip(SPACE) for token in priorities)
    split = {"type": "Split", "pattern": {"Regex": f"{SPACE}*[^{SPACE}]+|{SPACE}+"}}
    return _tokenizer_json(
        tokens,
        added,
        normalizer={
            "type": "Sequence",
            "normalizers": [*([prepend] if adds_space else []), spaces],
        },
        pre_tokenizer=None if has_phrases else split | {"behavior": "Isolated", "invert": False},
        decoder={
            "type": "Sequence",
            "decoders": [
                words,
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([strip] if adds_space else []),
            ],
        },
        model={
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "merges": merges_by_priority(priorities, tokens),
        },
    )


def merges_by_priority(
    priorities: Mapping[str, float], tokens: Sequence[str]
) -> list[tuple[str, str]]:
    """The merges of vocabularies that rank what a merge gives, not the merge.

    Args:
      priorities: of the tokens that merges may give; the lowest is done first.
      tokens: by id: of two merges to the same token, the one of the lower ids is done first.
    """
    ids = {token: id_ for id_, token in enumerate(tokens) if token in priorities}
    found = []
    for token, priority in priorities.items():
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                found.append((priority, left, right))
    return [(tokens[left], tokens[right]) for _, left, right in sorted(found)]


def _tokenizer_json(
    tokens: Sequence[str],
    added: Mapping[int, bool],
    *,
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
    model: dict[str, Any],
) -> str:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    names = [
        {"id": id_, "content": tokens[id_], "special": special, **flags}
        for id_, special in added.items()
    ]
    vocab = {token: id_ for id_, token in enumerate(tokens)}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": names,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": {"type": "BPE", "vocab": vocab, **model},
    }
    return json.dumps(content, ensure_ascii=False)
