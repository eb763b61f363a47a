"""The one public entry to test-time training: reads tokens, returns outputs and the new state."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from bitttt_jax.ops.norm import layer_norm
from bitttt_jax.ttt.dual import dual
from bitttt_jax.ttt.inner import NORM_EPS
from bitttt_jax.ttt.kernels.dispatch import Choice
from bitttt_jax.ttt.primal import primal
from bitttt_jax.ttt.state import Learner, StreamState, Views, initial_state

Form = Literal["dual", "primal"]


def read_documents(
    learner: Learner,
    views: Views,
    position_BT: jax.Array,
    segment_BT: jax.Array | None = None,
    *,
    form: Form = "dual",
    remat_group: int = 0,
    implementation: Choice = "auto",
) -> jax.Array:
    """Reads rows of packed documents, each from fresh fast weights: what training computes.

    Args:
      learner: outer parameters.
      views: tokens; float32 or float64.
      position_BT: each token's position in its document.
      segment_BT: document number of each token, 0 for padding; None for one document a row.
        In the dual form every document starts at a multiple of the mini-batch, as
        `data.batches` lays them; the outputs of a row where one doesn't are NaN.
      form: `dual`, or `primal` with the definition's per-token gradients.
      remat_group: mini-batches between two saved fast weights (dual form); 0 saves everything.
      implementation: of the dual form.

    Returns:
      Outputs `[B, T, H, K]`, finite but arbitrary at padding.
    """
    B, T = position_BT.shape
    mini_batch = learner.token_scale_b.shape[0]
    state = initial_state(learner.fast, B)
    valid_BT = jnp.ones((B, T), bool) if segment_BT is None else segment_BT != 0
    if form == "primal":
        return primal(learner, views, state, position_BT, valid_BT)[0]
    short = -T % mini_batch
    views = views._replace(rate=jnp.where(valid_BT[..., None], views.rate, 0.0))
    padded = _pad_time(views, short)
    restart_BN = None
    if segment_BT is not None:
        start_BT = (position_BT == 0) & valid_BT
        restart_BN = jnp.pad(start_BT, ((0, 0), (0, short)))[:, ::mini_batch]
    z, _ = dual(
        learner,
        padded,
        state,
        restart_BN,
        remat_group=remat_group,
        implementation=implementation,
    )
    output = _read_out(learner, views.query, z[:, :T])
    if segment_BT is None:
        return output
    astray_BT = start_BT & (jnp.arange(T) % mini_batch != 0)
    return jnp.where(jnp.any(astray_BT, axis=1)[:, None, None, None], jnp.nan, output)


def read_stream(
    learner: Learner,
    views: Views,
    state: StreamState,
    position_B: jax.Array,
    length_B: jax.Array,
    *,
    form: Form = "dual",
) -> tuple[jax.Array, StreamState]:
    """Reads the next tokens of running sequences: any split into calls gives the same outputs.

    Args:
      learner: outer parameters.
      views: tokens, valid in each row up to its length.
      state: where the sequences stand.
      position_B: tokens that each sequence has read so far.
      length_B: number of valid tokens of each row; 0 leaves its state as it is.
      form: `dual` or `primal`; a single token is always read in the primal form.

    Returns:
      Outputs `[B, T, H, K]`, finite but arbitrary beyond `length_B`, and the new state.
    """
    T = views.query.shape[1]
    mini_batch = learner.token_scale_b.shape[0]
    place_T = jnp.arange(T)
    valid_BT = place_T < length_B[:, None]
    if form == "primal" or T == 1:
        return primal(learner, views, state, position_B[:, None] + place_T, valid_BT)

    # Slots aligned with the mini-batches: each row is shifted by its place in the current one.
    shift_B = position_B % mini_batch
    slots = -(-(T + mini_batch - 1) // mini_batch) * mini_batch
    from_BS = jnp.arange(slots) - shift_B[:, None]
    filled_BS = (from_BS >= 0) & (from_BS < length_B[:, None])
    aligned = jax.tree.map(lambda x: _take_time(x, jnp.clip(from_BS, 0, T - 1)), views)
    aligned = aligned._replace(rate=jnp.where(filled_BS[..., None], aligned.rate, 0.0))
    complete_BN = filled_BS[:, mini_batch - 1 :: mini_batch]
    z, state = dual(learner, aligned, state, complete_BN=complete_BN)
    z = _take_time(z, place_T + shift_B[:, None])
    return _read_out(learner, views.query, z), state


def _read_out(learner: Learner, query: jax.Array, z: jax.Array) -> jax.Array:
    return query + layer_norm(z, learner.norm.scale, learner.norm.bias, NORM_EPS)


def _pad_time(views: Views, count: int) -> Views:
    if count == 0:
        return views
    return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, count)] + [(0, 0)] * (x.ndim - 2)), views)


def _take_time(x: jax.Array, index_BT: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, index_BT.reshape(*index_BT.shape, *(1,) * (x.ndim - 2)), axis=1)
