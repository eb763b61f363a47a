from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.config import ModelConfig, TTTConfig
from bitttt_jax.errors import ConfigError
from bitttt_jax.inference import generate as generation
from bitttt_jax.inference.generate import cache_slots, generate
from bitttt_jax.inference.load import abstract_params
from bitttt_jax.inference.sampling import SamplingConfig, sample
from bitttt_jax.models import transformer

NUM_TOKENS = 50  # of the model's 64
LENGTH = 64
GREEDY = SamplingConfig(temperature=0)

BASE = ModelConfig(
    vocab_size=64,
    dim=16,
    num_layers=2,
    num_heads=2,
    mlp_dim=32,
    tie_embeddings=False,  # else the likeliest token is mostly the last one
    compute_dtype="float32",
    ttt=TTTConfig(mini_batch=4),
)
MODELS = {
    "attention": BASE,
    "window": dataclasses.replace(BASE, window=6),
    "ttt_linear": dataclasses.replace(BASE, mixers=("ttt_linear",)),
    "ttt_mlp": dataclasses.replace(
        BASE, mixers=("ttt_mlp",), ttt=dataclasses.replace(BASE.ttt, backbone="transformer")
    ),
    "hybrid": dataclasses.replace(BASE, mixers=("ttt_linear", "attention")),
}


@functools.cache
def params_of(config: ModelConfig) -> Any:
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(leaf.dtype)
    return jax.tree.map(draw, abstract_params(config))


@functools.partial(jax.jit, static_argnums=(0, 1))
def next_token(
    config: ModelConfig, sampling: SamplingConfig, params: Any, text_T: Any, length: Any, seed: Any
) -> jax.Array:
    """The token after the first `length` of a text, all of which is read."""
    hidden_BTD = transformer.read(config, params, text_T[None])
    logits_BV = transformer.logits(config, params, hidden_BTD[:, length - 1][:, None])[:, 0]
    logits_BV = logits_BV.at[:, NUM_TOKENS:].set(-jnp.inf)
    return sample(sampling, logits_BV, jax.random.fold_in(jax.random.key(seed), length))[0]


def by_rereading(
    config: ModelConfig,
    prompt: list[int],
    max_tokens: int,
    sampling: SamplingConfig = GREEDY,
    seed: int = 0,
) -> list[int]:
    """Continues a prompt by reading the whole text anew for every token."""
    text_T = np.zeros(LENGTH, np.int32)  # the model is causal: what follows has no effect
    text_T[: len(prompt)] = prompt
    for length in range(len(prompt), len(prompt) + max_tokens):
        text_T[length] = next_token(config, sampling, params_of(config), text_T, length, seed)
    return text_T[len(prompt) : len(prompt) + max_tokens].tolist()


def continued(config: ModelConfig, prompt: list[int], max_tokens: int, **settings: Any):
    settings = {"sampling": GREEDY, "num_tokens": NUM_TOKENS, **settings}
    return list(generate(config, params_of(config), np.array(prompt), max_tokens, **settings))


def random_prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(0, NUM_TOKENS, length).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_equals_reading_everything_at_every_step(name: str):
    config, prompt = MODELS[name], random_prompt(21)
    assert continued(config, prompt, 14) == by_rereading(config, prompt, 14)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 50])
def test_padding_of_the_prompt_has_no_effect(length: int):
    config, prompt = MODELS["hybrid"], random_prompt(length)
    assert continued(config, prompt, 6) == by_rereading(config, prompt, 6)


@pytest.mark.parametrize("name", ["window", "hybrid"])
def test_a_long_prompt_is_read_in_parts(name: str, monkeypatch: pytest.MonkeyPatch):
    """The caches are as small as they may be: those with a window are written over."""
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 16)
    monkeypatch.setattr(generation, "_CACHE_STEP", 1)
    config, prompt = MODELS[name], random_prompt(41)
    assert cache_slots(config, 55) == (6 + 16 - 1 if name == "window" else 55)
    assert continued(config, prompt, 14) == by_rereading(config, prompt, 14)


def test_draws_depend_on_seed_and_position_only():
    config, prompt, sampling = MODELS["hybrid"], random_prompt(20), SamplingConfig(1.0, top_p=0.9)
    long = continued(config, prompt, 20, sampling=sampling, seed=3)
    assert long == by_rereading(config, prompt, 20, sampling, seed=3)
    assert continued(config, prompt, 8, sampling=sampling, seed=3) == long[:8]
    assert continued(config, prompt + long[:5], 15, sampling=sampling, seed=3) == long[5:]
    assert continued(config, prompt, 20, sampling=sampling, seed=4) != long


def test_a_stop_token_ends_the_text_unseen():
    config, prompt = MODELS["hybrid"], random_prompt(20)
    tokens = continued(config, prompt, 10, sampling=SamplingConfig(1.0))
    stop = tokens[4]
    found = continued(config, prompt, 10, sampling=SamplingConfig(1.0), stop_ids=(63, stop))
    assert found == tokens[: tokens.index(stop)]


def test_tokens_beyond_the_tokenizer_are_impossible():
    config = MODELS["attention"]
    params = params_of(config)
    hidden_D = jax.jit(functools.partial(transformer.read, config))(params, jnp.array([[1]]))[0, 0]
    kernel = params["head"]["kernel"].copy()
    kernel[:, 60] = 100 * hidden_D
    params = params | {"head": {"kernel": kernel}}
    run = functools.partial(generate, config, params, np.array([1]), 1, sampling=GREEDY)
    assert list(run()) == [60]
    (token,) = run(num_tokens=NUM_TOKENS)
    assert token < NUM_TOKENS


def test_nothing_is_generated_where_nothing_is_asked_for():
    assert continued(MODELS["attention"], [1], 0) == []


def test_cache_slots():
    assert cache_slots(BASE, 1) == 256
    assert cache_slots(BASE, 256) == 256
    assert cache_slots(BASE, 257) == 512
    window = dataclasses.replace(BASE, window=100)
    assert cache_slots(window, 200) == 256
    # A call of 512 tokens needs window - 1 more.
    assert cache_slots(window, 10_000) == 768 >= 512 + 99


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        ([], 1, "no tokens"),
        ([1, NUM_TOKENS, 2], 1, "token 50, and the tokenizer has 50 tokens"),
        ([-1], 1, "token -1"),
        ([1], 2**31, "at most"),
    ],
)
def test_impossible_prompts(prompt: list[int], max_tokens: int, message: str):
    with pytest.raises(ConfigError, match=message):
        continued(MODELS["attention"], prompt, max_tokens)
