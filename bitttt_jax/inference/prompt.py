"""From a prompt's text to tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bitttt_jax.data.chat_templates import ChatTemplate
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError


def encode_prompt(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Tokens `[T]` of a document that begins with `text`.

    The beginning-of-document token stands first, unless the model was trained without it; it is
    there for an empty text always, so that there is something to go on from.

    Raises:
      DataError: the text has half a surrogate pair, as Python reads bytes that aren't UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the prompt isn't valid UTF-8 at character {error.start}") from None
    start = [tokenizer.bos_id] if tokenizer.adds_bos or not text else []
    return np.concatenate([np.array(start, np.int32), tokenizer.encode(text)])


def encode_messages(
    tokenizer: Tokenizer, chat_template: str, messages: Sequence[Mapping[str, str]]
) -> np.ndarray:
    """Tokens `[T]` of a conversation, ending where the next reply begins.

    Args:
      tokenizer: the model's.
      chat_template: the model's.
      messages: each with `role` (`system`, `user` or `assistant`) and `content`.

    Raises:
      DataError: the template refuses the messages, or one isn't Unicode.
    """
    return ChatTemplate(chat_template).encode(tokenizer, messages)
