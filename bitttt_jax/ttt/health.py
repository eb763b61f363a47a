"""How well the inner learning learns: its loss before, during and after, and how far it moved."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bitttt_jax.ttt.dual import dual
from bitttt_jax.ttt.inner import FastWeights, reconstruction_loss
from bitttt_jax.ttt.state import Learner, Views, broadcast_fast, initial_state


def learning_report(learner: Learner, views: Views) -> dict[str, jax.Array]:
    """Averages over all tokens and heads of rows that are read from fresh fast weights.

    Args:
      learner: outer parameters.
      views: tokens of whole mini-batches, one document a row.

    Returns:
      Scalars: `inner_loss_initial`, `inner_loss_current` and `inner_loss_updated` are the
      reconstruction loss of a mini-batch's tokens at the initial fast weights, at those before the
      mini-batch, and at those after it; `fast_drift` is the norm of the final fast weights
      relative to the initial ones; `inner_rate` is the mean inner learning rate.
    """
    mini_batch = learner.token_scale_b.shape[0]
    B, T = views.rate.shape[:2]
    fresh = broadcast_fast(learner.fast, B)

    def loss_at(fast: FastWeights, part: Views) -> jax.Array:
        per_token = jax.vmap(reconstruction_loss, (None, None, 0, 0))
        per_head = jax.vmap(per_token, (0, 0, 1, 1))
        per_row = jax.vmap(per_head, (0, None, 0, 0))
        return jnp.mean(per_row(fast, learner.norm, part.key, part.value))

    def read(state, part):
        _, after = dual(learner, part, state)
        losses = [loss_at(fast, part) for fast in (fresh, state.fast, after.fast)]
        return after, jnp.stack(losses)

    parts = jax.tree.map(
        lambda x: x.reshape(B, T // mini_batch, mini_batch, *x.shape[2:]).swapaxes(0, 1), views
    )
    final, losses = jax.lax.scan(read, initial_state(learner.fast, B), parts)
    initial, current, updated = losses.mean(axis=0)
    return {
        "inner_loss_initial": initial,
        "inner_loss_current": current,
        "inner_loss_updated": updated,
        "fast_drift": _norm(final.fast) / _norm(fresh),
        "inner_rate": jnp.mean(views.rate),
    }


def _norm(fast: FastWeights) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(w * w) for w in fast.values()))
