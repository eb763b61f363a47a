"""A tokenizer as GGUF's metadata have it: byte-level BPE with a pre-tokenizer that has a name."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from gguf.constants import TokenType
from tokenizers import Regex, pre_tokenizers

from bitttt_jax.data.tokenizers import STOP_NAMES, Tokenizer
from bitttt_jax.errors import DataError
from bitttt_jax.interop.gguf_writer import Value
from bitttt_jax.interop.pre_tokenizers import PATTERNS

PROBE = (
    "I'VE don't  3 33 333 3333 été,, \n\n \t x=1;\r\n  if a[0]: ✓ 'Tis\u00a0a Cafe\u0301s"
    " ÉTÉs $a<b>`c` 你好,世界 한국어 12345678 1\n2 ...\n/x_y!?ABCdef WE'LL a1b2 (\n) \n\n\n  z x. "
)
"""Text that each of the named pre-tokenizers cuts differently."""


def metadata(tokenizer: Tokenizer, rows: int) -> dict[str, Value]:
    """Metadata entries of a tokenizer.

    Args:
      tokenizer: the model's.
      rows: of the embedding; llama.cpp wants a token for each.

    Raises:
      DataError: it's a kind of tokenizer that GGUF can't hold.
    """
    content = _content(tokenizer)
    model = content["model"]
    if model["type"] != "BPE" or (content["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        raise _refusal("it isn't byte-level BPE")
    if tokenizer.vocab_size > rows:
        size = tokenizer.vocab_size
        raise _refusal(f"it has {size} tokens, and the model's embedding {rows}")
    names = dict.fromkeys(range(rows), "")
    types = np.full(rows, TokenType.UNUSED, np.int32)
    for name, index in model["vocab"].items():
        names[index], types[index] = name, TokenType.NORMAL
    for added in content["added_tokens"]:
        names[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    # There is a place for one more that ends replies; those known by their names need none.
    known = {tokenizer.eos_id, *(tokenizer.token_id(name) for name in STOP_NAMES)}
    others = [id_ for id_ in tokenizer.stop_ids if id_ not in known]
    ends = {"tokenizer.ggml.eot_token_id": others[0]} if others else {}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)))
        if merges
        else "gpt-2",  # single bytes stay what they are, however the text is cut
        "tokenizer.ggml.tokens": [names[i] or f"[PAD{i}]" for i in range(rows)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        **ends,
        "tokenizer.ggml.add_bos_token": tokenizer.adds_bos,
        "tokenizer.ggml.add_eos_token": False,
    }


def _content(tokenizer: Tokenizer) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(path)
        return json.loads(path.read_bytes())


def _pre_tokenizer(backend: tokenizers.Tokenizer) -> str:
    """llama.cpp's name of what cuts the text as this one does."""
    if backend.pre_tokenizer is not None:
        found = backend.pre_tokenizer.pre_tokenize_str(PROBE)
        for name in PATTERNS:
            if cut(name) == found:
                return name
    raise _refusal(f"its pre-tokenizer is none of {' '.join(PATTERNS)}")


def cut(name: str) -> list[tuple[str, tuple[int, int]]]:
    """The pieces into which a named pre-tokenizer cuts `PROBE`."""
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS[name]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, byte_level]).pre_tokenize_str(PROBE)


def _refusal(why: str) -> DataError:
    return DataError("this tokenizer can't be written into a GGUF file", why, "--to=packed")
