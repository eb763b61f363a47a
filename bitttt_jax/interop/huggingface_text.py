"""The tokenizer and the chat template beside a Hugging Face model."""

from __future__ import annotations

from pathlib import Path

from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError
from bitttt_jax.interop import fields

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
_MOST_TEMPLATE_BYTES = 1_000_000


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder.

    Raises:
      DataError: there is none, or it is damaged.
    """
    return Tokenizer.load(folder / TOKENIZER_FILE)


def read_chat_template(folder: Path) -> str | None:
    """The Jinja text of a folder's chat template: its own file's, or the tokenizer's.

    Raises:
      DataError: it can't be read.
    """
    path = folder / TEMPLATE_FILE
    if path.is_file():
        return _read_text(path)
    if not (folder / TOKENIZER_CONFIG_FILE).is_file():
        return None
    config = fields.read_json(folder / TOKENIZER_CONFIG_FILE)
    given = config.values.get("chat_template")
    if not isinstance(given, list):
        return config.text("chat_template") if given is not None else None
    # Several by name; `default` is the one for conversations.
    for item in given:
        if isinstance(item, dict) and item.get("name") == "default":
            return fields.Fields(config.path, item, "chat_template.").text("template")
    return None


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_TEMPLATE_BYTES:
            raise DataError(f"{path} is no chat template", "it is larger than a megabyte")
        return path.read_text("utf-8")
    except OSError as error:
        raise DataError(f"{path} can't be read", error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is no chat template", "it isn't UTF-8") from None
