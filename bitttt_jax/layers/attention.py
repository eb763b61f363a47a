"""Causal grouped-query attention with RoPE, an optional sliding window, and a cache."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bitttt_jax.config import ModelConfig
from bitttt_jax.layers.bitlinear import BitLinear, apply_together
from bitttt_jax.layers.inputs import Anneal, Sequence
from bitttt_jax.layers.norm import RMSNorm
from bitttt_jax.ops.attention import cached_attention, self_attention
from bitttt_jax.ops.rope import rope


class KVCache(NamedTuple):
    """Keys (rotated) and values of S slots; the token at position p lies in slot p mod S."""

    key: jax.Array
    """`[B, S, G, K]`"""
    value: jax.Array
    """`[B, S, G, K]`"""


def initial_cache(config: ModelConfig, batch: int, slots: int) -> KVCache:
    """An empty cache for `batch` sequences, in the type of the activations."""
    shape = (batch, slots, config.kv_heads, config.width_per_head)
    empty = jnp.zeros(shape, config.compute_dtype)
    return KVCache(empty, empty)


def _store(cache: KVCache, key, value, sequence: Sequence) -> tuple[KVCache, jax.Array]:
    """Writes the valid tokens of a call; returns the cache and the position in each slot."""
    slots, T = cache.key.shape[1], sequence.position_BT.shape[1]
    valid_BT = jnp.arange(T) < sequence.length_B[:, None]
    # Out-of-range slots are dropped by the scatter: padding is written nowhere.
    slot_BT = jnp.where(valid_BT, sequence.position_BT % slots, slots)
    row_B1 = jnp.arange(slot_BT.shape[0])[:, None]
    write = lambda old, new: old.at[row_B1, slot_BT].set(new.astype(old.dtype), mode="drop")
    newest_B1 = sequence.position_BT[:, :1] + sequence.length_B[:, None] - 1
    position_BS = newest_B1 - (newest_B1 - jnp.arange(slots)) % slots
    return KVCache(write(cache.key, key), write(cache.value, value)), position_BS


class Attention(nn.Module):
    """The attention mixer. Ternary projections; scores and softmax in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, sequence: Sequence, anneal: Anneal, cache: KVCache | None = None
    ) -> tuple[jax.Array, KVCache | None]:
        """Mixes tokens within their documents.

        Args:
          x_BTD: normalised inputs.
          sequence: positions and documents; with a cache, one running document a row.
          anneal: values that follow the training step.
          cache: keys and values of earlier calls. With a window of w, S slots hold what a call of
            up to `S - w + 1` tokens needs; without one, S bounds the whole length.

        Returns:
          `[B, T, D]`, and the new cache where one was given.
        """
        config, ternary = self.config, self.config.ternary.mixer
        K, H, G = config.width_per_head, config.num_heads, config.kv_heads

        widths = {"query": H * K, "key": G * K, "value": G * K}
        bias = config.qkv_bias
        layers = tuple(
            BitLinear(config, n, ternary, use_bias=bias, name=name) for name, n in widths.items()
        )
        query, key, value = (
            y.reshape(*y.shape[:2], -1, K)
            for y in apply_together(layers, x_BTD, anneal.quantization)
        )
        turn = functools.partial(rope, theta=config.rope_theta, scaling=config.rope_scaling)
        query, key = turn(query, sequence.position_BT), turn(key, sequence.position_BT)
        if cache is None:
            mixed = self_attention(query, key, value, sequence.segment_BT, config.window)
        else:
            cache, k_position_BS = _store(cache, key, value, sequence)
            mixed = cached_attention(
                query, cache.key, cache.value, sequence.position_BT, k_position_BS, config.window
            )
        mixed = mixed.reshape(*mixed.shape[:2], H * K)
        if config.norm_placement == "subln":
            mixed = RMSNorm(config.norm_eps, name="sub_norm")(mixed)
        output = BitLinear(config, config.dim, ternary, "rows", name="output")
        return output(mixed, anneal.quantization), cache
