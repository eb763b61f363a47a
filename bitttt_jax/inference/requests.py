"""What is asked of a model, and what comes back."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from bitttt_jax.data.tokenizers import Decoder, Tokenizer
from bitttt_jax.errors import ConfigError
from bitttt_jax.inference.sampling import SamplingConfig
from bitttt_jax.inference.steps import TOP_LOGPROBS
from bitttt_jax.inference.stop_strings import StopStrings

FinishReason = Literal["stop", "length", "cancelled"]
"""`stop`: a stop token or stop string; `length`: as many tokens as were asked for, or as fit."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt and how to continue it."""

    tokens: Sequence[int] | np.ndarray
    """At least one (a document's first token is the tokenizer's bos)."""
    max_tokens: int = 128
    """Most tokens to generate."""
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0
    """The draws depend on it and the tokens' positions only."""
    stop: tuple[str, ...] = ()
    """Strings before which the text ends."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the text; they aren't part of it."""
    logprobs: int | None = None
    """Log-probabilities of each token, and of so many of the likeliest ones; None for neither."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be in [0, 2**32), got {self.seed}")
        if "" in self.stop:
            raise ConfigError("a stop string is empty")
        if self.logprobs is not None and not 0 <= self.logprobs <= TOP_LOGPROBS:
            raise ConfigError(f"logprobs must be in [0, {TOP_LOGPROBS}], got {self.logprobs}")


@dataclasses.dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of probabilities, before penalties, temperature and filters."""

    logprob: float
    """Of the token that was chosen."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and theirs, the likeliest first."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """The next part of a reply."""

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of each of the tokens, where asked for."""
    finish_reason: FinishReason | None = None
    """Why the reply ends with this piece."""


@dataclasses.dataclass
class Times:
    """When a request went how far, in seconds of `time.perf_counter`; 0 for not yet."""

    submitted: float
    started: float = 0.0
    """Its prompt began to be read."""
    first: float = 0.0
    """Its first tokens were there."""
    finished: float = 0.0


@dataclasses.dataclass(frozen=True)
class Completion:
    """A whole reply."""

    text: str
    tokens: tuple[int, ...]
    """Without the stop token; where a stop string ended the text, the tokens that it is in too."""
    logprobs: tuple[TokenLogprobs, ...]
    """Of each token, where asked for."""
    finish_reason: FinishReason
    prompt_tokens: int
    reused_tokens: int
    """Tokens at the prompt's beginning that an earlier request had read already."""
    dropped_tokens: int
    """Tokens of the prompt that were cut to make it fit."""
    times: Times


class Handle:
    """A submitted request: an iterator of `Piece`, which runs the engine while it waits.

    Args:
      request: what was asked.
      prompt_T: the prompt's tokens that are read.
      max_tokens: most tokens that fit.
      tokenizer: the model's.
      step: runs the engine; whether there is more to do.
    """

    def __init__(
        self,
        request: Request,
        prompt_T: np.ndarray,
        max_tokens: int,
        tokenizer: Tokenizer,
        step: Callable[[], bool],
    ):
        self.request, self.prompt_T, self.max_tokens = request, prompt_T, max_tokens
        self.dropped_tokens = len(request.tokens) - len(prompt_T)
        self.reused_tokens = 0
        self.read_tokens = 0
        """Of the prompt, so far; the last one is read by writing."""
        self.chosen: list[int] = []
        """All tokens that the model chose, those after the text's end included."""
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        """What ended the request instead."""
        self.is_cancelled = False
        self.times = Times(time.perf_counter())
        self._pieces: collections.deque[Piece] = collections.deque()
        self._all: list[Piece] = []
        self._decoder, self._stop = Decoder(tokenizer), StopStrings(request.stop)
        self._step = step

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come."""
        return self.finish_reason is not None or self.error is not None

    @property
    def read_T(self) -> np.ndarray:
        """What a row has read that works on this: all tokens but the latest."""
        return np.concatenate([self.prompt_T, np.array(self.chosen, np.int32)])[:-1]

    @property
    def has_read_beyond_its_end(self) -> bool:
        """Whether the model has read tokens after the text's end, which a stop string made."""
        return len(self.chosen) > len(self.tokens) + 1

    def cancel(self) -> None:
        """Ends the reply at the engine's next step; may be called from any thread."""
        self.is_cancelled = True

    def new_pieces(self) -> list[Piece]:
        """Those that came since the last call, without running the engine."""
        return [self._pieces.popleft() for _ in range(len(self._pieces))]

    def __iter__(self) -> Iterator[Piece]:
        while True:
            yield from self.new_pieces()
            if self.is_done and not self._pieces:
                break
            self._step()
        if self.error:
            raise self.error

    def result(self) -> Completion:
        """The whole reply; runs the engine until it is there.

        Raises:
          Exception: what ended the request instead.
        """
        while not self.is_done:
            self._step()
        if self.error:
            raise self.error
        assert self.finish_reason
        return Completion(
            "".join(piece.text for piece in self._all),
            tuple(self.tokens),
            tuple(logprobs for piece in self._all for logprobs in piece.logprobs),
            self.finish_reason,
            len(self.prompt_T),
            self.reused_tokens,
            self.dropped_tokens,
            self.times,
        )

    def take(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()) -> None:
        """Takes the next tokens that the model chose, and ends the reply where it ends."""
        self.times.first = self.times.first or time.perf_counter()
        self.chosen += tokens
        text, before = "", len(self.tokens)
        reason: FinishReason | None = None
        for token in tokens:
            if token in self.request.stop_ids:
                reason = "stop"
                break
            self.tokens.append(token)
            text += self._stop.push(self._decoder.push(token))
            if self._stop.found:
                reason = "stop"
                break
            if len(self.tokens) == self.max_tokens:
                reason = "length"
                break
        new = tuple(self.tokens[before:])
        self._put(Piece(text, new, tuple(logprobs[: len(new)])), reason)

    def finish(self, reason: FinishReason) -> None:
        """Ends the reply."""
        self._put(Piece(""), reason)

    def fail(self, error: Exception) -> None:
        """Ends the request with an error."""
        self.error, self.times.finished = error, time.perf_counter()

    def _put(self, piece: Piece, reason: FinishReason | None) -> None:
        if reason:
            text = piece.text + self._stop.push(self._decoder.flush()) + self._stop.flush()
            piece = dataclasses.replace(piece, text=text, finish_reason=reason)
            self.finish_reason, self.times.finished = reason, time.perf_counter()
        self._all.append(piece)
        self._pieces.append(piece)
