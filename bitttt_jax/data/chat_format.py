"""Which chat template the conversations of a configuration are written in."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from bitttt_jax.config import DataConfig
from bitttt_jax.data.chat_templates import CHATML, ROLES, SHIPPED, ChatTemplate
from bitttt_jax.data.files import MissingSourceError
from bitttt_jax.data.manifest import Manifest
from bitttt_jax.data.sources import Source
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import ConfigError, DataError, did_you_mean

CHAT_TEMPLATE_FILE = "chat_template.jinja"
"""Name of the template's file in a run directory."""


def named(name: str) -> ChatTemplate:
    """The template that `data.chat_template` names.

    Raises:
      ConfigError: it is neither one of ours nor a file of text.
    """
    if name in SHIPPED:
        return ChatTemplate(SHIPPED[name])
    try:
        return ChatTemplate(Path(name).expanduser().read_text("utf-8"))
    except OSError as error:
        why = f"ours are {', '.join(SHIPPED)}; as a file: {error.strerror}"
        what = f"there is no chat template {name!r}{did_you_mean(name, SHIPPED)}"
        raise ConfigError(what, why, "one of ours, or a file of Jinja") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is no chat template", f"not UTF-8: {error}") from None


def choose(
    config: DataConfig, sources: Sequence[Source], prepared: Mapping[int, Manifest]
) -> ChatTemplate | None:
    """The template as far as it doesn't depend on a tokenizer that is given.

    That of the configuration, else that of prepared sources, else our own where there are
    conversations and the tokenizer is made here.

    Raises:
      ConfigError: there is no such template.
      DataError: prepared sources have others.
    """
    chosen = named(config.chat_template) if config.chat_template else None
    for index, manifest in prepared.items():
        if manifest.chat_template is None:
            continue
        found = ChatTemplate(manifest.chat_template)
        if chosen not in (None, found):
            other = config.chat_template and f"data.chat_template={config.chat_template}"
            raise DataError(
                f"{sources[index].root} was prepared with another chat template",
                f"than {other or 'the prepared source before it'}",
                "preparing the same text with one",
            )
        chosen = found
    makes_tokenizer = config.tokenizer.kind != "file" and not prepared
    if chosen is None and makes_tokenizer and any(s.has_conversations for s in sources):
        return ChatTemplate(ROLES)
    return chosen


def ahead(config: DataConfig) -> ChatTemplate | None:
    """The template, as far as it is known where sources may not be there yet."""
    if config.chat_template:
        return named(config.chat_template)
    with contextlib.suppress(MissingSourceError):
        return choose(config, [Source.find(source) for source in config.sources], {})
    return None


def require(tokenizer: Tokenizer, template: ChatTemplate | None) -> ChatTemplate:
    """The template for conversations, where the tokenizer is given.

    Args:
      tokenizer: whose tokens the template needs.
      template: the chosen one, if one was; else it is known by the tokenizer's tokens.

    Raises:
      DataError: the tokenizer lacks the template's special tokens.
    """
    if template is None:
        for text in (CHATML, ROLES):
            if not _missing(tokenizer, ChatTemplate(text)):
                return ChatTemplate(text)
        raise DataError(
            "the tokenizer has no special tokens for conversations",
            f"neither {' '.join(ChatTemplate(ROLES).special_names)} nor those of ChatML",
            "data.chat_template=FILE with a template that it was made for, or adding such tokens",
        )
    missing = _missing(tokenizer, template)
    if missing:
        raise DataError(
            f"the tokenizer has no token {' '.join(missing)}",
            "which the chat template writes",
            "another data.chat_template, or preparing the data from its text with this one",
        )
    return template


def _missing(tokenizer: Tokenizer, template: ChatTemplate) -> list[str]:
    return [name for name in template.special_names if tokenizer.token_id(name) is None]
