"""The train step: one pure function from state and batch to state and metrics."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bitttt_jax.config import TrainConfig
from bitttt_jax.layers.inputs import Anneal, Sequence
from bitttt_jax.models import transformer
from bitttt_jax.ops.losses import next_token_losses
from bitttt_jax.training import optimizer, schedules

Batch = dict[str, jax.Array]


class TrainState(NamedTuple):
    """Everything a run needs to go on; the data order follows from `step` alone."""

    step: jax.Array
    """Batches seen."""
    params: Any
    """Latent weights and all other parameters, float32."""
    optimizer: Any
    """Moments."""
    skipped: jax.Array
    """Updates skipped for non-finite values, in all."""
    skipped_in_row: jax.Array
    """Those since the last applied update."""


class StepMetrics(NamedTuple):
    """Scalars of a step."""

    loss: jax.Array
    """Mean cross-entropy per token, nats."""
    tokens: jax.Array
    """Tokens that counted."""
    grad_norm: jax.Array
    """Global norm before clipping."""
    lr: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array


def init_state(config: TrainConfig) -> TrainState:
    """The state before the first step, from the config's seed."""
    params = transformer.init_params(config.model, jax.random.key(config.seed))
    zero = jnp.zeros((), jnp.int32)
    moments = optimizer.make_direction(config.optim).init(params)
    return TrainState(zero, params, moments, zero, zero)


def loss_sums(
    config: TrainConfig, params: Any, batch: Batch, anneal: Anneal = Anneal()
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cross-entropy, squared normaliser (both per token, `[B, T]`) and mask of a batch."""
    sequence = Sequence(batch["positions_BT"], batch["segment_ids_BT"])
    hidden = transformer.read(config.model, params, batch["tokens_BT"], sequence, anneal)
    mask = (batch["segment_ids_BT"] != 0).astype(jnp.float32)
    head, is_VD = transformer.output_head(config.model, params)
    terms = next_token_losses(
        hidden.reshape(-1, hidden.shape[-1]),
        head,
        batch["targets_BT"].reshape(-1),
        mask.reshape(-1),
        chunk=config.optim.loss_chunk,
        head_is_VD=is_VD,
    )
    cross_entropy, squared_normalizer = (term.reshape(mask.shape) for term in terms)
    return cross_entropy, squared_normalizer, mask


def _summed_gradients(config: TrainConfig, params: Any, batch: Batch, anneal: Anneal):
    """Sums over tokens: cross-entropy, token count, and gradients of the objective."""

    def objective(params, part):
        cross_entropy, squared_normalizer, mask = loss_sums(config, params, part, anneal)
        total = jnp.sum(cross_entropy)
        penalty = config.optim.z_loss * jnp.sum(squared_normalizer) if config.optim.z_loss else 0.0
        return total + penalty, (total, jnp.sum(mask))

    gradients = jax.grad(objective, has_aux=True)
    parts = config.optim.accumulation
    if parts == 1:
        grads, (loss, count) = gradients(params, batch)
        return loss, count, grads

    def add(sums, part):
        grads, (loss, count) = gradients(params, part)
        return jax.tree.map(jnp.add, sums, (loss, count, grads)), None

    # Every part takes rows from all over the batch, so that sharded rows stay on their devices.
    split = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch
    )
    zeros = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, zeros, split)[0]


def train_step(
    config: TrainConfig, state: TrainState, batch: Batch
) -> tuple[TrainState, StepMetrics]:
    """One optimizer update.

    The loss is the mean over the batch's tokens, whatever the number of accumulation parts. An
    update whose loss or gradient isn't finite changes nothing but the counts.

    Args:
      config: the run's.
      state: parameters, moments, counts.
      batch: int32 arrays of `data.batches.Batch`, all
        `[batch_size, seq_len]`.

    Returns:
      The new state and the step's metrics.
    """
    anneal = schedules.anneal(config, state.step)
    loss, count, grads = _summed_gradients(config, state.params, batch, anneal)
    count = jnp.maximum(count, 1.0)
    loss, grads = loss / count, jax.tree.map(lambda g: g / count, grads)
    norm = optax.tree.norm(grads)

    directions, moments = optimizer.make_direction(config.optim).update(
        optimizer.clip(grads, norm, config.optim.clip_norm), state.optimizer, state.params
    )
    lr = schedules.learning_rate(config.optim, config.steps, state.step)
    decay = schedules.weight_decay(config.optim, config.steps, state.step)
    params = optimizer.apply(state.params, directions, lr, decay)

    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    params, moments = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (params, moments),
        (state.params, state.optimizer),
    )
    bad = 1 - finite.astype(jnp.int32)
    state = TrainState(
        step=state.step + 1,
        params=params,
        optimizer=moments,
        skipped=state.skipped + bad,
        skipped_in_row=(state.skipped_in_row + 1) * bad,
    )
    metrics = StepMetrics(loss, count, norm, lr, state.skipped, state.skipped_in_row)
    return state, metrics
