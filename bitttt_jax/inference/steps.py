"""The compiled steps of generation: rows read their prompts, then write several tokens a call."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax.config import ModelConfig
from bitttt_jax.inference.sampling import RowSampling, sample
from bitttt_jax.layers.attention import CacheType
from bitttt_jax.models import transformer
from bitttt_jax.models.transformer import ModelState

# Prompts are read in calls of at most this many tokens, the last one padded to a power of two, so
# that few shapes are compiled.
PREFILL_TOKENS = 512
LEAST_TOKENS = 16
CACHE_STEP = 256
# A call takes the host some microseconds for each of a model's arrays, as long as a small model's
# step: a call chooses as many tokens as come in this time, at most so many.
_CALL_SECONDS = 0.1
CALL_TOKENS = 32
TOP_LOGPROBS = 20
"""Log-probabilities of so many of the likeliest tokens come with each one, where asked for."""


class Rows(NamedTuple):
    """What the rows of a batch write with."""

    sampling: RowSampling
    seed: jax.Array | np.ndarray
    """uint32 `[B]`"""
    stop: jax.Array | np.ndarray
    """Tokens that end a row, `[B, S]`; -1 where a row has fewer."""


class Written(NamedTuple):
    """What a call has written: up to N tokens of each row."""

    token_NB: jax.Array
    count_B: jax.Array
    """How many of them are each row's."""
    logprob_NB: jax.Array | None
    """Natural logarithm of each token's probability, before penalties, temperature and filters."""
    top_NBL: tuple[jax.Array, jax.Array] | None
    """Log-probabilities and ids of the likeliest tokens."""


def cache_slots(config: ModelConfig, length: int) -> int:
    """Slots of an attention cache for sequences of `length` tokens, rounded up."""
    if config.window:
        length = min(length, config.window + PREFILL_TOKENS - 1)
    return -(-length // CACHE_STEP) * CACHE_STEP


def padded_length(length: int) -> int:
    """Tokens of the call that reads `length` of them."""
    return max(LEAST_TOKENS, 1 << (length - 1).bit_length())


def tokens_per_call(seconds: float) -> int:
    """How many tokens `write_tokens` should choose in a call, from the seconds that one takes."""
    return min(max(int(_CALL_SECONDS / seconds), 1), CALL_TOKENS)


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def start(
    config: ModelConfig, params: Any, batch: int, slots: int, cache: CacheType | None = None
) -> ModelState:
    """`transformer.init_state`, compiled."""
    return transformer.init_state(config, params, batch, slots, cache)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def read_tokens(
    config: ModelConfig, params: Any, state: ModelState, token_BT: jax.Array, length_B: jax.Array
) -> ModelState:
    """Reads the next tokens of each row, as `transformer.prefill`; logits aren't computed."""
    return transformer.prefill(config, params, state, token_BT, length_B)[1]


@functools.partial(jax.jit, static_argnums=0)
def read_observed(
    config: ModelConfig, params: Any, state: ModelState, token_BT: jax.Array, length_B: jax.Array
) -> tuple[jax.Array, ModelState]:
    """Reads as `read_tokens` does, but leaves the old state; `transformer.prefill_observed`."""
    return transformer.prefill_observed(config, params, state, token_BT, length_B)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4, 5))
def write_tokens(
    config: ModelConfig,
    num_tokens: int,
    logprobs: bool,
    params: Any,
    state: ModelState,
    seen_BV: jax.Array,
    rows: Rows,
    token_B: jax.Array,
    left_B: jax.Array,
    count: int,
    enough: int,
) -> tuple[Written, ModelState, jax.Array]:
    """Reads a token of each row and chooses the next one, again and again in one call.

    Args:
      config: the model's.
      num_tokens: size of the tokenizer; the model's tokens beyond it are impossible.
      logprobs: whether log-probabilities are computed.
      params: the model's parameters.
      state: where the rows stand.
      seen_BV: which tokens each row has.
      rows: how each chooses.
      token_B: their latest tokens, which haven't been read.
      left_B: how many tokens each may still choose. A row that has none left, or has chosen a stop
        token, keeps its state.
      count: how many tokens to choose, at most `CALL_TOKENS`.
      enough: the call ends when so many rows have ended.

    Returns:
      The tokens, the new state, and the tokens that each row has now.
    """
    B, started_B = token_B.shape[0], left_B > 0

    def goes_on(carry):
        step, _, left_B, _, _, _ = carry
        return (step < count) & (jnp.sum(started_B & (left_B == 0)) < enough)

    def write(carry):
        step, token_B, left_B, seen_BV, state, written = carry
        # The only row of a batch runs for as long as the call.
        runs_B = jnp.ones(1, bool) if B == 1 else left_B > 0
        hidden_BTD, state = transformer.prefill(
            config, params, state, token_B[:, None], runs_B.astype(jnp.int32)
        )
        logits_BV = transformer.logits(config, params, hidden_BTD)[:, 0]
        if num_tokens < logits_BV.shape[1]:
            logits_BV = logits_BV.at[:, num_tokens:].set(-jnp.inf)
        chosen_B = sample(rows.sampling, logits_BV, seen_BV, rows.seed, state.position_B)
        token_B = jnp.where(runs_B, chosen_B, token_B)
        seen_BV = seen_BV.at[jnp.arange(B), token_B].set(True)
        stops_B = jnp.any(token_B[:, None] == rows.stop, axis=1)
        left_B = jnp.where(runs_B & ~stops_B, left_B - 1, 0)
        written = _add(written, step, token_B, runs_B, logits_BV)
        return step + 1, token_B, left_B, seen_BV, state, written

    zero = jnp.zeros((), jnp.int32)
    begin = (zero, token_B, left_B, seen_BV, state, _nothing_written(B, logprobs))
    _, _, _, seen_BV, state, written = jax.lax.while_loop(goes_on, write, begin)
    return written, state, seen_BV


def _nothing_written(batch: int, logprobs: bool) -> Written:
    shape = (CALL_TOKENS, batch)
    integers = lambda *shape: jnp.zeros(shape, jnp.int32)
    logprob_NB = top_NBL = None
    if logprobs:
        logprob_NB = jnp.zeros(shape)
        top_NBL = (jnp.zeros((*shape, TOP_LOGPROBS)), integers(*shape, TOP_LOGPROBS))
    return Written(integers(*shape), integers(batch), logprob_NB, top_NBL)


def _add(written: Written, step, token_B, runs_B, logits_BV) -> Written:
    """What has been written after one more token of each row that runs."""
    token_NB = written.token_NB.at[step].set(token_B)
    count_B = written.count_B + runs_B
    if written.logprob_NB is None or written.top_NBL is None:
        return Written(token_NB, count_B, None, None)
    logprob_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    chosen_B1 = jnp.take_along_axis(logprob_BV, token_B[:, None], axis=1)
    top = jax.lax.top_k(logprob_BV, min(TOP_LOGPROBS, logprob_BV.shape[1]))
    width = top[0].shape[1]
    values_NBL, ids_NBL = (
        all_.at[step, :, :width].set(new) for all_, new in zip(written.top_NBL, top, strict=True)
    )
    logprob_NB = written.logprob_NB.at[step].set(chosen_B1[:, 0])
    return Written(token_NB, count_B, logprob_NB, (values_NBL, ids_NBL))
