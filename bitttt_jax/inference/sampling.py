"""The next token of every row: penalties, temperature and filters, each row with its own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax.errors import ConfigError
from bitttt_jax.ops.argmax import argmax, ordered


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen.

    In this order: repetition penalty, temperature, top-k, top-p, min-p.
    """

    temperature: float = 0.8
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int = 0
    """Only the k likeliest tokens are possible; 0 for all."""
    top_p: float = 1.0
    """Only the fewest likeliest tokens that together reach this probability are possible."""
    min_p: float = 0.0
    """Only tokens at least this times as likely as the likeliest one are possible; 0 for all."""
    repetition_penalty: float = 1.0
    """Divides the positive logits, and multiplies the negative ones, of all tokens that are in the
    prompt or the reply already (arXiv:1909.05858); 1 for none."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature must be finite and not negative, got {self.temperature}"
            )
        if not 0 <= self.top_k < 2**31:
            raise ConfigError(f"top_k must not be negative, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p must be in [0, 1], got {self.min_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ConfigError(
                f"repetition_penalty must be finite and positive, got {self.repetition_penalty}"
            )


class RowSampling(NamedTuple):
    """A `SamplingConfig` for each row, as arrays `[B]`: rows with others share compiled code."""

    temperature: jax.Array | np.ndarray
    top_k: jax.Array | np.ndarray
    top_p: jax.Array | np.ndarray
    min_p: jax.Array | np.ndarray
    repetition_penalty: jax.Array | np.ndarray

    @classmethod
    def of(cls, configs: Sequence[SamplingConfig]) -> RowSampling:
        """The settings of some rows."""
        values = [
            np.array([getattr(config, name) for config in configs], np.float32)
            for name in cls._fields
        ]
        values[1] = np.array([config.top_k for config in configs], np.int32)
        return cls(*values)


def penalised(rows: RowSampling, logits_BV: jax.Array, seen_BV: jax.Array) -> jax.Array:
    """Logits after the repetition penalty.

    Args:
      rows: settings.
      logits_BV: the model's, float32.
      seen_BV: which tokens each row has already.
    """

    def penalise(logits_BV):
        penalty = rows.repetition_penalty[:, None]
        lowered = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
        return jnp.where(seen_BV, lowered, logits_BV)

    return jax.lax.cond(
        jnp.any(rows.repetition_penalty != 1), penalise, lambda logits: logits, logits_BV
    )


def filtered_logits(rows: RowSampling, logits_BV: jax.Array) -> jax.Array:
    """Logits of the distributions that are sampled from; impossible tokens have -inf.

    Tokens as likely as the last one that a filter keeps are kept too, so that the result doesn't
    depend on token order.

    Args:
      rows: settings; where the temperature is 0, the logits are only filtered.
      logits_BV: penalised logits; -inf for tokens that are impossible already.
    """
    logits = logits_BV.astype(jnp.float32)
    # The largest becomes 0, so that a small temperature doesn't make it infinite.
    temperature = jnp.where(rows.temperature > 0, rows.temperature, 1.0)[:, None]
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature

    def keep_top_k(logits):
        most = jnp.where(rows.top_k > 0, rows.top_k, logits.shape[-1]).astype(jnp.float32)
        return _cut(logits, jnp.ones_like(logits), most)

    def keep_top_p(logits):
        # Nothing is cut where top_p is 1, whatever the sum's rounding.
        share = jnp.where(rows.top_p < 1, rows.top_p, jnp.inf)
        return _cut(logits, jax.nn.softmax(logits, axis=-1), share)

    unchanged = lambda logits: logits
    logits = jax.lax.cond(jnp.any(rows.top_k > 0), keep_top_k, unchanged, logits)
    logits = jax.lax.cond(jnp.any(rows.top_p < 1), keep_top_p, unchanged, logits)
    return jnp.where(logits >= jnp.log(rows.min_p)[:, None], logits, -jnp.inf)


def _cut(logits_BV: jax.Array, weight_BV: jax.Array, limit_B: jax.Array) -> jax.Array:
    """Keeps the logits above which others of less than a total weight lie.

    By bisection over the floats: sorting takes much longer.
    """
    order_BV = ordered(logits_BV)
    low = jnp.full_like(limit_B, ordered(jnp.float32(-jnp.inf)), jnp.int32)
    high = jnp.zeros_like(low)  # no logit is positive

    def halve(_, borders):
        low, high = borders
        middle = low + (high - low) // 2
        above = jnp.sum(jnp.where(order_BV > middle[:, None], weight_BV, 0.0), axis=-1)
        fits = above < limit_B
        return jnp.where(fits, low, middle + 1), jnp.where(fits, middle, high)

    border_B, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return jnp.where(order_BV >= border_B[:, None], logits_BV, -jnp.inf)


def sample(
    rows: RowSampling,
    logits_BV: jax.Array,
    seen_BV: jax.Array,
    seed_B: jax.Array | np.ndarray,
    position_B: jax.Array,
) -> jax.Array:
    """Draws a token `[B]` for each row; the likeliest one at temperature 0.

    A row's draw depends on its own values only.

    Args:
      rows: settings.
      logits_BV: the model's logits, float32; -inf for impossible tokens.
      seen_BV: which tokens each row has already.
      seed_B: uint32 seeds.
      position_B: tokens before the one that is drawn.
    """
    logits_BV = penalised(rows, logits_BV, seen_BV)
    likeliest_B = argmax(logits_BV)

    def draw(logits_BV):
        fold = lambda seed, position: jax.random.fold_in(jax.random.key(seed), position)
        key_B = jax.vmap(fold)(seed_B, position_B)
        drawn_B = jax.vmap(jax.random.categorical)(key_B, filtered_logits(rows, logits_BV))
        return jnp.where(rows.temperature > 0, drawn_B.astype(jnp.int32), likeliest_B)

    return jax.lax.cond(jnp.any(rows.temperature > 0), draw, lambda logits: likeliest_B, logits_BV)
