"""Writes a GGUF file like that of BitNet b1.58 2B4T (ggml-model-i2_s.gguf), with random weights.

    python -m benchmarks.bitnet_file PATH

Metadata keys, names, order, shapes and types of the tensors are those of the published file, and so
are the numbers of tokens and merges: 1.19 GB, streamed to the disk. The vocabulary is made up.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType, TokenType

from bitttt_jax.interop.gguf import I2_S, I2_S_TAIL
from bitttt_jax.interop.gguf_writer import NewTensor, Value, write

WIDTH, HIDDEN, HEADS, KV_HEADS, BLOCKS = 2560, 6912, 20, 5, 30
RANKS, SPECIALS = 128_000, 256
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'Human: ' + "
    "message['content'] + '\\n\\nBITNETAssistant: ' + eos_token }}{% endif %}{% endfor %}"
)
# How many tokens have two, three and four characters: with all their splits, 280,147 merges.
_LONG = {2: (160, 25_600), 3: (38, 51_885), 4: (16, 50_259)}
_PIECE = 2**22
_SCALE = 0.02


def metadata(blocks: int = BLOCKS, ranks: int = RANKS) -> dict[str, Value]:
    """The file's entries.

    Args:
      blocks: of the network.
      ranks: of the vocabulary, before the 256 special tokens.
    """
    own: dict[str, Value] = {
        "vocab_size": ranks + SPECIALS,
        "context_length": 4096,
        "embedding_length": WIDTH,
        "block_count": blocks,
        "feed_forward_length": HIDDEN,
        "rope.dimension_count": WIDTH // HEADS,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 500_000.0,
    }
    tokens, merges = _vocabulary(ranks)
    tokens += ["<|begin_of_text|>", "<|end_of_text|>"]
    tokens += [f"<|reserved_special_token_{i}|>" for i in range(SPECIALS - 2)]
    tokens[ranks + 9] = "<|eot_id|>"
    types = np.full(len(tokens), TokenType.NORMAL, np.int32)
    types[ranks:] = TokenType.CONTROL
    return {
        "general.architecture": "bitnet-b1.58",
        "general.name": "bitnet2b",
        **{f"bitnet-b1.58.{key}": value for key, value in own.items()},
        "general.file_type": 40,
        "general.quantization_version": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.zeros(len(tokens), np.float32),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": ranks,
        "tokenizer.ggml.eos_token_id": ranks + 1,
        "tokenizer.ggml.padding_token_id": ranks + 1,
        "tokenizer.chat_template": TEMPLATE,
    }


def _vocabulary(ranks: int) -> tuple[list[str], list[str]]:
    """Tokens, and for each all ways to make it from two others."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable)))]
    tokens = list(letters)
    for length, (letter_count, count) in _LONG.items():
        # Those of the first letters come first, so that the parts of longer tokens are there.
        words = sorted(itertools.product(range(letter_count), repeat=length), key=max)
        tokens += ["".join(letters[i] for i in word) for word in words[:count]]
    tokens = tokens[:ranks]
    splits = ((t[:cut], t[cut:]) for t in tokens[256:] for cut in range(1, len(t)))
    return tokens, [f"{left} {right}" for left, right in splits]


def tensors(blocks: int = BLOCKS, ranks: int = RANKS, seed: int = 0) -> list[NewTensor]:
    """The file's tensors, random.

    Args:
      blocks: of the network.
      ranks: of the vocabulary.
      seed: of the values.
    """
    rng = np.random.default_rng(seed)
    valid = np.array([c for c in range(256) if not c & c >> 1 & 0x55], np.uint8)
    codes = valid[rng.integers(0, len(valid), _PIECE, np.uint8)]
    floats = rng.standard_normal(_PIECE, np.float32).astype(np.float16)
    tail = np.zeros(I2_S_TAIL, np.uint8)
    tail[:4] = np.float32([_SCALE]).view(np.uint8)

    def matrix(name: str, rows: int, width: int) -> NewTensor:
        def data() -> Iterable[np.ndarray]:
            return itertools.chain(_repeat(codes, rows * width // 4, rng), [tail])

        return NewTensor(name, (rows, width), I2_S, data)

    def norm(name: str, width: int) -> NewTensor:
        return NewTensor(name, (width,), GGMLQuantizationType.F32, lambda: [np.ones(width, "f4")])

    embedding = (ranks + SPECIALS, WIDTH)
    found = [
        NewTensor(
            "token_embd.weight",
            embedding,
            GGMLQuantizationType.F16,
            lambda: _repeat(floats, embedding[0] * embedding[1], rng),
        )
    ]
    narrow = WIDTH // HEADS * KV_HEADS
    for i in range(blocks):
        at = f"blk.{i}."
        found += [
            norm(f"{at}attn_norm.weight", WIDTH),
            matrix(f"{at}ffn_down.weight", WIDTH, HIDDEN),
            norm(f"{at}ffn_sub_norm.weight", HIDDEN),
            matrix(f"{at}ffn_gate.weight", HIDDEN, WIDTH),
            matrix(f"{at}ffn_up.weight", HIDDEN, WIDTH),
            norm(f"{at}ffn_norm.weight", WIDTH),
            norm(f"{at}attn_sub_norm.weight", WIDTH),
            matrix(f"{at}attn_k.weight", narrow, WIDTH),
            matrix(f"{at}attn_output.weight", WIDTH, WIDTH),
            matrix(f"{at}attn_q.weight", WIDTH, WIDTH),
            matrix(f"{at}attn_v.weight", narrow, WIDTH),
        ]
    return [*found, norm("output_norm.weight", WIDTH)]


def _repeat(values: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Some values again and again, from another start each time: random ones take minutes."""
    while count:
        start = int(rng.integers(0, len(values) // 2))
        piece = values[start : start + count]
        count -= len(piece)
        yield piece


def main(argv: list[str]) -> Any:
    """Writes the file, and prints `null`."""
    write(Path(argv[0]), metadata(), tensors())
    print("null")


if __name__ == "__main__":
    main(sys.argv[1:])
