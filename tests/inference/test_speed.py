from __future__ import annotations

import dataclasses

import pytest

from bitttt_jax.config import ModelConfig
from bitttt_jax.inference import speed

CONFIG = ModelConfig(vocab_size=64, dim=16, num_layers=2, num_heads=2, mlp_dim=32)


@pytest.mark.parametrize("mixer", ["attention", "ttt_linear"])
def test_the_state_of_attention_grows_with_the_context_and_that_of_ttt_does_not(mixer: str):
    config = dataclasses.replace(CONFIG, mixers=(mixer,), compute_dtype="bfloat16")
    params = speed.random_params(config, "int8")
    size = lambda context, batch=1: speed.state_bytes(config, params, context, batch)
    # Keys and values of both blocks, in two bytes.
    grown = 2 * 2 * 1024 * config.dim * 2 if mixer == "attention" else 0
    assert size(2048) - size(1024) == grown
    assert size(1024, 3) == pytest.approx(3 * size(1024), rel=0.01)
