"""What preparing would make of some documents, to be looked at before."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable
from typing import TypedDict

import numpy as np

from bitttt_jax.config import CleanConfig
from bitttt_jax.data import chat_format
from bitttt_jax.data.chat_templates import ChatTemplate, with_end_of_reply
from bitttt_jax.data.cleaning import Cleaner
from bitttt_jax.data.documents import Document
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError


class Segment(TypedDict):
    """A part of a conversation's text as a model reads it."""

    text: str
    """With the names of special tokens."""
    role: str
    """Who wrote it: `system`, `user`, `assistant`, or `template`."""
    learned: bool
    """Whether its tokens count for the loss."""


class MessagesPreview(TypedDict):
    """A conversation as a model reads it."""

    origin: str
    """Where it stands."""
    segments: list[Segment]
    """Its parts, in order; none where the template can't write it."""
    problem: str
    """Why it can't; empty where it can."""


class CleaningPreview(TypedDict):
    """What cleaning makes of a document."""

    origin: str
    """Where it stands."""
    before: str
    """Its text."""
    after: str
    """Its text as it goes on."""
    changes: list[str]
    """What was changed: `unicode`, `control`, `whitespace`."""
    removed: str
    """Why it is left out; empty if it isn't."""


def preview_messages(
    documents: Iterable[Document], template: str, tokenizer: Tokenizer | None = None
) -> list[MessagesPreview]:
    """Conversations as a model is to read them, and what of them it is to learn.

    Args:
      documents: as `Source.documents` reads them; those that are no conversations are left out.
      template: as `data.chat_template`, or the text of one.
      tokenizer: by default bytes with the template's special tokens.

    Raises:
      ConfigError: there is no such template.
      DataError: the template is wrong, or the tokenizer lacks its special tokens.
    """
    is_text = "{" in template or "\n" in template
    given = ChatTemplate(template) if is_text else None
    if given is None and (template or tokenizer is None):
        given = chat_format.named(template or "roles")
    if tokenizer is None:
        assert given is not None
        tokenizer = Tokenizer.bytes(given.special_names)
    chosen = chat_format.require(tokenizer, given)
    tokenizer = with_end_of_reply(tokenizer, chosen)
    return [_preview(document, chosen, tokenizer) for document in documents if document.messages]


def preview_cleaning(documents: Iterable[Document], config: CleanConfig) -> list[CleaningPreview]:
    """What cleaning makes of documents, those among them that are left out included."""
    cleaner = Cleaner(config)
    previews = []
    for document in documents:
        cleaned, result = cleaner(document)
        previews.append(
            CleaningPreview(
                origin=document.origin,
                before=document.text,
                after=cleaned.text,
                changes=list(result.changes),
                removed=result.removed,
            )
        )
    return previews


def _preview(document: Document, template: ChatTemplate, tokenizer: Tokenizer) -> MessagesPreview:
    try:
        ids, learned_T = template.encode_learned(tokenizer, document.messages)
    except DataError as error:
        problem = f"{error.what}: {error.why or error.fix}"
        return MessagesPreview(origin=document.origin, segments=[], problem=problem)
    roles = _roles(document, template, tokenizer, len(ids))
    segments = []
    tokens = zip(ids.tolist(), roles, learned_T.tolist(), strict=True)
    for (role, learned), group in itertools.groupby(tokens, lambda token: token[1:]):
        text = _spelled(tokenizer, [id_ for id_, _, _ in group])
        segments.append(Segment(text=text, role=role, learned=learned))
    return MessagesPreview(origin=document.origin, segments=segments, problem="")


def _roles(
    document: Document, template: ChatTemplate, tokenizer: Tokenizer, length: int
) -> list[str]:
    """Who wrote each token; `template` too where that changes what somebody says."""
    roles_T = np.full(length, "template", dtype=object)
    for role in {message["role"] for message in document.messages}:
        with contextlib.suppress(DataError):
            roles_T[template.spoken_by(tokenizer, document.messages, role)] = role
    return roles_T.tolist()


def _spelled(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Text of tokens, with the names of special ones."""
    special = set(tokenizer.only_added(np.array(ids)).tolist())
    parts = []
    for is_special, group in itertools.groupby(ids, lambda id_: id_ in special):
        if is_special:
            parts += [tokenizer.token(id_) or "" for id_ in group]
        else:
            parts.append(tokenizer.decode(list(group)))
    return "".join(parts)
