"""Causal grouped-query attention with RoPE, an optional sliding window, and a cache."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bitttt_jax.config import ModelConfig
from bitttt_jax.layers.bitlinear import BitLinear, apply_together
from bitttt_jax.layers.inputs import Anneal, Sequence
from bitttt_jax.layers.norm import RMSNorm
from bitttt_jax.ops.attention import cached_attention, self_attention
from bitttt_jax.ops.precision import widen
from bitttt_jax.ops.quantize import int8_codes
from bitttt_jax.ops.rope import rope

CacheType = Literal["bfloat16", "int8"]
"""What keys and values are stored as; int8 with a float32 scale for each token and head."""


class KVCache(NamedTuple):
    """Keys (rotated) and values of S slots; the token at position p lies in slot p mod S.

    Those of type bfloat16 are kept as the uint16 of their bits: XLA's CPU backend converts a whole
    array of bfloat16 to float32 and back to write to a part of it.
    """

    key: jax.Array
    """`[B, S, G, K]`"""
    value: jax.Array
    """`[B, S, G, K]`"""
    key_scale: jax.Array | None = None
    """float32 `[B, S, G]` where the keys are int8."""
    value_scale: jax.Array | None = None


def initial_cache(
    config: ModelConfig, batch: int, slots: int, cache: CacheType | None = None
) -> KVCache:
    """An empty cache for `batch` sequences, by default in the type of the activations."""
    shape = (batch, slots, config.kv_heads, config.width_per_head)
    kind = cache or config.compute_dtype
    empty = jnp.zeros(shape, "uint16" if kind == "bfloat16" else kind)
    scale = jnp.zeros(shape[:-1], jnp.float32) if cache == "int8" else None
    return KVCache(empty, empty, scale, scale)


def _store(cache: KVCache, key, value, sequence: Sequence) -> tuple[KVCache, jax.Array]:
    """Writes the valid tokens of a call; returns the cache and the position in each slot."""
    slots, T = cache.key.shape[1], sequence.position_BT.shape[1]
    valid_BT = jnp.arange(T) < sequence.length_B[:, None]
    slot_BT = sequence.position_BT % slots
    key_scale = value_scale = None
    if cache.key_scale is not None:
        (key, key_scale), (value, value_scale) = _int8_heads(key), _int8_heads(value)
    new = KVCache(key, value, key_scale, value_scale)
    cache = jax.tree.map(lambda old, new: _write(old, new, slot_BT, valid_BT), cache, new)
    newest_B1 = sequence.position_BT[:, :1] + sequence.length_B[:, None] - 1
    return cache, newest_B1 - (newest_B1 - jnp.arange(slots)) % slots


def _int8_heads(x_BTGK: jax.Array) -> tuple[jax.Array, jax.Array]:
    codes, scale = int8_codes(widen(x_BTGK))
    return codes, scale[..., 0]


def _write(old_BS: jax.Array, new_BT: jax.Array, slot_BT, valid_BT) -> jax.Array:
    if old_BS.dtype == jnp.uint16:
        new_BT = jax.lax.bitcast_convert_type(new_BT.astype(jnp.bfloat16), jnp.uint16)
    # Out-of-range slots are dropped by the scatter: padding is written nowhere.
    slot_BT = jnp.where(valid_BT, slot_BT, old_BS.shape[1])
    row_B1 = jnp.arange(old_BS.shape[0])[:, None]
    return old_BS.at[row_B1, slot_BT].set(new_BT.astype(old_BS.dtype), mode="drop")


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
                query,
                cache.key,
                cache.value,
                sequence.position_BT,
                k_position_BS,
                config.window,
                k_scale_BSG=cache.key_scale,
                v_scale_BSG=cache.value_scale,
            )
        mixed = mixed.reshape(*mixed.shape[:2], H * K)
        if config.norm_placement == "subln":
            mixed = RMSNorm(config.norm_eps, name="sub_norm")(mixed)
        output = BitLinear(config, config.dim, ternary, "rows", name="output")
        return output(mixed, anneal.quantization), cache
