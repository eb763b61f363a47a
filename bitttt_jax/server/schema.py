"""What may be asked: the bodies of requests."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

# Each takes time at every token.
_MOST_STOPS = 16
_MOST_STOP_CHARS = 256

Stop = Annotated[str, Field(min_length=1, max_length=_MOST_STOP_CHARS)]
Stops = Annotated[list[Stop], Field(max_length=_MOST_STOPS)]


class Body(pydantic.BaseModel):
    """A JSON object; fields that aren't known are ignored, as OpenAI's clients send many."""

    model_config = pydantic.ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """What a streamed answer has besides its text."""

    include_usage: bool | None = None


class Sampling(Body):
    """How tokens are chosen."""

    temperature: float | None = Field(None, ge=0, le=100)
    """Divides the logits; 0 always takes the likeliest token."""
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    """Only the k likeliest tokens are possible; 0 or -1 for all."""
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)

    def values(self) -> dict[str, Any]:
        """Those of `SamplingConfig`; what wasn't given is as OpenAI's server has it."""
        return {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": max(self.top_k or 0, 0),
            "min_p": self.min_p or 0.0,
            "repetition_penalty": self.repetition_penalty or 1.0,
        }

    def seed_or_any(self) -> int:
        """The seed, or another one each time."""
        return secrets.randbits(32) if self.seed is None else self.seed % 2**32


class Generation(Sampling):
    """What completions and chats have in common."""

    model: str | None = None
    """Name of the model; the one that there is if it isn't given."""
    stop: Stop | Stops | None = None
    """Texts before which the reply ends."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    """Only 1."""
    presence_penalty: float | None = None
    """Only 0."""
    frequency_penalty: float | None = None
    """Only 0."""
    logit_bias: dict[str, float] | None = None
    """Only an empty one."""

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts before which the reply ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


Token = Annotated[int, Field(ge=0, lt=2**31)]


class CompletionBody(Generation):
    """`POST /v1/completions`."""

    prompt: str | list[Token] | list[str] | list[list[Token]] = ""
    """Text or tokens that a document begins with; a list has one of them."""
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    """Only false."""
    best_of: int | None = None
    """Only 1."""
    suffix: str | None = None
    """Only none."""


class TextPart(Body):
    """Text of a message in parts."""

    type: Literal["text"]
    text: str


class Message(Body):
    """What one side said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The message's text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ResponseFormat(Body):
    """The form of the reply."""

    type: str


class ChatBody(Generation):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Any] | None = None
    """Only none."""
    functions: list[Any] | None = None
    """Only none."""
    response_format: ResponseFormat | None = None
    """Only `text`."""


# --- the playground ---------------------------------------------------------------------------


class NewStream(Body):
    """`POST /bitttt/streams`."""

    mode: Literal["chat", "completion"] = "completion"
    system: str = ""
    learn: bool = True


class Write(Sampling):
    """`POST /bitttt/streams/ID/write`."""

    text: str = ""
    max_tokens: int = Field(256, ge=1, lt=2**31)
    stop: Stops = []


class Text(Body):
    """`POST /bitttt/streams/ID/read` and `…/system`."""

    text: str


class Learn(Body):
    """`POST /bitttt/streams/ID/learn`."""

    on: bool
