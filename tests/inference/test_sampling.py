from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bitttt_jax.errors import ConfigError
from bitttt_jax.inference.sampling import (
    RowSampling,
    SamplingConfig,
    filtered_logits,
    penalised,
    sample,
)

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
    SamplingConfig(temperature=1.0, min_p=0.2),
    SamplingConfig(temperature=0.8, min_p=1.0),
    SamplingConfig(temperature=1.5, top_k=7, top_p=0.9, min_p=0.1),
]


def probabilities(config: SamplingConfig, logits_V: np.ndarray) -> np.ndarray:
    """The distribution after all filters, token by token from the definition."""
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
    weights[weights < (1 - 1e-6) * config.min_p * weights.max()] = 0
    return weights / weights.sum()


def random_logits() -> np.ndarray:
    """Rows of distinct logits, of logits with ties, and with impossible tokens at the end."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (6, 12)).astype(np.float32)
    logits[2:4] = np.round(logits[2:4])
    logits[4:, 9:] = -np.inf
    return logits


def draw(
    configs: list[SamplingConfig], logits_BV: np.ndarray, seed_B: np.ndarray, position: int = 0
) -> np.ndarray:
    seen_BV = np.zeros(logits_BV.shape, bool)
    position_B = np.full(len(configs), position, np.int32)
    return np.asarray(SAMPLE(RowSampling.of(configs), logits_BV, seen_BV, seed_B, position_B))


FILTER, SAMPLE = jax.jit(filtered_logits), jax.jit(sample)


def test_filters_match_the_definition():
    """All settings at once, each in rows of its own."""
    logits_BV = np.tile(random_logits(), (len(CONFIGS), 1))
    configs = [config for config in CONFIGS for _ in random_logits()]
    filtered = np.asarray(FILTER(RowSampling.of(configs), logits_BV))
    assert not np.isnan(filtered).any()
    for config, found, logits_V in zip(configs, filtered, logits_BV, strict=True):
        expected = probabilities(config, logits_V)
        np.testing.assert_array_equal(found == -np.inf, expected == 0, err_msg=str(config))
        softmax = jax.nn.softmax(found)
        np.testing.assert_allclose(softmax, expected, rtol=1e-5, atol=1e-7, err_msg=str(config))


@pytest.mark.parametrize("config", [CONFIGS[i] for i in (0, 1, 2, 4, 6, 8, 10, 12)], ids=str)
def test_a_row_is_filtered_alone_as_among_others(config: SamplingConfig):
    logits_BV = random_logits()
    together = FILTER(RowSampling.of([config, *CONFIGS[:5]]), logits_BV)
    np.testing.assert_array_equal(together[:1], FILTER(RowSampling.of([config]), logits_BV[:1]))


def test_many_tokens_are_cut_as_a_sort_cuts_them():
    logits_V = np.random.default_rng(3).normal(0, 3, 5000).astype(np.float32)
    for top_k in (1, 2, 77, 4999, 5000, 6000):
        kept = FILTER(RowSampling.of([SamplingConfig(1.0, top_k=top_k)]), logits_V[None])[0]
        expected = np.sort(logits_V)[::-1][: min(top_k, 5000)]
        assert np.count_nonzero(kept > -np.inf) == len(expected)
        np.testing.assert_array_equal(np.asarray(kept) > -np.inf, logits_V >= expected[-1])


@pytest.mark.parametrize("config", [CONFIGS[i] for i in (1, 4, 6, 8, 10)], ids=str)
def test_draws_follow_the_distribution(config: SamplingConfig):
    draws = 20_000
    for logits_V in random_logits():
        logits_NV = np.broadcast_to(logits_V, (draws, len(logits_V)))
        tokens_N = draw([config] * draws, logits_NV, np.arange(draws, dtype=np.uint32))
        assert tokens_N.dtype == np.int32
        expected = draws * probabilities(config, logits_V)
        found = np.bincount(tokens_N, minlength=len(expected))
        assert not found[expected == 0].any()
        often = expected >= 5  # where the approximation by chi-square holds
        rest = [arr[~often].sum() for arr in (found, expected)]
        found, expected = np.append(found[often], rest[0]), np.append(expected[often], rest[1])
        found, expected = found[expected > 0], expected[expected > 0]
        statistic = ((found - expected) ** 2 / expected).sum()
        assert scipy.stats.chi2.sf(statistic, max(len(found) - 1, 1)) > 1e-4


def test_draws_of_other_seeds_and_positions_are_independent():
    coins = SamplingConfig(1.0)
    logits_NV, seed_N = np.zeros((4000, 2), np.float32), np.arange(4000, dtype=np.uint32)
    by_position = [draw([coins] * 4000, logits_NV, seed_N, position) for position in (1, 2)]
    for one, other in (by_position, (by_position[0][:-1], by_position[0][1:])):
        assert abs(np.mean(one == other) - 0.5) < 0.05


def test_temperature_0_takes_the_likeliest_token():
    logits_BV = np.array([[0.0, 3.0, 2.0], [5.0, 1.0, 5.0], [-np.inf, -1.0, -2.0]], np.float32)
    greedy, drawn = SamplingConfig(0.0, top_p=0.5), SamplingConfig(1.0, top_k=1)
    for seed in range(3):
        seed_B = np.full(3, seed, np.uint32)
        assert draw([greedy] * 3, logits_BV, seed_B).tolist() == [1, 0, 1]
        assert draw([drawn, greedy, drawn], logits_BV, seed_B).tolist() == [1, 0, 1]


@pytest.mark.parametrize("penalty", [1.3, 0.5])
def test_the_penalty_lowers_the_logits_of_tokens_that_were_there(penalty: float):
    logits_BV = np.array([[2.0, -1.0, 0.0, 1.9, -np.inf]] * 2, np.float32)
    seen_BV = np.array([[True, True, True, False, True], [False] * 5])
    rows = RowSampling.of([SamplingConfig(1.0, repetition_penalty=penalty)] * 2)
    expected = [[2 / penalty, -penalty, 0, 1.9, -np.inf], logits_BV[1].tolist()]
    found = jax.jit(penalised)(rows, logits_BV, seen_BV)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    likeliest = SAMPLE(
        rows._replace(temperature=np.zeros(2, np.float32)),
        logits_BV,
        seen_BV,
        np.zeros(2, np.uint32),
        np.zeros(2, np.int32),
    )
    assert likeliest.tolist() == [3 if penalty > 1 else 0, 0]


def test_a_small_temperature_is_nearly_greedy():
    logits_BV = jnp.array([[60.0, 61.0, -jnp.inf]])
    filtered = filtered_logits(RowSampling.of([SamplingConfig(1e-37)]), logits_BV)
    assert jax.nn.softmax(filtered).tolist() == [[0.0, 1.0, 0.0]]


def test_half_precision_logits_are_filtered_in_float32():
    rows = RowSampling.of([SamplingConfig(0.3, top_p=0.9)])
    assert filtered_logits(rows, jnp.ones((1, 4), jnp.bfloat16)).dtype == jnp.float32


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
        ({"min_p": 1.1}, "min_p must be in [0, 1], got 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be finite and positive, got 0.0"),
    ],
)
def test_impossible_settings(values: dict[str, float], message: str):
    with pytest.raises(ConfigError) as caught:
        SamplingConfig(**values)  # type: ignore[arg-type]
    assert message in str(caught.value)
