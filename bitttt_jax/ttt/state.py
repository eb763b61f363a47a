"""What a TTT mixer carries between calls, and the inputs that one call reads."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bitttt_jax.ttt.inner import FastNorm, FastWeights


class StreamState(NamedTuple):
    """Exact state of the inner learning, per sequence and head, always float32."""

    fast: FastWeights
    """Fast weights at the start of the current mini-batch, `[B, H, ...]`."""
    grad: FastWeights
    """Gradients of the current mini-batch's tokens so far, each times its learning rate."""


class Learner(NamedTuple):
    """Outer parameters of the inner learning; the same for all sequences."""

    fast: FastWeights
    """Initial fast weights, `[H, ...]`."""
    norm: FastNorm
    """LayerNorm of the inner model, `[H, K]`."""
    token_scale_b: jax.Array
    """Scale of the summed gradients at each place in a mini-batch of b tokens."""


class Views(NamedTuple):
    """The tokens as the inner learning sees them."""

    query: jax.Array
    """What is read out, `[B, T, H, K]`."""
    key: jax.Array
    """What the inner model is given, `[B, T, H, K]`."""
    value: jax.Array
    """What it should reconstruct, `[B, T, H, K]`."""
    rate: jax.Array
    """Inner learning rate of each token and head, `[B, T, H]`."""


def broadcast_fast(fast: FastWeights, batch: int) -> FastWeights:
    """Initial fast weights `[H, ...]` for every sequence of a batch: `[B, H, ...]`."""
    return {name: jnp.broadcast_to(w, (batch, *w.shape)) for name, w in fast.items()}


def initial_state(fast: FastWeights, batch: int) -> StreamState:
    """The state of `batch` sequences of which nothing has been read."""
    start = broadcast_fast(fast, batch)
    return StreamState(start, {name: jnp.zeros_like(w) for name, w in start.items()})
