"""Values that follow the training step: learning rate, weight decay, quantisation, inner rate."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bitttt_jax.config import OptimConfig, TrainConfig
from bitttt_jax.layers.inputs import Anneal


def learning_rate(config: OptimConfig, steps: int, step: jax.Array) -> jax.Array:
    """Learning rate of an update.

    Args:
      config: `constant`, `cosine`, `wsd` (flat, then linear decay over the last
        `decay_fraction`; Hu et al., arXiv:2404.06395), or `two_stage`: two straight lines that
        end at the same point, the second `stage2_lr_ratio` as high and taken from half-way on
        (training notes of BitNet b1.58). All after a linear warm-up.
      steps: length of the run.
      step: number of updates before this one, an integer scalar.

    Returns:
      A float32 scalar.
    """
    warmup = config.warmup_steps
    rise = jnp.minimum((step + 1) / max(warmup, 1), 1.0)
    progress = jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)
    low = config.final_lr_ratio
    if config.schedule == "constant":
        factor = jnp.ones_like(progress)
    elif config.schedule == "cosine":
        factor = low + (1 - low) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    elif config.schedule == "wsd":
        left = jnp.minimum((1 - progress) / config.decay_fraction, 1.0)
        factor = low + (1 - low) * left
    else:
        height = jnp.where(in_second_stage(steps, step), config.stage2_lr_ratio, 1.0)
        factor = low + (height - low) * (1 - progress)
    return (config.lr * rise * factor).astype(jnp.float32)


def weight_decay(config: OptimConfig, steps: int, step: jax.Array) -> jax.Array:
    """Weight decay of an update; the second stage of `two_stage` has none."""
    if config.schedule != "two_stage":
        return jnp.float32(config.weight_decay)
    return jnp.where(in_second_stage(steps, step), 0.0, config.weight_decay).astype(jnp.float32)


def in_second_stage(steps: int, step: jax.Array) -> jax.Array:
    """Whether `two_stage` is past its midpoint."""
    return step >= steps // 2


def anneal(config: TrainConfig, step: jax.Array) -> Anneal:
    """Quantisation strength and inner-rate factor at a step; constants where nothing changes."""
    values = Anneal()
    warmup = config.model.ternary.warmup_steps
    if warmup:
        values = values._replace(quantization=jnp.minimum(step / warmup, 1.0))
    ttt = config.model.ttt
    if "ttt_mlp" in config.model.mixers and ttt.mlp_lr_start != ttt.mlp_lr:
        progress = jnp.minimum(step / max(ttt.mlp_lr_warmup * config.steps, 1), 1.0)
        first = ttt.mlp_lr_start / ttt.mlp_lr
        values = values._replace(inner_rate=first + (1 - first) * progress)
    return values
