"""What the kernels of the dual form read, and fast weights as one array."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax.ttt.inner import FastWeights


class Inputs(NamedTuple):
    """What the kernels read; all but `restart` are differentiable and float32."""

    query: jax.Array
    """`[B, T, H, K]`, as are `key` and `value`; T is a multiple of b."""
    key: jax.Array
    value: jax.Array
    rate: jax.Array
    """Learning rates `[B, T, H]`, 0 for padding."""
    token_scale: jax.Array
    """`[b]`."""
    norm_scale: jax.Array
    """`[H, K]`, as is `norm_bias`."""
    norm_bias: jax.Array
    initial: jax.Array
    """Weights before the first mini-batch, `flatten`ed: `[B, H, M]`."""
    fresh: jax.Array
    """Weights where a document starts, `[H, M]`."""
    restart: jax.Array | np.ndarray
    """Whether a mini-batch starts a document, bool `[B, N]`."""


def flatten(fast: FastWeights) -> jax.Array:
    """All weights of a head in one dimension, each matrix followed by its bias."""
    parts = [fast[name] for name in ("w1", "b1", "w2", "b2") if name in fast]
    lead = fast["b1"].shape[:-1]
    return jnp.concatenate([part.reshape(*lead, -1) for part in parts], axis=-1)


def unflatten(flat: jax.Array, like: FastWeights) -> FastWeights:
    """Undoes `flatten`; the last dimensions of each weight are those of `like`."""
    lead, start, fast = flat.shape[:-1], 0, {}
    for name in ("w1", "b1", "w2", "b2"):
        if name in like:
            shape = like[name].shape[-2:] if name.startswith("w") else like[name].shape[-1:]
            stop = start + int(np.prod(shape))
            fast[name] = flat[..., start:stop].reshape(*lead, *shape)
            start = stop
    return fast
