"""From a prompt's text to tokens."""

from __future__ import annotations

import numpy as np

from bitttt_jax.data.tokenizers import Tokenizer


def encode_prompt(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Tokens `[T]` of a document that begins with `text`: the beginning-of-document token first."""
    return np.concatenate([np.array([tokenizer.bos_id], np.int32), tokenizer.encode(text)])
