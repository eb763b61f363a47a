"""How well the inner learning learns: its loss before, during and after, and how far it moved."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bitttt_jax.ttt.dual import dual
from bitttt_jax.ttt.inner import FastWeights, reconstruction_loss
from bitttt_jax.ttt.state import Learner, StreamState, Views, broadcast_fast


def learning_report(learner: Learner, views: Views) -> dict[str, jax.Array]:
    """Averages over all tokens and heads of rows that are read from fresh fast weights.

    Args:
      learner: outer parameters.
      views: tokens of whole mini-batches, one document a row.

    Returns:
      Scalars: `inner_loss_initial`, `inner_loss_current` and `inner_loss_updated` are means of
      `inner_losses`; `fast_drift` is the norm of the final fast weights relative to the initial
      ones; `inner_rate` is the mean inner learning rate.
    """
    fresh = broadcast_fast(learner.fast, views.rate.shape[0])
    final, losses_BN3 = _read_mini_batches(learner, views, fresh)
    initial, current, updated = losses_BN3.mean(axis=(0, 1))
    return {
        "inner_loss_initial": initial,
        "inner_loss_current": current,
        "inner_loss_updated": updated,
        "fast_drift": _norm(final) / _norm(fresh),
        "inner_rate": jnp.mean(views.rate),
    }


def inner_losses(learner: Learner, views: Views, fast: FastWeights) -> jax.Array:
    """The reconstruction loss of each mini-batch, averaged over its tokens and the heads.

    Args:
      learner: outer parameters.
      views: T tokens, the first of them at the beginning of a mini-batch of b.
      fast: fast weights before the first one, `[B, H, ...]`.

    Returns:
      `[B, T // b, 3]`: at the initial fast weights, at those before the mini-batch, and at those
      after it. Tokens of a mini-batch that isn't whole are left out.
    """
    mini_batch = learner.token_scale_b.shape[0]
    whole = views.rate.shape[1] // mini_batch * mini_batch
    return _read_mini_batches(learner, jax.tree.map(lambda x: x[:, :whole], views), fast)[1]


def _read_mini_batches(
    learner: Learner, views: Views, fast: FastWeights
) -> tuple[FastWeights, jax.Array]:
    """The fast weights after whole mini-batches, and the three losses of each, `[B, N, 3]`."""
    mini_batch = learner.token_scale_b.shape[0]
    B, T = views.rate.shape[:2]
    fresh = broadcast_fast(learner.fast, B)

    def loss_at(fast: FastWeights, part: Views) -> jax.Array:
        per_token = jax.vmap(reconstruction_loss, (None, None, 0, 0))
        per_head = jax.vmap(per_token, (0, 0, 1, 1))
        per_row = jax.vmap(per_head, (0, None, 0, 0))
        return jnp.mean(per_row(fast, learner.norm, part.key, part.value), axis=(1, 2))

    def read(state, part):
        _, after = dual(learner, part, state)
        losses = [loss_at(fast, part) for fast in (fresh, state.fast, after.fast)]
        return after, jnp.stack(losses, axis=-1)

    parts = jax.tree.map(
        lambda x: x.reshape(B, T // mini_batch, mini_batch, *x.shape[2:]).swapaxes(0, 1), views
    )
    start = StreamState(fast, jax.tree.map(jnp.zeros_like, fast))
    final, losses_NB3 = jax.lax.scan(read, start, parts)
    return final.fast, losses_NB3.swapaxes(0, 1)


def _norm(fast: FastWeights) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(w * w) for w in fast.values()))
