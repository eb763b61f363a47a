"""Replies in OpenAI's form, whole and in chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bitttt_jax.server.sse import frame

if TYPE_CHECKING:
    from bitttt_jax.data.tokenizers import Tokenizer
    from bitttt_jax.inference.requests import Handle, Piece, TokenLogprobs


class Answer:
    """The reply to one request.

    Args:
      handle: the request.
      model: name of the model.
      tokenizer: the model's.
      is_chat: whether it is a message, or a text.
      wants_usage: whether a stream ends with the numbers of tokens.
    """

    def __init__(
        self, handle: Handle, model: str, tokenizer: Tokenizer, *, is_chat: bool, wants_usage: bool
    ):
        self._handle, self._tokenizer = handle, tokenizer
        self._is_chat, self._wants_usage = is_chat, wants_usage
        self._kind = "chat.completion" if is_chat else "text_completion"
        prefix = "chatcmpl" if is_chat else "cmpl"
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": f"{self._kind}.chunk" if is_chat else self._kind,
            "created": int(time.time()),
            "model": model,
        }
        self._characters = 0  # of the tokens so far
        self._begun = False

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The reply, once all of it is there."""
        text = "".join(piece.text for piece in pieces)
        message = {"role": "assistant", "content": text}
        choice = {
            "index": 0,
            **({"message": message} if self._is_chat else {"text": text}),
            "logprobs": self._logprobs(pieces),
            "finish_reason": pieces[-1].finish_reason,
        }
        return {**self._head, "object": self._kind, "choices": [choice], "usage": self._usage()}

    def chunks(self, piece: Piece) -> Iterator[str]:
        """The frames of a part."""
        if self._is_chat and not self._begun:
            yield self._chunk({"delta": {"role": "assistant", "content": ""}}, None, None)
        self._begun = True
        if piece.text or piece.tokens or not piece.finish_reason:
            content = {"delta": {"content": piece.text}} if self._is_chat else {"text": piece.text}
            yield self._chunk(content, self._logprobs([piece]), None)
        if piece.finish_reason:
            yield self._chunk({"delta": {}} if self._is_chat else {"text": ""}, None, piece)

    def last(self) -> Iterator[str]:
        """The frames after all parts."""
        if self._wants_usage:
            yield frame({**self._head, "choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _chunk(self, content: dict[str, Any], logprobs: Any, end: Piece | None) -> str:
        reason = end.finish_reason if end else None
        choice = {"index": 0, **content, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self._wants_usage else {}
        return frame({**self._head, "choices": [choice], **usage})

    def _usage(self) -> dict[str, Any]:
        prompt, reply = len(self._handle.prompt_T), len(self._handle.tokens)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": reply,
            "total_tokens": prompt + reply,
            "prompt_tokens_details": {"cached_tokens": self._handle.reused_tokens},
        }

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if self._handle.request.logprobs is None:
            return None
        tokens = [token for piece in pieces for token in piece.tokens]
        found = [logprobs for piece in pieces for logprobs in piece.logprobs]
        if self._is_chat:
            return {
                "content": [
                    self._entry(token, logprobs.logprob)
                    | {"top_logprobs": [self._entry(*top) for top in logprobs.top]}
                    for token, logprobs in zip(tokens, found, strict=True)
                ],
                "refusal": None,
            }
        return self._lists(tokens, found)

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token)
        return {"token": self._name(token), "logprob": logprob, "bytes": list(data)}

    def _lists(self, tokens: Sequence[int], found: Sequence[TokenLogprobs]) -> dict[str, Any]:
        names = [self._name(token) for token in tokens]
        offsets = []
        for name in names:
            offsets.append(self._characters)
            self._characters += len(name)
        return {
            "tokens": names,
            "token_logprobs": [logprobs.logprob for logprobs in found],
            "top_logprobs": [
                {self._name(token): logprob for token, logprob in logprobs.top}
                for logprobs in found
            ],
            "text_offset": offsets,
        }

    def _name(self, token: int) -> str:
        """A token's text; what isn't whole characters as OpenAI writes it: `bytes:\\xe3\\x81`."""
        data = self._tokenizer.token_bytes(token)
        try:
            return data.decode() or self._tokenizer.token(token) or ""
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
