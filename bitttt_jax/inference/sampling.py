"""The next token: temperature, top-k and top-p over the model's distribution."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from bitttt_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen. Filters apply in the order: temperature, top-k, top-p."""

    temperature: float = 0.8
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int = 0
    """Only the k likeliest tokens are possible; 0 for all."""
    top_p: float = 1.0
    """Only the fewest likeliest tokens that together reach this probability are possible."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature must be finite and not negative, got {self.temperature}"
            )
        if self.top_k < 0:
            raise ConfigError(f"top_k must not be negative, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be in (0, 1], got {self.top_p}")


def filtered_logits(config: SamplingConfig, logits_BV: jax.Array) -> jax.Array:
    """Logits of the distribution that is sampled from; impossible tokens have -inf.

    Tokens as likely as the last one that a filter keeps are kept too, so that the result doesn't
    depend on token order.

    Args:
      config: a temperature above 0, and filters.
      logits_BV: the model's logits; -inf for tokens that are impossible already.
    """
    logits = logits_BV.astype(jnp.float32)
    # The largest becomes 0, so that a small temperature doesn't make it infinite.
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / config.temperature
    vocab = logits.shape[-1]
    if 0 < config.top_k < vocab:
        border = jax.lax.top_k(logits, config.top_k)[0][:, -1:]
        logits = jnp.where(logits < border, -jnp.inf, logits)
    if config.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probability = jax.nn.softmax(ordered, axis=-1)
        # A token stays while the ones before it don't reach top_p: the first always stays.
        before = jnp.cumsum(probability, axis=-1) - probability
        count = jnp.sum(before < config.top_p, axis=-1, keepdims=True)
        border = jnp.take_along_axis(ordered, count - 1, axis=-1)
        logits = jnp.where(logits < border, -jnp.inf, logits)
    return logits


def sample(config: SamplingConfig, logits_BV: jax.Array, key: jax.Array) -> jax.Array:
    """Draws a token `[B]` from logits `[B, V]`; the likeliest one at temperature 0.

    Args:
      config: temperature and filters.
      logits_BV: the model's logits.
      key: random key of this draw.
    """
    if config.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, filtered_logits(config, logits_BV)).astype(jnp.int32)
