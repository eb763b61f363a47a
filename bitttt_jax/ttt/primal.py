"""TTT token by token, with `jax.grad` of the inner loss: the definition, and the decode step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bitttt_jax.ttt import inner
from bitttt_jax.ttt.state import Learner, StreamState, Views


def _read_token(learner: Learner, start: jax.Array, state: StreamState, token):
    """Learns from one token of one sequence, then reads it out with what was learned."""
    view, place, valid = token
    mini_batch = learner.token_scale_b.shape[0]
    first = place == 0

    def one_head(fast0, norm, fast, grad, query, key, value, rate):
        fast, grad = jax.tree.map(
            lambda fresh, old: jnp.where(start & first, fresh, old),
            (fast0, jax.tree.map(jnp.zeros_like, grad)),
            (fast, grad),
        )
        step = jax.grad(inner.reconstruction_loss)(fast, norm, key, value)
        grad = jax.tree.map(lambda g, s: g + rate * s, grad, step)
        updated = jax.tree.map(lambda w, g: w - learner.token_scale_b[place] * g, fast, grad)
        return (fast, grad, updated), inner.read_out(updated, norm, query)

    (fast, grad, updated), output = jax.vmap(one_head)(
        learner.fast, learner.norm, state.fast, state.grad, *view
    )
    last = place == mini_batch - 1
    after = StreamState(
        jax.tree.map(lambda u, f: jnp.where(last, u, f), updated, fast),
        jax.tree.map(lambda g: jnp.where(last, 0.0, g), grad),
    )
    kept = jax.tree.map(lambda new, old: jnp.where(valid, new, old), after, state)
    return kept, output


def primal(
    learner: Learner,
    views: Views,
    state: StreamState,
    position_BT: jax.Array,
    valid_BT: jax.Array,
) -> tuple[jax.Array, StreamState]:
    """Reads T tokens of B sequences one at a time (section 2.4, equation 6, online form).

    Args:
      learner: outer parameters.
      views: tokens; their type is the type of the arithmetic.
      state: where the sequences stand.
      position_BT: position of each token in its document; 0 starts over from `learner.fast`.
      valid_BT: False for padding, which changes nothing.

    Returns:
      Outputs `[B, T, H, K]` (arbitrary where not valid) and the state after the last valid token.
    """
    mini_batch = learner.token_scale_b.shape[0]

    def one_sequence(state, view_TH, position_T, valid_T):
        def step(state, token):
            view, position, valid = token
            return _read_token(learner, position == 0, state, (view, position % mini_batch, valid))

        state, output_THK = jax.lax.scan(step, state, (view_TH, position_T, valid_T))
        return output_THK, state

    return jax.vmap(one_sequence)(state, views, position_BT, valid_BT)
