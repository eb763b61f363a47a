"""Cross-entropy of the next token without ever holding all logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class TokenLosses(NamedTuple):
    """Per-token terms, each float32 `[N]`; zero where the mask is zero."""

    cross_entropy: jax.Array
    """Negative log-likelihood of the target in nats."""
    squared_normalizer: jax.Array
    """Square of the log-normaliser of the logits (the z-loss before its weight)."""


def next_token_losses(
    x_ND: jax.Array,
    head: Callable[[jax.Array], jax.Array],
    target_N: jax.Array,
    mask_N: jax.Array,
    *,
    chunk: int,
    vocab_size: int | None = None,
) -> TokenLosses:
    """Losses of N tokens, computed `chunk` tokens at a time and recomputed in the backward pass.

    Args:
      x_ND: final hidden states.
      head: makes logits `[M, V]` of hidden states `[M, D]`.
      target_N: next tokens.
      mask_N: 1 where a token counts, 0 elsewhere.
      chunk: tokens whose logits exist at once.
      vocab_size: logits that are of real tokens; the padding beyond gets no probability.

    Returns:
      The loss terms; `next_token_losses(...).cross_entropy.sum() / mask_N.sum()` is the mean loss.
    """

    def losses(x, target, mask):
        logits = head(x)
        if vocab_size is not None:
            logits = jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, -1e30)
        normalizer = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
        return TokenLosses((normalizer - picked) * mask, normalizer**2 * mask)

    count = x_ND.shape[0]
    if count <= chunk:
        return losses(x_ND, target_N, mask_N)
    pad = -count % chunk
    chunks = jax.tree.map(
        lambda a: jnp.pad(a, [(0, pad)] + [(0, 0)] * (a.ndim - 1)).reshape(-1, chunk, *a.shape[1:]),
        (x_ND, target_N, mask_N),
    )
    terms = jax.lax.map(lambda c: jax.checkpoint(losses)(*c), chunks)
    return jax.tree.map(lambda t: t.reshape(-1)[:count], terms)
