"""A conversation that a model carries on: each turn goes on in the state of those before."""

from __future__ import annotations

import dataclasses

import numpy as np

from bitttt_jax.config import ModelConfig
from bitttt_jax.inference.conversation import Conversation, Turn
from bitttt_jax.inference.prefixes import common_prefix
from bitttt_jax.inference.requests import Handle


@dataclasses.dataclass
class Dialogue:
    """Turns of a user and a model, and the tokens in which the model has read and written them.

    A reply's text can be encoded as other tokens than those that the model wrote, and then all of
    it would have to be read again. So what was read and written goes on as it is, wherever it can.
    """

    conversation: Conversation
    config: ModelConfig
    """The model's."""
    context: int | None
    """Most tokens of the conversation and the next reply; None for no limit."""
    keeps_learning: bool
    """Whether fast weights go on from turn to turn."""
    stream: list[int] | None = None
    """What the model has read and written so far, where the next turn can go on from it."""

    def __post_init__(self) -> None:
        self._before = list(self.conversation.turns)

    def ask(self, text: str, max_tokens: int) -> tuple[np.ndarray, int]:
        """Takes the user's turn, which goes on with what was said since the latest reply.

        Args:
          text: what the user says.
          max_tokens: most tokens of the reply.

        Returns:
          The tokens `[T]` after which the reply begins, and how many of the oldest turns were
          forgotten because there was no room for them.

        Raises:
          DataError: the turn is too long, or the template refuses it; then it wasn't taken.
        """
        before = list(self.conversation.turns)
        self.add(text)
        try:
            tokens, forgotten = self.conversation.trim(self.limit(max_tokens))
            if not forgotten:
                tokens = self._continued(tokens, max_tokens)
        except BaseException:
            self.conversation.turns = before
            raise
        self._before = before
        return tokens, forgotten

    def retract(self) -> None:
        """Takes the latest turn of the user back, to which there is no reply."""
        self.conversation.turns = self._before

    def add(self, text: str) -> None:
        """Adds to what the user has said since the latest reply."""
        conversation, turns = self.conversation, self.conversation.turns
        if turns and turns[-1].role == "user":
            between = "" if conversation.template is None else "\n\n"
            turns, text = turns[:-1], f"{turns[-1].content}{between}{text}"
        conversation.turns = [*turns, Turn(role="user", content=text)]

    def certain(self) -> np.ndarray:
        """Tokens `[T]` of all that was said, without those that more words of the user can change.

        Raises:
          DataError: the template refuses the conversation.
        """
        turns = self.conversation.turns
        now = self._continued(self.conversation.tokens(), 0)
        try:
            self.add("\n.")
            later = self._continued(self.conversation.tokens(), 0)
        finally:
            self.conversation.turns = turns
        return now[: common_prefix(now, later)]

    def end(self, handle: Handle, text: str) -> None:
        """Takes the reply, however it ended.

        Args:
          handle: the request.
          text: of the reply.
        """
        self.conversation.add("assistant", text)
        # After a stop string the model has written more than its turn has.
        is_whole = handle.finish_reason != "stop" or len(handle.chosen) > len(handle.tokens)
        written = [*map(int, handle.prompt_T), *handle.tokens]
        self.stream = written if is_whole and not handle.has_read_beyond_its_end else None

    def limit(self, max_tokens: int) -> int | None:
        """Most tokens of a prompt before a reply of `max_tokens`; None for any number."""
        # Without attention to everything the state's size doesn't grow with what was read.
        grows = "attention" in self.config.mixers and not self.config.window
        if self.context is None or (self.keeps_learning and not grows):
            return None
        return self.context - max_tokens

    def _continued(self, tokens: np.ndarray, max_tokens: int) -> np.ndarray:
        """The same conversation with the model's replies in the tokens in which it wrote them."""
        after = self.conversation.after_reply()
        if not self.keeps_learning or self.stream is None or after is None:
            return tokens
        stream = np.concatenate([np.array(self.stream, np.int32), after])
        limit = self.limit(max_tokens)
        return stream if limit is None or len(stream) <= limit else tokens
