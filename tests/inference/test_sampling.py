from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bitttt_jax.errors import ConfigError
from bitttt_jax.inference.sampling import SamplingConfig, filtered_logits, sample

CONFIGS = [
    SamplingConfig(temperature=1.0),
    SamplingConfig(temperature=0.5),
    SamplingConfig(temperature=3.0),
    SamplingConfig(temperature=1.0, top_k=1),
    SamplingConfig(temperature=1.0, top_k=4),
    SamplingConfig(temperature=1.0, top_k=1000),
    SamplingConfig(temperature=1.0, top_p=0.63),
    SamplingConfig(temperature=0.7, top_p=0.999),
    SamplingConfig(temperature=1.3, top_k=6, top_p=0.77),
    SamplingConfig(temperature=1.0, top_p=1e-9),
]


def probabilities(config: SamplingConfig, logits_V: np.ndarray) -> np.ndarray:
    """The distribution after temperature, top-k and top-p, token by token from the definition."""
    weights = np.exp((logits_V - logits_V.max()) / config.temperature, dtype=np.float64)
    if config.top_k:
        border = sorted(weights, reverse=True)[: config.top_k][-1]
        weights = np.array([w if w >= border else 0.0 for w in weights])
    if config.top_p < 1:
        reached, border = 0.0, 0.0
        for border in sorted(weights / weights.sum(), reverse=True):
            reached += border
            if reached >= config.top_p:
                break
        weights = np.array([w if w / weights.sum() >= border else 0.0 for w in weights])
    return weights / weights.sum()


def random_logits() -> np.ndarray:
    """Rows of distinct logits, of logits with ties, and with impossible tokens at the end."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (6, 12)).astype(np.float32)
    logits[2:4] = np.round(logits[2:4])
    logits[4:, 9:] = -np.inf
    return logits


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_filters_match_the_definition(config: SamplingConfig):
    logits_BV = random_logits()
    filtered = np.asarray(jax.jit(functools.partial(filtered_logits, config))(logits_BV))
    assert not np.isnan(filtered).any()
    expected = np.stack([probabilities(config, row) for row in logits_BV])
    np.testing.assert_array_equal(filtered == -np.inf, expected == 0)
    np.testing.assert_allclose(jax.nn.softmax(filtered, axis=-1), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("config", [CONFIGS[i] for i in (1, 4, 6, 8)], ids=str)
def test_draws_follow_the_distribution(config: SamplingConfig):
    logits_BV, draws = random_logits(), 20_000
    keys = jax.random.split(jax.random.key(1), draws)
    draw = jax.jit(jax.vmap(functools.partial(sample, config), in_axes=(None, 0)))
    tokens_NB = np.asarray(draw(logits_BV, keys))
    assert tokens_NB.dtype == np.int32
    for row, logits_V in enumerate(logits_BV):
        expected = draws * probabilities(config, logits_V)
        found = np.bincount(tokens_NB[:, row], minlength=len(expected))
        assert not found[expected == 0].any()
        often = expected >= 5  # where the approximation by chi-square holds
        rest = [arr[~often].sum() for arr in (found, expected)]
        found, expected = np.append(found[often], rest[0]), np.append(expected[often], rest[1])
        found, expected = found[expected > 0], expected[expected > 0]
        statistic = ((found - expected) ** 2 / expected).sum()
        assert scipy.stats.chi2.sf(statistic, max(len(found) - 1, 1)) > 1e-4


def test_rows_are_drawn_independently():
    keys = jax.random.split(jax.random.key(2), 4000)
    flip = jax.vmap(functools.partial(sample, SamplingConfig(1.0)), in_axes=(None, 0))
    coins_NB = np.asarray(jax.jit(flip)(np.zeros((2, 2), np.float32), keys))
    assert abs(np.mean(coins_NB[:, 0] == coins_NB[:, 1]) - 0.5) < 0.05


def test_temperature_0_takes_the_likeliest_token():
    logits_BV = jnp.array([[0.0, 3.0, 2.0], [5.0, 1.0, 5.0], [-jnp.inf, -1.0, -2.0]])
    for seed in range(3):
        tokens = sample(SamplingConfig(0.0, top_p=0.5), logits_BV, jax.random.key(seed))
        assert tokens.tolist() == [1, 0, 1]


def test_a_small_temperature_is_nearly_greedy():
    logits_BV = jnp.array([[60.0, 61.0, -jnp.inf]])
    filtered = filtered_logits(SamplingConfig(1e-37), logits_BV)
    assert jax.nn.softmax(filtered).tolist() == [[0.0, 1.0, 0.0]]


def test_half_precision_logits_are_filtered_in_float32():
    filtered = filtered_logits(SamplingConfig(0.3, top_p=0.9), jnp.ones((1, 4), jnp.bfloat16))
    assert filtered.dtype == jnp.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": -1}, "top_k must not be negative, got -1"),
        ({"top_p": 0.0}, "top_p must be in (0, 1], got 0.0"),
        ({"top_p": 1.1}, "top_p must be in (0, 1], got 1.1"),
        ({"top_p": float("nan")}, "top_p"),
    ],
)
def test_impossible_settings(values: dict[str, float], message: str):
    with pytest.raises(ConfigError) as caught:
        SamplingConfig(**values)  # type: ignore[arg-type]
    assert message in str(caught.value)
