"""From documents to the tokens that shards keep, and which of their predictions count."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from bitttt_jax.data.chat_templates import ChatTemplate, predictions
from bitttt_jax.data.documents import Document, UnusableDocumentError
from bitttt_jax.data.shards import Counted
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError


class Encoded(NamedTuple):
    """A document as `ShardWriter.add` takes it."""

    tokens_T: np.ndarray
    """Its tokens, the first one the bos where the tokenizer adds it."""
    text_bytes: int
    """UTF-8 bytes of its text."""
    counted: Counted | None
    """Which predictions count; None for all, as in a text."""


class Encoder:
    """Encodes texts and conversations.

    Args:
      tokenizer: makes the tokens.
      template: makes text of conversations; None where there are none.
      on_error: `fail` raises at the first conversation that it can't write, `skip` leaves it out.
      skipped: counts what is left out, by reason.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        on_error: Literal["fail", "skip"],
        skipped: collections.Counter[str],
    ):
        self._tokenizer, self._template = tokenizer, template
        self._on_error, self.skipped = on_error, skipped
        self._start = [tokenizer.bos_id] if tokenizer.adds_bos else []

    def encode(self, documents: Sequence[Document]) -> Iterator[Encoded | None]:
        """Encodes documents, in their order; None stands for one that is left out.

        Raises:
          UnusableDocumentError: with on_error=fail.
        """
        texts = iter(self._tokenizer.encode_batch([d.text for d in documents if not d.messages]))
        for document in documents:
            try:
                yield (
                    self._chat(document) if document.messages else self._text(document, next(texts))
                )
            except UnusableDocumentError as error:
                if self._on_error == "fail":
                    raise
                self.skipped[error.reason] += 1
                yield None

    def _text(self, document: Document, tokens_T: np.ndarray) -> Encoded:
        tokens_T = np.concatenate([np.array(self._start, np.int32), tokens_T])
        if not len(tokens_T):
            raise UnusableDocumentError(
                document.origin, "no tokens", "the tokenizer drops its text"
            )
        return Encoded(tokens_T, len(document.text.encode()), None)

    def _chat(self, document: Document) -> Encoded:
        assert self._template is not None
        try:
            tokens_T, learned_T = self._template.encode_learned(self._tokenizer, document.messages)
        except DataError as error:
            reason = "a conversation that the chat template can't write"
            raise UnusableDocumentError(
                document.origin, reason, f"{error.what}: {error.why or error.fix}"
            ) from None
        mask_T = predictions(self._tokenizer, tokens_T, learned_T)
        if not mask_T.any():
            why = "the chat template leaves replies out"
            raise UnusableDocumentError(document.origin, "nothing to learn", why)
        return Encoded(
            tokens_T,
            self._text_bytes(tokens_T),
            Counted(mask_T, self._text_bytes(tokens_T[1:][mask_T[:-1]])),
        )

    def _text_bytes(self, tokens_T: np.ndarray) -> int:
        return len(self._tokenizer.decode(tokens_T).encode())
