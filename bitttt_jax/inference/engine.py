"""The generation engine: requests join and leave a batch of rows while it runs."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax.config import ModelConfig
from bitttt_jax.errors import ConfigError
from bitttt_jax.inference import memory, row_state, steps
from bitttt_jax.inference.prefixes import SavedState, SavedStates
from bitttt_jax.inference.requests import Handle, Request, TokenLogprobs
from bitttt_jax.inference.sampling import RowSampling, SamplingConfig
from bitttt_jax.inference.steps import Rows, Written
from bitttt_jax.layers.attention import CacheType
from bitttt_jax.models.transformer import ModelState

if TYPE_CHECKING:
    from bitttt_jax.inference.model import Model

Overflow = Literal["refuse", "truncate", "slide"]
_MAX_TOKENS = 2**31 - steps.CACHE_STEP  # positions and cache slots are 32-bit


@dataclasses.dataclass
class _Reading:
    """Prompts that are being read together; a row that is done waits in its place."""

    handles: list[Handle]
    state: ModelState
    done: list[int]
    """Tokens that each has read; all but the prompt's last one are read here."""

    def left(self, row: int) -> int:
        return len(self.handles[row].prompt_T) - 1 - self.done[row]


@dataclasses.dataclass
class _Batch:
    """Rows that write."""

    handles: list[Handle | None]
    """What each row works on; None for a free one."""
    state: ModelState
    seen_BV: jax.Array
    token_B: np.ndarray
    """The latest token of each row, which hasn't been read."""
    left_B: np.ndarray
    """How many tokens each may still choose."""
    rows: Rows

    @property
    def running(self) -> list[int]:
        return [row for row, handle in enumerate(self.handles) if handle]


class Engine:
    """Runs requests together: `submit` them, then `step` until all are done.

    A request's tokens depend on nothing but the request: the draws follow its own seed, and rows
    don't mix. What remains is the rounding of float sums, which differs between shapes of a batch
    and can decide between two tokens that are almost as likely.

    Not for several threads at once, but `submit` and `Handle.cancel` may be called from others
    while one steps.

    Args:
      model: the model.
      slots: most rows that write together; further requests wait.
      context: most tokens of a sequence; None for the model's own bound.
      cache: what attention caches hold; None for the type of the activations. `int8` halves them,
        at an error of about 1 % in each key and value.
      overflow: what happens to a request that doesn't fit the context. `refuse`: `submit` raises.
        `truncate`: the oldest tokens of the prompt but the first are dropped until the reply fits,
        or half of the context is left for it; the reply ends with the context. `slide`: attention
        sees the latest `context` tokens only, as with a sliding window, and nothing ends; the model
        wasn't trained to lose a text's beginning, so quality may suffer. Attention with a window of
        its own within the context, and TTT, which keeps no tokens, have no bound and never
        overflow.
      reuse_bytes: of states that are kept for prompts which begin with tokens that another request
        has read; 0 keeps none.
    """

    def __init__(
        self,
        model: Model,
        *,
        slots: int = 1,
        context: int | None = None,
        cache: CacheType | None = None,
        overflow: Overflow = "refuse",
        reuse_bytes: int = 2**30,
    ):
        if slots < 1:
            raise ConfigError(f"slots must be at least 1, got {slots}")
        if context is not None and context < 2:
            raise ConfigError(f"context must be at least 2, got {context}")
        self._model, self._slots, self._cache, self._overflow = model, slots, cache, overflow
        self._config, self._limit = _bounded(model, context, overflow)
        self._waiting: collections.deque[Handle] = collections.deque()
        self._reading: _Reading | None = None
        self._batch: _Batch | None = None
        self._saved = SavedStates(self._config, reuse_bytes)
        self._count = 1

    def submit(self, request: Request) -> Handle:
        """Takes a request, which begins as soon as a row is free.

        Raises:
          ConfigError: an empty prompt, one with a token that the model doesn't know, or one that
            doesn't fit.
        """
        prompt_T = np.array(request.tokens, np.int32)
        self._check(prompt_T)
        prompt_T, max_tokens = self._fit(prompt_T, request.max_tokens)
        handle = Handle(request, prompt_T, max_tokens, self._model.tokenizer, self.step)
        self._waiting.append(handle)
        return handle

    def step(self) -> bool:
        """Reads at most one call's worth of prompts, and writes some tokens of every running row.

        An error ends the requests that it struck, and is raised by their handles.

        Returns:
          Whether there is more to do.
        """
        try:
            self._drop_cancelled()
            self._admit()
            if self._reading:
                self._read()
            if self._batch:
                self._write()
        except BaseException:  # Ctrl-C: the arrays may be gone
            self._abandon(ConfigError("the request was interrupted"))
            raise
        return bool(self._waiting or self._reading or self._batch)

    def run(self, requests: Iterable[Request]) -> list[Handle]:
        """Submits requests and runs them all."""
        handles = [self.submit(request) for request in requests]
        while self.step():
            pass
        return handles

    # --- memory ------------------------------------------------------------------------------

    def save(self, path: Path, token_T: np.ndarray) -> int:
        """Saves what the model keeps of some tokens: caches, fast weights, position.

        Args:
          path: a safetensors file, replaced as a whole.
          token_T: what it has read, as in the latest request and its reply.

        Returns:
          How many of them the memory holds: those that the longest kept state has read.

        Raises:
          ConfigError: no kept state has read the beginning of these tokens.
          DataError: the file can't be written.
        """
        found = self._saved.find(np.append(token_T, -1))
        if not found:
            raise ConfigError("there is nothing to save: no request has read these tokens")
        state = self._rewound(*found)
        memory.save(path, self._model, self._config, SavedState(token_T[: found[1]], state))
        return found[1]

    def load(self, path: Path) -> np.ndarray:
        """Takes up a saved memory: prompts that begin with its tokens go on from there.

        Returns:
          The tokens `[T]` that it has read.

        Raises:
          DataError: no such file, a damaged one, or the memory of another model.
        """
        saved = memory.load(path, self._model, self._config, self._cache)
        self._saved.add(saved)
        return saved.token_T

    # --- requests come and go ----------------------------------------------------------------

    def _check(self, prompt_T: np.ndarray) -> None:
        known = self._model.tokenizer.vocab_size
        if prompt_T.ndim != 1 or len(prompt_T) == 0:
            raise ConfigError(
                "the prompt has no tokens", fix="start it with the tokenizer's bos token"
            )
        unknown = prompt_T[(prompt_T < 0) | (prompt_T >= known)]
        if len(unknown):
            raise ConfigError(
                f"the prompt has token {unknown[0]}, and the tokenizer has {known} tokens",
                "the prompt was encoded with another tokenizer",
            )

    def _fit(self, prompt_T: np.ndarray, max_tokens: int) -> tuple[np.ndarray, int]:
        """The prompt and the tokens of its continuation as they fit the context."""
        total, limit = len(prompt_T) + max_tokens, self._limit
        if total > _MAX_TOKENS:
            raise ConfigError(f"a prompt and its continuation have at most {_MAX_TOKENS} tokens")
        if limit is None or total <= limit:
            return prompt_T, max_tokens
        if self._overflow == "refuse":
            raise ConfigError(
                f"a prompt of {len(prompt_T)} tokens and {max_tokens} more don't fit the context",
                f"it has {limit} tokens",
                "a shorter prompt, a smaller max_tokens, or overflow=truncate or slide",
            )
        most = max(limit - max_tokens, limit // 2)
        if len(prompt_T) > most:
            latest_T = prompt_T[len(prompt_T) - (most - 1) :]
            prompt_T = np.concatenate([prompt_T[:1], latest_T])
        return prompt_T, min(max_tokens, limit - len(prompt_T))

    def _drop_cancelled(self) -> None:
        for handle in [handle for handle in self._waiting if handle.is_cancelled]:
            self._waiting.remove(handle)
            handle.finish("cancelled")
        if self._batch:
            for row in self._batch.running:
                handle = self._batch.handles[row]
                if handle and handle.is_cancelled:
                    handle.finish("cancelled")
                    self._leave(row)
            self._shrink()

    def _admit(self) -> None:
        """Begins to read the prompts for which there are free rows."""
        free = self._slots - (len(self._batch.running) if self._batch else 0)
        if self._reading or not self._waiting or not free:
            return
        handles = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        try:
            self._reading = self._begin(handles)
        except Exception as error:  # too little memory for them: others go on
            for handle in handles:
                handle.fail(error)

    def _begin(self, handles: list[Handle]) -> _Reading:
        now = time.perf_counter()
        slots = self._bucket(max(len(h.prompt_T) + h.max_tokens for h in handles))
        if self._batch:
            slots = max(slots, row_state.num_slots(self._batch.state))
        rows = _power_of_two(len(handles))
        state = steps.start(self._config, self._model.params, rows, slots, self._cache)
        reading = _Reading(handles, state, [0] * len(handles))
        for row, handle in enumerate(handles):
            handle.times.started = now
            if found := self._find(handle.prompt_T):
                saved, length = found
                own = row_state.with_slots(self._rewound(saved, length), slots)
                reading.state = row_state.put_row(reading.state, row, own, 0)
                reading.done[row] = handle.reused_tokens = length
        return reading

    def _find(self, prompt_T: np.ndarray) -> tuple[SavedState, int] | None:
        """The kept state or running row that spares a prompt most tokens."""
        best = self._saved.find(prompt_T)
        if self._batch:
            for row in self._batch.running:
                saved = SavedState(self._read_tokens(row), self._batch.state)
                length = saved.usable_tokens(self._config, prompt_T)
                if length > (best[1] if best else 0):
                    best = dataclasses.replace(saved, state=row_state.take_row(saved.state, row)), length
        # A call reads some tokens as fast as it copies a state.
        return best if best and best[1] >= steps.LEAST_TOKENS else None

    def _rewound(self, saved: SavedState, length: int) -> ModelState:
        own = row_state.take_row(saved.state, 0)
        return own if length == len(saved.token_T) else row_state.rewind(own, length)

    def _bucket(self, length: int) -> int:
        """Cache slots for sequences of some tokens: few sizes are compiled."""
        if "attention" not in self._config.mixers:
            return steps.CACHE_STEP
        most = steps.cache_slots(self._config, self._limit or _MAX_TOKENS)
        return min(_power_of_two(steps.cache_slots(self._config, length)), most)

    # --- reading -----------------------------------------------------------------------------

    def _read(self) -> None:
        """Reads the next part of the prompts; those that are done begin to write."""
        reading = self._reading
        assert reading
        rows = reading.state.position_B.shape[0]
        most = max(steps.PREFILL_TOKENS // rows, steps.LEAST_TOKENS)
        lengths = [
            0 if handle.is_done else min(reading.left(row), most)
            for row, handle in enumerate(reading.handles)
        ]
        try:
            if any(lengths):
                length_B = np.zeros(rows, np.int32)
                length_B[: len(lengths)] = lengths
                token_BT = np.zeros((rows, steps.padded_length(max(lengths))), np.int32)
                for row, length in enumerate(lengths):
                    first = reading.done[row]
                    token_BT[row, :length] = reading.handles[row].prompt_T[first : first + length]
                    reading.done[row] += length
                reading.state = steps.read_tokens(
                    self._config, self._model.params, reading.state, token_BT, length_B
                )
            self._join_those_done(reading)
        except Exception as error:
            for handle in reading.handles:
                if not handle.is_done and handle not in (self._batch.handles if self._batch else ()):
                    handle.fail(error)
            self._reading = None

    def _join_those_done(self, reading: _Reading) -> None:
        for handle in reading.handles:
            if handle.is_cancelled and not handle.is_done:
                handle.finish("cancelled")
        raise NotImplementedError
