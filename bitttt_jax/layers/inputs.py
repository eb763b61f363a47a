"""What every block is told besides the residual stream."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sequence(NamedTuple):
    """Where the tokens of a `[B, T]` batch stand."""

    position_BT: jax.Array
    """Position of each token in its document."""
    segment_BT: jax.Array | None = None
    """Document number within the row, 0 for padding; None for one document a row."""

    @property
    def length_B(self) -> jax.Array:
        """Number of tokens that aren't padding."""
        if self.segment_BT is None:
            B, T = self.position_BT.shape
            return jnp.full(B, T)
        return jnp.sum(self.segment_BT != 0, axis=1)


class Anneal(NamedTuple):
    """Values that follow the training step; the defaults are those of a trained model."""

    quantization: jax.Array | float = 1.0
    """How far ternary layers are quantised, from 0 (float) to 1."""
    inner_rate: jax.Array | float = 1.0
    """Factor on the inner learning rate of `ttt_mlp`."""
