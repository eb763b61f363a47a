"""Loss on held-out text: perplexity, bits per byte and loss by position, with their errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bitttt_jax.config import MeshConfig, TrainConfig
from bitttt_jax.data.batches import Batches
from bitttt_jax.distributed import mesh as meshes
from bitttt_jax.training.step import Batch, loss_sums

# Positions are told apart in buckets: the first 16, and then each twice as far as the one before.
_BUCKET_STARTS = (0, *(2**i for i in range(4, 31)))


class EvalSums(NamedTuple):
    """Sums over a batch's tokens by row and by bucket of positions (P of them)."""

    loss_BP: jax.Array
    """Cross-entropy, nats."""
    tokens_BP: jax.Array
    """Counted tokens."""


class Mean(NamedTuple):
    """A mean loss."""

    loss: float
    """Mean cross-entropy per token, nats."""
    standard_error: float
    """Standard error of `loss`, from the spread between rows; NaN with a single row."""
    tokens: int
    """Tokens that it is the mean of."""


class Evaluation(NamedTuple):
    """Loss on held-out text."""

    loss: float
    """Mean cross-entropy per token, nats."""
    standard_error: float
    """Standard error of `loss`, from the spread between rows; NaN with a single row."""
    tokens: int
    """Counted predictions: all of a text, of conversations those in replies."""
    text_bytes: float
    """Bytes of text that these stand for."""
    by_position: dict[int, Mean]
    """Means over the tokens that have at least so many tokens of their document before them in
    the row, but fewer than the next key."""

    @property
    def perplexity(self) -> float:
        """`exp(loss)`, infinite where a float can't hold it."""
        return math.inf if self.loss > 700 else math.exp(self.loss)

    @property
    def perplexity_error(self) -> float:
        """Standard error of `perplexity`, to first order."""
        return self.perplexity * self.standard_error

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of text; comparable across tokenizers; NaN where
        nothing counted."""
        return self.loss * self.tokens / math.log(2) / (self.text_bytes or math.nan)

    @property
    def bits_per_byte_error(self) -> float:
        """Standard error of `bits_per_byte`."""
        return self.standard_error * self.tokens / math.log(2) / (self.text_bytes or math.nan)


def eval_step(config: TrainConfig, params: Any, batch: Batch) -> EvalSums:
    """Sums of one batch, each row and bucket of positions by itself."""
    cross_entropy_BT, _, mask_BT = loss_sums(config, params, batch)
    starts = np.array([start for start in _BUCKET_STARTS if start < mask_BT.shape[1]])
    bucket_BT = jnp.searchsorted(starts, batch["positions_BT"], side="right") - 1
    inside_BTP = bucket_BT[:, :, None] == jnp.arange(len(starts))
    add_up = lambda values_BT: jnp.sum(jnp.where(inside_BTP, values_BT[:, :, None], 0.0), axis=1)
    return EvalSums(add_up(cross_entropy_BT), add_up(mask_BT))


_compiled_step = jax.jit(eval_step, static_argnums=0)


def evaluate(
    step: Callable[[Any], EvalSums],
    batches: Iterable[Any],
    bytes_per_token: float,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Measures the loss on batches.

    Args:
      step: returns `eval_step` of the model for one of the batches.
      batches: rows of text.
      bytes_per_token: bytes of text for a prediction that counts, on average over the split.
      progress: told the number of batches done.
    """
    sums: list[EvalSums] = []
    waiting: EvalSums | None = None
    # One batch is always under way, so that the devices don't wait for its results to be fetched.
    for batch in batches:
        running = step(batch)
        if waiting is not None:
            sums.append(jax.tree.map(np.asarray, waiting))
            progress(len(sums))
        waiting = running
    if waiting is not None:
        sums.append(jax.tree.map(np.asarray, waiting))
        progress(len(sums))
    return summarize(sums, bytes_per_token)


def measure(
    config: TrainConfig,
    params: Any,
    splits: Sequence[Batches],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Measures the loss on every token of some splits, on the devices of this process.

    Args:
      config: of the model and of the rows that the splits were opened with.
      params: the model's parameters.
      splits: text, as rows.
      progress: told the number of batches done, and how many there are.
    """
    batch_size, devices = config.data.batch_size, jax.local_devices()
    devices = devices[: math.gcd(batch_size, len(devices))]  # as many as can share the rows
    mesh = meshes.make_mesh(MeshConfig(), devices)
    params = jax.device_put(params, NamedSharding(mesh, P()))
    total = sum(split.num_validation_batches for split in splits)
    return evaluate(
        lambda rows: _compiled_step(config, params, meshes.to_global(rows, mesh, batch_size)),
        itertools.chain.from_iterable(split.validation_windows() for split in splits),
        sum(split.predicted_bytes for split in splits)
        / max(sum(split.num_predictions for split in splits), 1),
        lambda done: progress(done, total),
    )


def summarize(sums: Iterable[EvalSums], bytes_per_token: float) -> Evaluation:
    """Adds up the batches of an evaluation.

    Args:
      sums: what `eval_step` returned for each batch; at least one token in all.
      bytes_per_token: bytes of text for a prediction that counts, on average over the split.
    """
    parts = list(sums)
    loss_RP = np.concatenate([part.loss_BP for part in parts]).astype(np.float64)
    tokens_RP = np.concatenate([part.tokens_BP for part in parts]).astype(np.float64)
    total = _mean(loss_RP.sum(1), tokens_RP.sum(1))
    by_position = {
        start: _mean(loss_R, tokens_R)
        for start, loss_R, tokens_R in zip(_BUCKET_STARTS, loss_RP.T, tokens_RP.T, strict=False)
        if tokens_R.any()
    }
    return Evaluation(*total, total.tokens * bytes_per_token, by_position)


def _mean(loss_R: np.ndarray, tokens_R: np.ndarray) -> Mean:
    """Mean loss per token of R rows, whose numbers of tokens differ."""
    tokens, rows = tokens_R.sum(), np.count_nonzero(tokens_R)
    with np.errstate(invalid="ignore"):  # a diverged model's losses may be infinite
        loss = loss_R.sum() / tokens
        # A ratio of sums over rows: to first order its spread is that of the rows' residuals.
        residuals = np.sum((loss_R - loss * tokens_R) ** 2)
    error = math.sqrt(residuals * rows / (rows - 1)) / tokens if rows > 1 else math.nan
    return Mean(float(loss), float(error), int(tokens))
