"""Causal grouped-query attention, over a row of packed documents or over a cache."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax import native
from bitttt_jax.ops.product import matmul, matmul_transposed

# Rows of scores that exist at once, and the number of distinct (compiled) key ranges.
QUERY_BLOCK = 256
MAX_SPANS = 8
# Up to this length the backward pass keeps the attention weights; beyond, it recomputes them.
SAVED_TOKENS = 512
_MASKED = -1e30
# What the native kernel for caches takes: tokens of a call, heads, and their width. It divides a
# cache into parts of at least so many slots, and at most so many parts; fewer for several tokens,
# so that all have about so many.
_KERNEL_TOKENS, _KERNEL_HEADS, _KERNEL_WIDTH = 8, 128, 256
_PART_SLOTS, _PARTS, _ALL_PARTS = 64, 8, 16


def _attend(q_BGRK, k_BGSK, v_BGSK, allowed_BRS):
    """Softmax attention of R query rows per key/value group G over S keys."""
    scaled = q_BGRK * q_BGRK.shape[-1] ** -0.5
    scores = matmul_transposed(scaled, k_BGSK)
    scores = jnp.where(allowed_BRS[:, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    return matmul(weights.astype(v_BGSK.dtype), v_BGSK).astype(q_BGRK.dtype)


def _split_heads(q_BTHK, num_groups):
    """[B, T, H, K] -> [B, G, H/G * T, K]: the query heads of a group become rows."""
    B, T, H, K = q_BTHK.shape
    q = q_BTHK.reshape(B, T, num_groups, H // num_groups, K)
    return q.transpose(0, 2, 3, 1, 4).reshape(B, num_groups, -1, K)


def _merge_heads(o_BGRK, T):
    B, G, R, K = o_BGRK.shape
    return o_BGRK.reshape(B, G, R // T, T, K).transpose(0, 3, 1, 2, 4).reshape(B, T, -1, K)


def self_attention(
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    segment_BT: jax.Array | None = None,
    window: int = 0,
) -> jax.Array:
    """Attention of each token to itself and the tokens before it in the same document.

    Works on spans of queries, so that memory grows linearly with T and most of the masked half of
    the scores is never computed.

    Args:
      q_BTHK: queries.
      k_BTGK: keys of G groups; H is a multiple of G.
      v_BTGK: values.
      segment_BT: document number of each token; None for one document a row.
      window: how many latest tokens are seen, the token itself included; 0 for all.

    Returns:
      `[B, T, H, K]` in the type of `q_BTHK`.
    """
    T, G = q_BTHK.shape[1], k_BTGK.shape[2]
    repeats = q_BTHK.shape[2] // G
    k_BGTK, v_BGTK = k_BTGK.swapaxes(1, 2), v_BTGK.swapaxes(1, 2)
    block = min(T, QUERY_BLOCK)
    span = block * -(-T // (block * MAX_SPANS))

    def attend_block(start, *, size, low, high):
        """Queries [start, start + size) over keys [low, high); `start` may be traced."""
        rows = start + jnp.arange(size)
        keys = jnp.arange(low, high)
        allowed = rows[:, None] >= keys
        if window:
            allowed &= rows[:, None] - keys < window
        allowed = allowed[None]
        if segment_BT is not None:
            own = jax.lax.dynamic_slice_in_dim(segment_BT, start, size, axis=1)
            allowed &= own[:, :, None] == segment_BT[:, None, low:high]
        q = _split_heads(jax.lax.dynamic_slice_in_dim(q_BTHK, start, size, axis=1), G)
        o = _attend(
            q, k_BGTK[:, :, low:high], v_BGTK[:, :, low:high], jnp.tile(allowed, (1, repeats, 1))
        )
        return _merge_heads(o, size)

    outputs = []
    for first in range(0, T, span):
        last = min(first + span, T)
        low = max(0, first - window + 1) if window else 0
        attend = functools.partial(attend_block, low=low, high=last)
        keep = jax.checkpoint if T > SAVED_TOKENS else lambda block: block
        whole, rest = divmod(last - first, block)
        if whole:
            o = jax.lax.map(
                keep(functools.partial(attend, size=block)), first + block * jnp.arange(whole)
            )
            outputs.append(o.swapaxes(0, 1).reshape(o.shape[1], -1, *o.shape[3:]))
        if rest:
            outputs.append(keep(functools.partial(attend, size=rest))(last - rest))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def cached_attention(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    q_position_BT: jax.Array,
    k_position_BS: jax.Array,
    window: int = 0,
    *,
    k_scale_BSG: jax.Array | None = None,
    v_scale_BSG: jax.Array | None = None,
    implementation: native.Choice = "auto",
) -> jax.Array:
    """Attention over a cache whose slots hold the keys of arbitrary positions.

    Args:
      q_BTHK: queries.
      k_BSGK: cached keys, those of the queries' own tokens included; uint16 stands for bfloat16.
      v_BSGK: cached values.
      q_position_BT: position of each query.
      k_position_BS: position of each cached key; negative for an empty slot.
      window: how many latest tokens are seen, the token itself included; 0 for all.
      k_scale_BSG: what int8 keys are multiplied by, float32.
      v_scale_BSG: what int8 values are multiplied by.
      implementation: `cpu` takes few tokens at a time, and isn't differentiable.

    Returns:
      `[B, T, H, K]` in the type of `q_BTHK`.

    Raises:
      ConfigError: the implementation asked for doesn't run here.
    """
    (B, T, H, K), (_, S, G, _) = q_BTHK.shape, k_BSGK.shape
    fits = T <= _KERNEL_TOKENS and K % 16 == 0 and K <= _KERNEL_WIDTH and H <= _KERNEL_HEADS
    types = [(jnp.float32, jnp.float32), (jnp.bfloat16, jnp.bfloat16), (jnp.bfloat16, jnp.uint16)]
    types += [(jnp.float32, jnp.int8), (jnp.bfloat16, jnp.int8)]
    fits &= (q_BTHK.dtype, k_BSGK.dtype) in types
    needs = f"at most {_KERNEL_TOKENS} tokens and heads whose width is a multiple of 16"
    if native.choose(implementation, fits, needs) == "cpu":
        most = min(max(_ALL_PARTS // (B * T), 1), _PARTS)
        parts = B * T * min(-(-S // _PART_SLOTS), most)
        results = (
            jax.ShapeDtypeStruct((parts * H * (K + 2),), jnp.float32),  # working memory
            jax.ShapeDtypeStruct(q_BTHK.shape, q_BTHK.dtype),
        )
        call = jax.ffi.ffi_call("bitttt_cached_attention", results, vmap_method="sequential")
        positions = (q_position_BT.astype(jnp.int32), k_position_BS.astype(jnp.int32))
        scales = () if k_scale_BSG is None else (k_scale_BSG, v_scale_BSG)
        return call(q_BTHK, k_BSGK, v_BSGK, *positions, *scales, window=np.int64(window))[1]
    age_BTS = q_position_BT[:, :, None] - k_position_BS[:, None, :]
    allowed = (k_position_BS[:, None, :] >= 0) & (age_BTS >= 0)
    if window:
        allowed &= age_BTS < window
    allowed = jnp.tile(allowed, (1, H // G, 1))
    q = _split_heads(q_BTHK, G)
    k, v = (
        _in_floats(x, scale, q.dtype).swapaxes(1, 2)
        for x, scale in ((k_BSGK, k_scale_BSG), (v_BSGK, v_scale_BSG))
    )
    return _merge_heads(_attend(q, k, v, allowed), T)


def _in_floats(x_BSGK: jax.Array, scale_BSG: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
    if x_BSGK.dtype == jnp.uint16:
        x_BSGK = jax.lax.bitcast_convert_type(x_BSGK, jnp.bfloat16)
    if scale_BSG is None:
        return x_BSGK.astype(dtype)
    return (x_BSGK.astype(jnp.float32) * scale_BSG[..., None]).astype(dtype)
