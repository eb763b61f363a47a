"""Values that follow the training step: learning rate, weight decay, quantisation, inner rate."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bitttt_jax.config import OptimConfig, TrainConfig
from bitttt_jax.layers.inputs import Anneal


def learning_rate(config: OptimConfig, steps: int, step: jax.Array) -> jax.Array:
    """Learning rate of an update.

    With n updates counted from 1 it rises in a line from 0 (n = 0) to `lr` (n = `warmup_steps`)
    and reaches `lr * final_lr_ratio` with the last one:

    - `constant` stays at `lr`.
    - `cosine` falls along half a cosine (Loshchilov & Hutter, arXiv:1608.03983).
    - `wsd` stays, and falls in a line over the last `decay_fraction` of the steps (Hu et al.,
      arXiv:2404.06395).
    - `two_stage` falls in a line, from half-way on in one that starts `stage2_lr_ratio` as high
      and ends at the same point (training notes of BitNet b1.58).

    Args:
      config: names the shape and its numbers.
      steps: length of the run.
      step: number of updates before this one, an integer scalar.

    Returns:
      A float32 scalar.
    """
    warmup, low, number = config.warmup_steps, config.final_lr_ratio, step + 1
    rise = jnp.minimum(number / max(warmup, 1), 1.0)
    left = 1 - jnp.clip((number - warmup) / max(steps - warmup, 1), 0.0, 1.0)
    if config.schedule == "constant":
        factor = jnp.ones_like(left)
    elif config.schedule == "cosine":
        factor = low + (1 - low) * 0.5 * (1 - jnp.cos(jnp.pi * left))
    elif config.schedule == "wsd":
        left = jnp.minimum((steps - number) / max(config.decay_fraction * steps, 1), 1.0)
        factor = low + (1 - low) * left
    else:
        height = jnp.where(_is_second_stage(steps, step), config.stage2_lr_ratio, 1.0)
        factor = low + (height - low) * left
    return (config.lr * rise * factor).astype(jnp.float32)


def weight_decay(config: OptimConfig, steps: int, step: jax.Array) -> jax.Array:
    """Weight decay of an update, a float32 scalar; the second stage of `two_stage` has none."""
    if config.schedule != "two_stage":
        return jnp.float32(config.weight_decay)
    decay = jnp.where(_is_second_stage(steps, step), 0.0, config.weight_decay)
    return decay.astype(jnp.float32)


def anneal(config: TrainConfig, step: jax.Array) -> Anneal:
    """Quantisation strength and inner-rate factor of an update.

    Both are straight lines: the strength from 0 to 1 over `model.ternary.warmup_steps`, the inner
    rate of TTT-MLP from `mlp_lr_start` to `mlp_lr` over a share `mlp_lr_warmup` of the steps.
    What doesn't change is a plain float, so that nothing is computed for it.

    Args:
      config: the run's.
      step: number of updates before this one, an integer scalar.
    """
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


def _is_second_stage(steps: int, step: jax.Array) -> jax.Array:
    return step >= steps // 2
