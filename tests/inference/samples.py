"""Small models with random weights and the byte tokenizer, and their texts the slow way."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax.config import ModelConfig, TrainConfig, TTTConfig
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.inference.load import abstract_params
from bitttt_jax.inference.model import Model
from bitttt_jax.inference.sampling import RowSampling, SamplingConfig, sample
from bitttt_jax.models import transformer

NUM_TOKENS = 257  # of the model's 320
LENGTH = 128
GREEDY = SamplingConfig(temperature=0)

BASE = ModelConfig(
    vocab_size=320,
    dim=16,
    num_layers=2,
    num_heads=2,
    mlp_dim=32,
    tie_embeddings=False,  # else the likeliest token is mostly the last one
    compute_dtype="float32",
    ttt=TTTConfig(mini_batch=4),
)
CONFIGS = {
    "attention": BASE,
    "window": dataclasses.replace(BASE, window=6),
    "ttt_linear": dataclasses.replace(BASE, mixers=("ttt_linear",)),
    "ttt_mlp": dataclasses.replace(
        BASE, mixers=("ttt_mlp",), ttt=dataclasses.replace(BASE.ttt, backbone="transformer")
    ),
    "hybrid": dataclasses.replace(BASE, mixers=("ttt_linear", "attention")),
}


@functools.cache
def model(name: str, context: int | None = None) -> Model:
    config = CONFIGS[name]
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(leaf.dtype)
    params = jax.tree.map(draw, abstract_params(config))
    run = TrainConfig(model=config)
    return Model(run, params, Tokenizer.bytes(), "random", context=context)


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: ModelConfig, params: Any, text_T: Any, length: Any) -> jax.Array:
    """Logits `[V]` after the first `length` of a text, all of which is read."""
    hidden_BTD = transformer.read(config, params, text_T[None])
    logits_BV = transformer.logits(config, params, hidden_BTD[:, length - 1][:, None])[:, 0]
    return logits_BV.at[:, NUM_TOKENS:].set(-jnp.inf)[0]


def by_rereading(
    model: Model,
    prompt: list[int],
    max_tokens: int,
    sampling: SamplingConfig = GREEDY,
    seed: int = 0,
) -> tuple[list[int], list[np.ndarray]]:
    """Continues a prompt by reading the whole text anew for every token: tokens, and logits."""
    text_T = np.zeros(LENGTH, np.int32)  # the model is causal: what follows has no effect
    text_T[: len(prompt)] = prompt
    choose, logits = jax.jit(sample), []
    for length in range(len(prompt), len(prompt) + max_tokens):
        logits_V = _logits(model.config, model.params, text_T, length)
        seen_V = np.bincount(text_T[:length], minlength=len(logits_V)) > 0
        rows = RowSampling.of([sampling])
        seed_B, position_B = np.array([seed], np.uint32), np.array([length], np.int32)
        text_T[length] = choose(rows, logits_V[None], seen_V[None], seed_B, position_B)[0]
        logits.append(np.asarray(logits_V))
    return text_T[len(prompt) : len(prompt) + max_tokens].tolist(), logits


def random_prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng((length, seed)).integers(0, NUM_TOKENS - 1, length).tolist()
