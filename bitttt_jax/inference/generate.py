"""Generation: one prefill, then compiled steps that carry all mixer states, several in a call."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax.config import ModelConfig
from bitttt_jax.errors import ConfigError
from bitttt_jax.inference.sampling import SamplingConfig, sample
from bitttt_jax.models import transformer
from bitttt_jax.models.transformer import ModelState

# Prompts are read in calls of at most this many tokens, the last one padded to a power of two, so
# that few shapes are compiled.
PREFILL_TOKENS = 512
_CACHE_STEP = 256
# A call takes the host some microseconds for each of a model's arrays, as long as a small model's
# step: a call chooses as many tokens as come in this time, at most so many.
_CALL_SECONDS = 0.1
CALL_TOKENS = 32
_MAX_TOKENS = 2**31 - _CACHE_STEP  # positions and cache slots are 32-bit


def cache_slots(config: ModelConfig, length: int) -> int:
    """Slots of an attention cache for sequences of `length` tokens, rounded up."""
    if config.window:
        length = min(length, config.window + PREFILL_TOKENS - 1)
    return -(-length // _CACHE_STEP) * _CACHE_STEP


def generate(
    config: ModelConfig,
    params: Any,
    prompt_T: np.ndarray,
    max_tokens: int,
    *,
    sampling: SamplingConfig = SamplingConfig(),
    seed: int = 0,
    stop_ids: tuple[int, ...] = (),
    num_tokens: int | None = None,
) -> Iterator[int]:
    """Continues a prompt, one token at a time.

    The draws depend on `seed` and the token's position only: a longer continuation begins with the
    shorter one (where rounding decides between two tokens, if both fit the same cache size).

    Args:
      config: the model's.
      params: its parameters.
      prompt_T: token ids, at least one (a document's first token is the tokenizer's bos).
      max_tokens: most tokens to generate.
      sampling: how each is chosen.
      seed: of the draws.
      stop_ids: tokens that end the continuation; they aren't yielded.
      num_tokens: size of the tokenizer, where the model's vocabulary is padded beyond it.

    Yields:
      Token ids.

    Raises:
      ConfigError: an empty prompt, one with a token that the model doesn't know, or more tokens
        than positions can count.
    """
    num_tokens = num_tokens or config.vocab_size
    _check_prompt(prompt_T, max_tokens, num_tokens)
    slots = cache_slots(config, len(prompt_T) + max_tokens)
    state = start(config, params, 1, slots)
    logits, state = _read_prompt(config, params, state, np.asarray(prompt_T, np.int32))
    key, stop = jax.random.key(seed), np.array(stop_ids, np.int32)
    token_B = _choose_first(sampling, num_tokens, logits, state.position_B, key)
    new, left, count = [int(token_B[0])], max_tokens, 1
    while left:
        for value in new:
            if value in stop_ids:
                return
            yield value
        left -= len(new)
        if not left:
            return
        started = time.perf_counter()
        token_NB, written, state = write_tokens(
            config, sampling, num_tokens, params, state, token_B, key, stop, min(count, left)
        )
        new, token_B = np.asarray(token_NB)[: int(written), 0].tolist(), token_NB[written - 1]
        count = tokens_per_call((time.perf_counter() - started) / len(new))


def tokens_per_call(seconds: float) -> int:
    """How many tokens `write_tokens` should choose in a call, from the seconds that one takes."""
    return min(max(int(_CALL_SECONDS / seconds), 1), CALL_TOKENS)


def _check_prompt(prompt_T: np.ndarray, max_tokens: int, num_tokens: int) -> None:
    if len(prompt_T) == 0:
        raise ConfigError("the prompt has no tokens", fix="start it with the tokenizer's bos token")
    unknown = [token for token in prompt_T if not 0 <= token < num_tokens]
    if unknown:
        raise ConfigError(
            f"the prompt has token {unknown[0]}, and the tokenizer has {num_tokens} tokens",
            "the prompt was encoded with another tokenizer",
        )
    if len(prompt_T) + max_tokens > _MAX_TOKENS:
        raise ConfigError(f"a prompt and its continuation have at most {_MAX_TOKENS} tokens")


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def start(config: ModelConfig, params: Any, batch: int, slots: int) -> ModelState:
    """`transformer.init_state`, compiled."""
    return transformer.init_state(config, params, batch, slots)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def read_tokens(
    config: ModelConfig, params: Any, state: ModelState, token_BT, length_B
) -> tuple[jax.Array, ModelState]:
    """Reads tokens: the logits `[B, V]` after the last of each row, and the new state."""
    hidden, state = transformer.prefill(config, params, state, token_BT, length_B)
    last = jnp.take_along_axis(hidden, (length_B - 1)[:, None, None], axis=1)
    return transformer.logits(config, params, last)[:, 0], state


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def write_tokens(
    config: ModelConfig,
    sampling: SamplingConfig,
    num_tokens: int,
    params: Any,
    state: ModelState,
    token_B: jax.Array,
    key: jax.Array,
    stop_S: jax.Array,
    count: int,
) -> tuple[jax.Array, jax.Array, ModelState]:
    """Reads a token of each row and chooses the next one, again and again in one call.

    Args:
      config: the model's.
      sampling: how tokens are chosen.
      num_tokens: size of the tokenizer.
      params: the model's parameters.
      state: where the rows stand.
      token_B: their latest tokens.
      key: random key of all draws.
      stop_S: tokens that end the call when every row has one of them.
      count: how many tokens of each row to choose, at most `CALL_TOKENS`.

    Returns:
      The tokens `[CALL_TOKENS, B]`, how many of them were chosen, and the new state.
    """

    def goes_on(carry):
        written, token_B, _, _ = carry
        return (written < count) & ~jnp.all(jnp.isin(token_B, stop_S))

    def write(carry):
        written, token_B, token_NB, state = carry
        hidden, state = transformer.step(config, params, state, token_B)
        logits = transformer.logits(config, params, hidden[:, None])[:, 0]
        token_B = _choose(sampling, num_tokens, logits, state.position_B, key)
        return written + 1, token_B, token_NB.at[written].set(token_B), state

    token_NB = jnp.zeros((CALL_TOKENS, *token_B.shape), jnp.int32)
    start = (jnp.zeros((), jnp.int32), token_B, token_NB, state)
    written, _, token_NB, state = jax.lax.while_loop(goes_on, write, start)
    return token_NB, written, state


def _choose(sampling, num_tokens: int, logits_BV, position_B, key) -> jax.Array:
    logits = jnp.where(jnp.arange(logits_BV.shape[-1]) < num_tokens, logits_BV, -jnp.inf)
    return sample(sampling, logits, jax.random.fold_in(key, position_B[0]))


_choose_first = jax.jit(_choose, static_argnums=(0, 1))


def _read_prompt(config: ModelConfig, params: Any, state: ModelState, prompt_T: np.ndarray):
    for first in range(0, len(prompt_T), PREFILL_TOKENS):
        part = prompt_T[first : first + PREFILL_TOKENS]
        padded = np.zeros(max(16, 1 << (len(part) - 1).bit_length()), np.int32)
        padded[: len(part)] = part
        logits, state = read_tokens(config, params, state, padded[None], np.array([len(part)]))
    return logits, state
