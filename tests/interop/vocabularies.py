"""Small vocabularies, made on the spot in the forms that other programs have them."""

from __future__ import annotations

import heapq
import json
import random

import numpy as np
import tokenizers

from bitttt_jax.data.tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

WORDS = [
    "the",
    "cat",
    "naïve",
    "reads",
    "日本語",
    "it's",
    "I'LL",
    "x += 1",
    "12345",
    "\n",
    "🎉",
    "  ",
]


def sample_texts(seed: int, count: int) -> list[str]:
    """Texts of words, numbers, spaces and signs of several languages."""
    rng = random.Random(seed)
    glue = ["", " ", " ", "  ", "\n", "\r\n\n", "\t", ",", "?!", "'"]
    return [
        "".join(rng.choice(WORDS) + rng.choice(glue) for _ in range(rng.randrange(1, 30)))
        for _ in range(count)
    ]


def byte_level(size: int = 400) -> tuple[Tokenizer, dict[str, object]]:
    """A trained tokenizer and the GGUF metadata of its vocabulary."""
    trained = Tokenizer.train(sample_texts(0, 60), size)
    content = json.loads(trained.text)
    vocab: dict[str, int] = tokenizers.Tokenizer.from_str(trained.text).get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    types = np.full(len(tokens), NORMAL, np.int32)
    types[trained.eos_id] = CONTROL
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in content["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": trained.eos_id,
    }
    return trained, metadata


def sentence_piece(seed: int = 0, words: int = 60) -> dict[str, object]:
    """GGUF metadata of a SentencePiece vocabulary: characters, and random pieces of some texts."""
    rng = random.Random(seed)
    text = "▁" + "\n".join(sample_texts(seed, 30)).replace(" ", "▁")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    pieces = dict.fromkeys(sorted({*text} - {"🎉", "日"}))
    for _ in range(words):
        start = rng.randrange(len(text) - 8)
        for length in range(2, rng.randrange(3, 8)):  # what a merge is of must be there too
            pieces[text[start : start + length]] = None
    pieces = {piece: None for piece in pieces if not {"🎉", "日"} & {*piece}}
    tokens += pieces
    types += [NORMAL] * len(pieces)
    # Characters come last in real files too; equal scores would leave the order open.
    scores = [0.0] * 259 + rng.sample(range(-len(pieces), 0), len(pieces))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def merge_by_score(pieces: list[str], scores: dict[str, float]) -> list[str]:
    """What llama.cpp makes of characters: the neighbours whose token has the best score, first."""
    symbols: list[str | None] = list(pieces)
    heap: list[tuple[float, int, int, str]] = []

    def consider(left: int, right: int) -> None:
        joined = f"{symbols[left]}{symbols[right]}"
        if joined in scores:
            heapq.heappush(heap, (-scores[joined], left, right, joined))

    def neighbour(at: int, step: int) -> int | None:
        at += step
        while 0 <= at < len(symbols):
            if symbols[at] is not None:
                return at
            at += step
        return None

    for index in range(len(symbols) - 1):
        consider(index, index + 1)
    while heap:
        _, left, right, joined = heapq.heappop(heap)
        parts = symbols[left], symbols[right]
        if None in parts or "".join(map(str, parts)) != joined or neighbour(left, 1) != right:
            continue
        symbols[left], symbols[right] = joined, None
        before, after = neighbour(left, -1), neighbour(left, 1)
        if before is not None:
            consider(before, left)
        if after is not None:
            consider(left, after)
    return [symbol for symbol in symbols if symbol is not None]
