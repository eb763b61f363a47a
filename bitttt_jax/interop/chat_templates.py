"""The chat templates of other programs' models: where their files keep them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bitttt_jax.data.chat_templates import CHATML
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError
from bitttt_jax.interop import tokenizers

BITNET_2B4T = """\
{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize + ': ' \
+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"""
"""The published format of BitNet b1.58 2B4T; its generation prompt ends in a space."""

# Only the template in the first official GGUF files of 2B4T has this; the model wasn't taught it.
_WRONG_2B4T = "BITNETAssistant"


def from_gguf(metadata: Mapping[str, object], tokenizer: Tokenizer) -> str | None:
    """The chat template of a GGUF file; None where it isn't known.

    The wrong one of the official 2B4T file is replaced by the published format.

    Raises:
      DataError: it is no text.
    """
    text = metadata.get("tokenizer.chat_template")
    if text is None:
        is_bitnet = str(metadata.get("general.architecture")).startswith("bitnet-")
        return BITNET_2B4T if is_bitnet else default(tokenizer)
    if not isinstance(text, str):
        raise DataError("tokenizer.chat_template is no text", f"but {type(text).__name__}")
    return BITNET_2B4T if _WRONG_2B4T in text else text


def from_folder(folder: Path, tokenizer: Tokenizer) -> str | None:
    """The chat template of a Hugging Face folder; None where it isn't known.

    Of several named ones it is `default`.

    Raises:
      DataError: a file can't be read, or holds something else.
    """
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        try:
            return tokenizers.read_bytes(own_file).decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{own_file} is no chat template", f"not UTF-8: {error}") from None
    path = folder / "tokenizer_config.json"
    found = tokenizers.read_config(path).get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default", next(iter(named.values()), None))
    if found is not None and not isinstance(found, str):
        raise DataError(f"{path}: chat_template is no text", f"but {type(found).__name__}")
    return default(tokenizer) if found is None else found


def default(tokenizer: Tokenizer) -> str | None:
    """The template that a vocabulary speaks for: ChatML's, or none."""
    return CHATML if tokenizer.token_id("<|im_start|>") is not None else None
