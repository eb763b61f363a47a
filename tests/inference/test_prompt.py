from __future__ import annotations

import numpy as np
import pytest

from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError
from bitttt_jax.inference.prompt import encode_prompt


@pytest.mark.parametrize("text", ["", "def f", "naïve 日本語 <|endoftext|>"])
def test_a_prompt_begins_a_document(text: str):
    tokens_T = encode_prompt(Tokenizer.bytes(), text)
    assert tokens_T.dtype == np.int32
    assert tokens_T.tolist() == [256, *text.encode()]


def test_bytes_that_are_no_text():
    text = b"ab\xff".decode("utf-8", "surrogateescape")
    with pytest.raises(DataError, match="isn't valid UTF-8 at character 2"):
        encode_prompt(Tokenizer.bytes(), text)


def test_models_that_learned_without_a_first_token():
    tokenizer = Tokenizer(Tokenizer.bytes().text, adds_bos=False)
    assert encode_prompt(tokenizer, "ab").tolist() == [*b"ab"]
    assert encode_prompt(tokenizer, "").tolist() == [256]
