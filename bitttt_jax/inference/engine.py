"""The generation engine: requests join and leave a batch of rows while it runs."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from bitttt_jax.config import ModelConfig
from bitttt_jax.errors import ConfigError
from bitttt_jax.inference import memory, row_state, steps
from bitttt_jax.inference.batch import Batch, log_probabilities, power_of_two
from bitttt_jax.inference.prefixes import SavedState, SavedStates
from bitttt_jax.inference.requests import Handle, Request
from bitttt_jax.layers.attention import CacheType
from bitttt_jax.models.transformer import ModelState

if TYPE_CHECKING:
    from bitttt_jax.inference.model import Model

Overflow = Literal["refuse", "truncate", "slide"]
_MAX_TOKENS = 2**31 - steps.CACHE_STEP  # positions and cache slots are 32-bit


@dataclasses.dataclass
class _Reading:
    """Prompts that are being read together."""

    handles: list[Handle | None]
    """What each row reads; None once it is done."""
    state: ModelState
    done: list[int]
    """Tokens that each has read."""

    def left(self, row: int) -> int:
        """Tokens that a row has yet to read here: the prompt's last one is read by writing."""
        handle = self.handles[row]
        return 0 if handle is None else len(handle.prompt_T) - 1 - self.done[row]


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
        self._batch: Batch | None = None
        self._saved, self._reuses = SavedStates(self._config, reuse_bytes), reuse_bytes > 0
        self._learns = any(mixer != "attention" for mixer in self._config.mixers)
        self._lock = threading.Lock()
        self._count = 1  # tokens of the next call

    @property
    def model(self) -> Model:
        """What it runs."""
        return self._model

    @property
    def config(self) -> ModelConfig:
        """The model's, with the window that it is run with."""
        return self._config

    @property
    def cache(self) -> CacheType | None:
        """What attention caches hold; None for the type of the activations."""
        return self._cache

    @property
    def limit(self) -> int | None:
        """Most tokens of a sequence; None for any number."""
        return self._limit

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
        with self._lock:
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
            self._read()
            self._write()
        except BaseException:  # Ctrl-C, as a rule: the arrays of a call that was running are gone
            for handle in self._at_work():
                handle.finish("cancelled")
            self._reading = self._batch = None
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
        found = self.find(token_T)
        if not found:
            raise ConfigError("there is nothing to save: no request has read these tokens")
        memory.save(path, self._model, self._config, found)
        return len(found.token_T)

    def load(self, path: Path) -> np.ndarray:
        """Takes up a saved memory: prompts that begin with its tokens go on from there.

        Returns:
          The tokens `[T]` that it has read.

        Raises:
          DataError: no such file, a damaged one, or the memory of another model.
        """
        saved = memory.load(path, self._model, self._config, self._cache)
        self.keep(saved)
        return saved.token_T

    def start(self, length: int, after: SavedState | None = None) -> SavedState:
        """The state of a sequence that somebody else reads (`Reader`), with room for it.

        Args:
          length: tokens of the sequence, as far as is known.
          after: what was read of it; None for nothing.
        """
        slots = self._bucket(length)
        if after is None:
            state = steps.start(self._config, self._model.params, 1, slots, self._cache)
            return SavedState(np.zeros(0, np.int32), state)
        slots = max(slots, row_state.num_slots(after.state))
        return SavedState(after.token_T, row_state.with_slots(after.state, slots))

    def find(self, token_T: np.ndarray) -> SavedState | None:
        """The kept state that has read most of some tokens, if any."""
        return self._saved.find(np.append(token_T, -1))

    def keep(self, saved: SavedState) -> None:
        """Keeps a state, from which prompts that begin with its tokens can start."""
        self._saved.add(saved)

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

    def _at_work(self) -> list[Handle]:
        """All requests that are being read or written."""
        reading = self._reading.handles if self._reading else []
        writing = self._batch.handles if self._batch else []
        return [handle for handle in (*reading, *writing) if handle]

    def _drop_cancelled(self) -> None:
        with self._lock:
            waiting = [handle for handle in self._waiting if handle.is_cancelled]
            for handle in waiting:
                self._waiting.remove(handle)
        for handle in (*waiting, *self._at_work()):
            if handle.is_cancelled and not handle.is_done:
                handle.finish("cancelled")
        if self._reading:
            handles = self._reading.handles
            handles[:] = [None if handle and handle.is_done else handle for handle in handles]
        self._leave_those_done()

    def _admit(self) -> None:
        """Begins to read the prompts for which there are free rows."""
        free = self._slots - (len(self._batch.running) if self._batch else 0)
        if self._reading or not self._waiting or not free:
            return
        with self._lock:
            handles = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        try:
            self._reading = self._begin(handles)
        except Exception as error:  # such as too little memory: those that run go on
            for handle in handles:
                handle.fail(error)

    def _begin(self, handles: list[Handle]) -> _Reading:
        slots = self._bucket(max(len(h.prompt_T) + h.max_tokens for h in handles))
        if self._batch:
            slots = max(slots, row_state.num_slots(self._batch.state))
        rows = power_of_two(len(handles))
        state = steps.start(self._config, self._model.params, rows, slots, self._cache)
        reading = _Reading([*handles], state, [0] * len(handles))
        for row, handle in enumerate(handles):
            handle.times.started = time.perf_counter()
            if found := self._find(handle.prompt_T):
                own = row_state.with_slots(found.state, slots)
                reading.state = row_state.put_row(reading.state, row, own, 0)
                reading.done[row] = handle.reused_tokens = len(found.token_T)
                handle.read_tokens = handle.reused_tokens
        return reading

    def _bucket(self, length: int) -> int:
        """Cache slots for sequences of some tokens: few sizes are compiled."""
        if "attention" not in self._config.mixers:
            return steps.CACHE_STEP
        most = steps.cache_slots(self._config, self._limit or _MAX_TOKENS)
        return min(power_of_two(steps.cache_slots(self._config, length)), most)

    # --- states that prompts can start from ----------------------------------------------------

    def _find(self, prompt_T: np.ndarray) -> SavedState | None:
        """What spares a prompt most tokens: a kept state or a running row, after them."""
        best = self._saved.find(prompt_T)
        batch = self._batch
        for row, handle in batch.running if batch and self._reuses else []:
            assert batch
            running = SavedState(handle.read_T, batch.state)
            length = running.usable_tokens(self._config, prompt_T)
            if length > (len(best.token_T) if best else 0):
                own = row_state.take_row(running.state, row)
                best = SavedState(running.token_T, own).first(length)
        # A call reads some tokens as fast as it copies a state.
        return best if best and len(best.token_T) >= steps.LEAST_TOKENS else None

    def _keep(self, token_T: np.ndarray, state: ModelState, row: int) -> None:
        """Keeps the state of a row, if that is wanted."""
        if not self._reuses or len(token_T) < steps.LEAST_TOKENS:
            return
        if state.position_B.shape[0] > 1 or self._reading:
            state = row_state.take_row(state, row)
        slots = min(self._bucket(len(token_T)), row_state.num_slots(state))
        self._saved.add(SavedState(token_T, row_state.with_slots(state, slots)))

    # --- reading -------------------------------------------------------------------------------

    def _read(self) -> None:
        """Reads the next part of the prompts; those that are done begin to write."""
        reading = self._reading
        if not reading:
            return
        try:
            self._read_some(reading)
            self._join_those_done(reading)
        except Exception as error:
            for handle in reading.handles:
                if handle:
                    handle.fail(error)
            self._reading = None
        if not any(reading.handles):
            self._reading = None

    def _read_some(self, reading: _Reading) -> None:
        rows = reading.state.position_B.shape[0]
        most = max(steps.PREFILL_TOKENS // rows, steps.LEAST_TOKENS)
        length_B = np.zeros(rows, np.int32)
        for row in range(len(reading.handles)):
            length_B[row] = min(reading.left(row), most)
        if not length_B.any():
            return
        token_BT = np.zeros((rows, steps.padded_length(int(length_B.max()))), np.int32)
        for row, handle in enumerate(reading.handles):
            if handle:
                part = slice(reading.done[row], reading.done[row] + length_B[row])
                token_BT[row, : length_B[row]] = handle.prompt_T[part]
                reading.done[row] += int(length_B[row])
                handle.read_tokens = reading.done[row]
        reading.state = steps.read_tokens(
            self._config, self._model.params, reading.state, token_BT, length_B
        )

    def _join_those_done(self, reading: _Reading) -> None:
        """Lets the rows write whose prompts have been read."""
        ready = [row for row, handle in enumerate(reading.handles) if handle]
        ready = [row for row in ready if not reading.left(row)]
        if not ready:
            return
        if self._learns:
            for row in ready:
                handle = reading.handles[row]
                assert handle
                self._keep(handle.read_T, reading.state, row)
        if not self._batch and len(ready) == sum(handle is not None for handle in reading.handles):
            self._batch = Batch(self._config, reading.state, reading.handles)
            reading.handles = []
            return
        if not self._batch:
            slots = row_state.num_slots(reading.state)
            fresh = steps.start(self._config, self._model.params, 1, slots, self._cache)
            self._batch = Batch(self._config, fresh, [])
        for row in ready:
            handle, reading.handles[row] = reading.handles[row], None
            assert handle
            self._batch.join(handle, reading.state, row, self._slots)

    # --- writing -------------------------------------------------------------------------------

    def _write(self) -> None:
        """Lets all rows write some tokens."""
        batch = self._batch
        if not batch:
            return
        running, started = batch.running, time.perf_counter()
        try:
            written = batch.write(
                self._model.params,
                self._model.tokenizer.vocab_size,
                self._count,
                1 if self._waiting else len(running),
            )
        except Exception as error:
            for _, handle in running:
                handle.fail(error)
            self._batch = None
            return
        seconds = time.perf_counter() - started
        self._count = steps.tokens_per_call(seconds / int(written.count_B.max()))
        for row, handle in running:
            count = int(written.count_B[row])
            tokens = written.token_NB[:count, row].tolist()
            handle.take(tokens, log_probabilities(written, row, handle.request.logprobs))
        self._leave_those_done()

    def _leave_those_done(self) -> None:
        """Frees the rows whose requests have ended, and makes the batch small if few remain."""
        batch = self._batch
        if not batch:
            return
        done = [(row, handle) for row, handle in batch.running if handle.is_done]
        for row, handle in done:
            batch.leave(row)
            if not (self._learns and handle.has_read_beyond_its_end):
                self._keep(handle.read_T, batch.state, row)
        running = len(batch.running)
        if not running:
            self._batch = None
        elif done and not self._waiting and not self._reading and 4 * running <= len(batch.handles):
            batch.resize(power_of_two(running))


def _bounded(
    model: Model, context: int | None, overflow: Overflow
) -> tuple[ModelConfig, int | None]:
    """The model as it is run, and the most tokens of a sequence; None for any number."""
    config, limit = model.config, context or model.context
    attends = "attention" in config.mixers
    if limit is None or not attends or 0 < config.window <= limit:
        return config, None
    if overflow == "slide":
        return dataclasses.replace(config, window=limit), None
    return config, limit
