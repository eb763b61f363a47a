"""Conversations for tests, and what a model has to learn of them, by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path

Messages = list[dict[str, str]]

ASSISTANT, USER, END = 258, 259, 260
"""Of the bytes tokenizer with the tokens of our own template, after `<|system|>`."""


def make_chats(count: int = 40, seed: int = 0) -> list[Messages]:
    """Conversations of one to three questions and replies, all different."""
    rng = random.Random(seed)
    words = ["the", "naïve", "日本", "<|end|>", "x < 1", "🎉", "\n", "<|assistant|>\n"]
    say = lambda most: f"{' '.join(rng.choices(words, k=rng.randint(0, most)))}.".strip()
    return [
        [
            {"role": role, "content": f"{number} {say(9)}"}
            for _ in range(rng.randint(1, 3))
            for role in ("user", "assistant")
        ]
        for number in range(count)
    ]


def write_chats(path: Path, chats: list[Messages]) -> Path:
    """Writes them as lines of messages."""
    rows = [json.dumps({"messages": messages}) for messages in chats]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def tokens_by_hand(messages: Messages) -> tuple[list[int], list[int]]:
    """Tokens of a conversation as a document, and after which of them one is to be learned."""
    ids, learned = [256], [0]
    for message in messages:
        is_reply = message["role"] == "assistant"
        said = [*message["content"].encode(), END]
        ids += [ASSISTANT if is_reply else USER, *b"\n", *said, *b"\n"]
        learned += [0, 0, *[int(is_reply)] * len(said), 0]
    return ids, [*learned[1:], 0]
