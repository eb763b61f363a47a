"""States of single rows in the state of a batch: taken out, put in, and fitted to other sizes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from bitttt_jax.config import ModelConfig
from bitttt_jax.layers.attention import KVCache
from bitttt_jax.models.block import BlockState
from bitttt_jax.models.transformer import ModelState


def _batch_axis(state: ModelState) -> int:
    """Where the rows are in the blocks' arrays: behind the groups, where these are stacked."""
    return 1 if isinstance(state.blocks[0], BlockState) else 0


def _with_blocks(change: Any, state: ModelState, *others: ModelState) -> ModelState:
    """Applies a function of an axis and arrays to all arrays of some states."""
    axis = _batch_axis(state)
    position_B = change(0, state.position_B, *(other.position_B for other in others))
    blocks = jax.tree.map(
        functools.partial(change, axis), state.blocks, *(other.blocks for other in others)
    )
    return ModelState(position_B, blocks)


@jax.jit
def take_row(state: ModelState, row: int) -> ModelState:
    """The state of one row, as a batch of one."""
    take = lambda axis, leaf: jax.lax.dynamic_slice_in_dim(leaf, row, 1, axis)
    return _with_blocks(take, state)


@functools.partial(jax.jit, donate_argnums=0)
def put_row(state: ModelState, row: int, other: ModelState, other_row: int) -> ModelState:
    """A batch's state with one row replaced by a row of another state, of as many slots."""

    def put(axis, leaf, other_leaf):
        new = jax.lax.dynamic_slice_in_dim(other_leaf, other_row, 1, axis)
        return jax.lax.dynamic_update_slice_in_dim(leaf, new, row, axis)

    return _with_blocks(put, state, other)


@jax.jit
def take_rows(state: ModelState, row_B: jax.Array) -> ModelState:
    """A batch of some rows of another one."""
    return _with_blocks(lambda axis, leaf: jnp.take(leaf, row_B, axis=axis), state)


def rewind(state: ModelState, length: int) -> ModelState:
    """The state of one row of attention blocks after its first `length` tokens only.

    What the later tokens left in the caches counts as empty, or as too old for the window
    (`can_rewind`), and is written over.
    """
    return state._replace(position_B=jnp.full_like(state.position_B, length))


def can_rewind(config: ModelConfig, slots: int, position: int, length: int) -> bool:
    """Whether a row that has read `position` tokens can be taken back to its first `length`.

    Args:
      config: the model's; what a TTT mixer has learned can't be taken back.
      slots: of its attention caches.
      position: tokens that it has read.
      length: fewer.
    """
    if length == position:
        return True
    if any(mixer != "attention" for mixer in config.mixers):
        return False
    # Slots that were written again hold keys that count as older by all slots, which the window
    # must leave out.
    return position <= slots or (
        config.window > 0 and position - 1 <= length - config.window + slots
    )


def num_slots(state: ModelState) -> int:
    """Slots of the attention caches; 0 where there are none."""
    axis = _batch_axis(state) + 1
    sizes = {cache.key.shape[axis] for cache in _caches(state)}
    return sizes.pop() if sizes else 0


def with_slots(state: ModelState, slots: int) -> ModelState:
    """A state whose attention caches have so many slots: the latest tokens that fit are kept."""
    return state if num_slots(state) in (0, slots) else _with_slots(state, slots)


@functools.partial(jax.jit, static_argnums=1)
def _with_slots(state: ModelState, slots: int) -> ModelState:
    axis = _batch_axis(state)

    def resize(cache: Any) -> Any:
        if not isinstance(cache, KVCache):
            return cache
        before = cache.key.shape[axis + 1]
        newest_B1 = state.position_B[:, None] - 1
        position_BS = newest_B1 - (newest_B1 - jnp.arange(slots)) % slots
        from_BS = position_BS % before

        def move(leaf):
            index = from_BS.reshape((1,) * axis + from_BS.shape + (1,) * (leaf.ndim - axis - 2))
            return jnp.take_along_axis(leaf, index, axis=axis + 1)

        return jax.tree.map(move, cache)

    is_cache = lambda leaf: isinstance(leaf, KVCache)
    return state._replace(blocks=jax.tree.map(resize, state.blocks, is_leaf=is_cache))


def state_bytes(state: ModelState) -> int:
    """Bytes of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def _caches(state: ModelState) -> list[KVCache]:
    is_cache = lambda leaf: isinstance(leaf, KVCache)
    leaves = jax.tree.leaves(state.blocks, is_leaf=is_cache)
    return [leaf for leaf in leaves if is_cache(leaf)]
