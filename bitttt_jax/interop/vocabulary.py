"""Embedding and output head of Hugging Face models, which may be one."""

from __future__ import annotations

from typing import Any

from bitttt_jax.config import ModelConfig
from bitttt_jax.errors import DataError
from bitttt_jax.interop.arrays import Arrays
from bitttt_jax.interop.weights import Weights

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def read_vocabulary(tensors: Weights, arrays: Arrays, config: ModelConfig) -> dict[str, Any]:
    """The parameters `embed` and, where it isn't the embedding, `head`.

    Raises:
      DataError: one is missing or of another shape, or a head that should be the embedding isn't.
    """
    V, D = config.vocab_size, config.dim
    are_there = EMBEDDING in tensors and HEAD in tensors
    if config.tie_embeddings and are_there and not tensors.are_equal(EMBEDDING, HEAD):
        raise DataError(
            f"{tensors.folder} has an output head that isn't its embedding",
            "config.json says that they are the same (tie_word_embeddings)",
        )
    params = {"embed": {"embedding": arrays.table(tensors.floats(EMBEDDING, V, D))}}
    if not config.tie_embeddings:
        params["head"] = {"kernel": arrays.kernel(tensors.floats(HEAD, V, D))}
    return params
