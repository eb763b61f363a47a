"""A conversation: turns, how they become tokens, and a file that keeps them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pydantic

from bitttt_jax.data.chat_templates import ChatTemplate
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError
from bitttt_jax.inference.prompt import encode_prompt
from bitttt_jax.runs.files import write_atomically

_MOST_BYTES = 100_000_000


class Turn(pydantic.BaseModel, extra="forbid"):
    """What one side said."""

    role: Literal["user", "assistant"]
    content: str


class SavedConversation(pydantic.BaseModel, extra="forbid"):
    """The file of a conversation."""

    format: Literal["bitttt-chat"] = "bitttt-chat"
    version: Literal[1] = 1
    model: str
    """What answered; another model may go on."""
    system: str
    turns: list[Turn]
    tokens: list[Annotated[int, pydantic.Field(ge=0, lt=2**31)]] | None = None
    """What the model has read and written, where a memory of it was saved too."""


@dataclasses.dataclass
class Conversation:
    """Turns and their format.

    A model without a chat template was taught no conversations: for it, they are one document that
    both sides write, one after the other.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    system: str = ""
    """Instructions that stand before all turns."""
    turns: list[Turn] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, tokenizer: Tokenizer, chat_template: str | None, system: str = "") -> Conversation:
        """An empty conversation.

        Args:
          tokenizer: the model's.
          chat_template: the model's; None for one document.
          system: instructions that stand before all turns.
        """
        return cls(
            tokenizer, None if chat_template is None else ChatTemplate(chat_template), system
        )

    def tokens(self) -> np.ndarray:
        """Tokens `[T]` of everything so far, ending where the next reply begins.

        Raises:
          DataError: the template refuses the conversation, or a turn isn't Unicode.
        """
        if self.template is None:
            start = [f"{self.system}\n\n"] if self.system else []
            text = "".join([*start, *(turn.content for turn in self.turns)])
            return encode_prompt(self.tokenizer, text)
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *(turn.model_dump() for turn in self.turns)]
        return self.template.encode(self.tokenizer, messages)

    def after_reply(self) -> np.ndarray | None:
        """Tokens between the model's latest reply and its next one.

        A reply's text can be encoded as other tokens than those that the model wrote. These and
        the ones returned here continue what it has read, where the whole would begin anew.

        Returns:
          The tokens; None if the latest turns aren't a reply and a message, or if the template
          writes what stands before the reply in another way once there is a reply.
        """
        if [turn.role for turn in self.turns[-2:]] != ["assistant", "user"]:
            return None
        if self.template is None:
            return self.tokenizer.encode(self.turns[-1].content)
        empty = Turn(role="assistant", content="")
        turns = [*self.turns[:-2], empty, self.turns[-1]]
        before = dataclasses.replace(self, turns=self.turns[:-2]).tokens()
        tokens = dataclasses.replace(self, turns=turns).tokens()
        begins_so = np.array_equal(tokens[: len(before)], before)
        return tokens[len(before) :] if begins_so else None

    def add(self, role: Literal["user", "assistant"], content: str) -> None:
        """Adds a turn."""
        self.turns.append(Turn(role=role, content=content))

    def trim(self, limit: int | None) -> tuple[np.ndarray, int]:
        """Forgets the oldest turns, in pairs, until the rest fits.

        Args:
          limit: most tokens; None for any number.

        Returns:
          The tokens that are left, and how many turns were forgotten.

        Raises:
          DataError: the last turn alone is too long; then nothing is forgotten.
        """
        turns = list(self.turns)
        while True:
            tokens = dataclasses.replace(self, turns=turns).tokens()
            if limit is None or len(tokens) <= limit:
                break
            if len(turns) <= 2:
                raise DataError(
                    f"the message has {len(tokens)} tokens, and {limit} fit before a reply",
                    fix="a shorter one, or a smaller --max_tokens",
                )
            turns = turns[2:]
        forgotten, self.turns = len(self.turns) - len(turns), turns
        return tokens, forgotten

    def save(self, path: Path, model: str, tokens: list[int] | None = None) -> None:
        """Writes the conversation to a file.

        Args:
          path: the file, replaced as a whole.
          model: what answered.
          tokens: what the model has read and written, where that is to be continued.

        Raises:
          DataError: it can't be written.
        """
        saved = SavedConversation(model=model, system=self.system, turns=self.turns, tokens=tokens)
        try:
            write_atomically(path, saved.model_dump_json(exclude_none=True) + "\n")
        except (OSError, ValueError) as error:  # ValueError: half a surrogate pair, from a pipe
            raise DataError(f"{path} can't be written", str(error)) from None

    def load(self, path: Path) -> SavedConversation:
        """Takes over the turns of a file.

        Raises:
          DataError: it can't be read, or holds no conversation; then nothing changes.
        """
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise DataError(f"{path} has more than {_MOST_BYTES} bytes")
            saved = SavedConversation.model_validate_json(path.read_bytes())
        except OSError as error:
            raise DataError(f"{path} can't be read", error.strerror or str(error)) from None
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(f"{path} isn't a saved chat", f"{where}: {first['msg']}") from None
        self.system, self.turns = saved.system, saved.turns
        return saved
