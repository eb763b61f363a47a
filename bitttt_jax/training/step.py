"""The train step: one pure function from state and batch to state and metrics."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from bitttt_jax.config import BATCH_AXES, TrainConfig
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
    """Mean cross-entropy per prediction that counted, nats."""
    tokens: jax.Array
    """Predictions that counted."""
    read: jax.Array
    """Tokens that the model read, padding apart."""
    grad_norm: jax.Array
    """Global norm before clipping."""
    lr: jax.Array
    """Learning rate."""
    skipped: jax.Array
    """As in the state."""
    skipped_in_row: jax.Array
    """As in the state."""


class _Sums(NamedTuple):
    """Sums over a batch's tokens."""

    loss: jax.Array
    tokens: jax.Array
    read: jax.Array
    grads: Any


def init_state(config: TrainConfig) -> TrainState:
    """The state before the first step, from the config's seed."""
    params = transformer.init_params(config.model, jax.random.key(config.seed))
    zero = jnp.zeros((), jnp.int32)
    moments = optimizer.make_direction(config.optim).init(params)
    return TrainState(zero, params, moments, zero, zero)


def loss_sums(
    config: TrainConfig, params: Any, batch: Batch, anneal: Anneal = Anneal()
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cross-entropy, squared normaliser (both per token, `[B, T]`) and mask of a batch.

    The mask is 1 where a prediction counts: not at padding, and of conversations only in replies.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sequence = Sequence(batch["positions_BT"], batch["segment_ids_BT"])
    hidden_BTD = transformer.read(config.model, params, batch["tokens_BT"], sequence, anneal)
    if mesh.size > 1:
        # Rows stay where they are, and through the scan over depth so do those of every block:
        # left to itself, the partitioner keeps parameters in place and gathers activations.
        hidden_BTD = jax.lax.with_sharding_constraint(hidden_BTD, P(BATCH_AXES))
    targets_BT = batch["targets_BT"]  # negative where the prediction doesn't count
    mask_BT = ((batch["segment_ids_BT"] != 0) & (targets_BT >= 0)).astype(jnp.float32)
    terms = next_token_losses(
        hidden_BTD.reshape(-1, hidden_BTD.shape[-1]),
        transformer.output_head(config.model, params, hidden_BTD.dtype),
        jnp.maximum(targets_BT, 0).reshape(-1),
        mask_BT.reshape(-1),
        chunk=config.optim.loss_chunk * math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES),
    )
    cross_entropy_BT, squared_normalizer_BT = (term.reshape(mask_BT.shape) for term in terms)
    return cross_entropy_BT, squared_normalizer_BT, mask_BT


def train_step(
    config: TrainConfig, state: TrainState, batch: Batch
) -> tuple[TrainState, StepMetrics]:
    """One optimizer update.

    The loss is the mean over the batch's predictions that count, whatever the number of
    accumulation parts. An update whose loss or gradient isn't finite changes nothing but the
    counts.

    Args:
      config: the run's.
      state: parameters, moments, counts.
      batch: int32 arrays of `data.batches.Batch`, all `[batch_size, seq_len]`.

    Returns:
      The new state and the step's metrics.
    """
    anneal = schedules.anneal(config, state.step)
    sums = _accumulate(config, state.params, batch, anneal)
    count = jnp.maximum(sums.tokens, 1.0)
    loss, grads = sums.loss / count, jax.tree.map(lambda g: g / count, sums.grads)
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
    counts = state.skipped, state.skipped_in_row
    return state, StepMetrics(loss, sums.tokens, sums.read, norm, lr, *counts)


def _accumulate(config: TrainConfig, params: Any, batch: Batch, anneal: Anneal) -> _Sums:
    """Sums of a batch, in parts one after the other; they are divided by the token count once."""
    parts = config.optim.accumulation
    if parts == 1:
        return _sums(config, params, batch, anneal)
    # Every part takes rows from all over the batch, so that sharded rows stay on their devices.
    split = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def add(sums: _Sums, part: Batch) -> tuple[_Sums, None]:
        return jax.tree.map(jnp.add, sums, _sums(config, params, part, anneal)), None

    zeros = _Sums(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, zeros, split)[0]


def _sums(config: TrainConfig, params: Any, batch: Batch, anneal: Anneal) -> _Sums:
    """Cross-entropy, token counts, and gradients of the objective: of all tokens together."""

    def objective(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        cross_entropy_BT, squared_normalizer_BT, mask_BT = loss_sums(config, params, batch, anneal)
        loss = total = jnp.sum(cross_entropy_BT)
        if config.optim.z_loss:
            total += config.optim.z_loss * jnp.sum(squared_normalizer_BT)
        return total, (loss, jnp.sum(mask_BT))

    grads, (loss, tokens) = jax.grad(objective, has_aux=True)(params)
    read = jnp.sum((batch["segment_ids_BT"] != 0).astype(jnp.float32))
    return _Sums(loss, tokens, read, grads)
