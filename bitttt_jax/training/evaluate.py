"""Loss on held-out text: perplexity, bits per byte with its standard error, loss by position."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax.config import TrainConfig
from bitttt_jax.training.step import Batch, loss_sums


class EvalSums(NamedTuple):
    """Sums over the tokens of a batch."""

    loss_B: jax.Array
    """Cross-entropy of each row, nats."""
    tokens_B: jax.Array
    """Counted tokens of each row."""
    loss_T: jax.Array
    """Cross-entropy at each position of the documents."""
    tokens_T: jax.Array
    """Counted tokens at each position."""


class Evaluation(NamedTuple):
    """Loss on held-out text."""

    loss: float
    """Mean cross-entropy per token, nats."""
    standard_error: float
    """Standard error of `loss`, from the spread between rows."""
    tokens: int
    text_bytes: float
    """Bytes of text that the tokens stand for."""
    loss_by_position: list[tuple[int, float]]
    """(first position, mean loss) for positions in documents, in buckets that double."""

    @property
    def perplexity(self) -> float:
        """`exp(loss)`."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of text; comparable across tokenizers."""
        return self.loss / math.log(2) * self.tokens / self.text_bytes

    @property
    def bits_per_byte_error(self) -> float:
        """Standard error of `bits_per_byte`."""
        return self.standard_error / math.log(2) * self.tokens / self.text_bytes


def eval_step(config: TrainConfig, params: Any, batch: Batch) -> EvalSums:
    """Sums of one batch, by row and by position in the document (rows of a batch: B, T)."""
    cross_entropy_BT, _, mask_BT = loss_sums(config, params, batch)
    by_position = lambda values: jnp.zeros(values.shape[1]).at[batch["positions_BT"]].add(values)
    return EvalSums(
        cross_entropy_BT.sum(1), mask_BT.sum(1), by_position(cross_entropy_BT), by_position(mask_BT)
    )


def summarize(sums: Iterable[EvalSums], bytes_per_token: float) -> Evaluation:
    """Adds up the batches of an evaluation.

    Args:
      sums: what `eval_step` returned for each batch.
      bytes_per_token: bytes of text that a token stands for, on average over the split.
    """
    batches = [jax.tree.map(np.asarray, s) for s in sums]
    loss_B = np.concatenate([s.loss_B for s in batches]).astype(np.float64)
    tokens_B = np.concatenate([s.tokens_B for s in batches]).astype(np.float64)
    tokens = tokens_B.sum()
    loss = loss_B.sum() / tokens
    # The mean is a ratio of sums over rows: its spread is that of the rows' residuals.
    rows = int((tokens_B > 0).sum())
    residual = (loss_B - loss * tokens_B) ** 2
    error = math.sqrt(residual.sum() * rows / max(rows - 1, 1)) / tokens
    loss_T = sum(s.loss_T.astype(np.float64) for s in batches)
    tokens_T = sum(s.tokens_T.astype(np.float64) for s in batches)
    return Evaluation(
        loss, error, int(tokens), tokens * bytes_per_token, _buckets(loss_T, tokens_T)
    )


def _buckets(loss_T: np.ndarray, tokens_T: np.ndarray) -> list[tuple[int, float]]:
    edges = [0, *(2**i for i in range(4, 40) if 2**i < len(loss_T)), len(loss_T)]
    return [
        (low, float(loss_T[low:high].sum() / tokens_T[low:high].sum()))
        for low, high in zip(edges, edges[1:], strict=False)
        if tokens_T[low:high].sum() > 0
    ]
