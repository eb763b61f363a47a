from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

from bitttt_jax.config import OptimConfig, TernaryConfig, TTTConfig
from bitttt_jax.layers.inputs import Anneal
from bitttt_jax.training.schedules import anneal, learning_rate, weight_decay
from tests.training.samples import make_config

STEPS, WARMUP, PEAK, LOW = 100, 10, 2e-3, 0.1


def rates(schedule: str, **changes: float) -> np.ndarray:
    """The rates of the updates 1 to `STEPS`."""
    settings = {"lr": PEAK, "warmup_steps": WARMUP, "final_lr_ratio": LOW} | changes
    config = OptimConfig(schedule=schedule, **settings)  # type: ignore[arg-type]
    return np.asarray(jax.vmap(lambda step: learning_rate(config, STEPS, step))(np.arange(STEPS)))


def expected_rate(schedule: str, n: int) -> float:
    """Of update n, counted from 1."""
    if n <= WARMUP:
        return PEAK * n / WARMUP * (falling(schedule, WARMUP) if schedule != "constant" else 1)
    return PEAK * falling(schedule, n)


def falling(schedule: str, n: int) -> float:
    done = (n - WARMUP) / (STEPS - WARMUP)
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return LOW + (1 - LOW) * math.cos(math.pi / 2 * done) ** 2
    if schedule == "wsd":
        return 1.0 if n <= 75 else LOW + (1 - LOW) * (STEPS - n) / 25
    height = 1.0 if n <= STEPS // 2 else 0.5
    return height + (LOW - height) * done


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd", "two_stage"])
def test_closed_forms(schedule: str):
    expected = [expected_rate(schedule, n) for n in range(1, STEPS + 1)]
    found = rates(schedule, decay_fraction=0.25, stage2_lr_ratio=0.5)
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    assert found.dtype == np.float32
    assert found[WARMUP - 1] == np.float32(PEAK) == found.max()
    if schedule != "constant":
        assert found[-1] == pytest.approx(PEAK * LOW, rel=1e-6)


def test_the_second_stage_is_lower_and_has_no_weight_decay():
    found = rates("two_stage", stage2_lr_ratio=0.6667, final_lr_ratio=0.0)
    before, after = found[STEPS // 2 - 1], found[STEPS // 2]
    assert after / before == pytest.approx(0.6667 * 49 / 50, rel=1e-5)
    config = OptimConfig(schedule="two_stage", weight_decay=0.1)
    decay = [float(weight_decay(config, STEPS, step)) for step in (0, 49, 50, 99)]
    assert decay == pytest.approx([0.1, 0.1, 0.0, 0.0])
    constant = dataclasses.replace(config, schedule="wsd")
    assert float(weight_decay(constant, STEPS, 99)) == np.float32(0.1)  # type: ignore[arg-type]


def test_no_warm_up_and_nothing_but_warm_up():
    assert rates("constant", warmup_steps=0)[0] == np.float32(PEAK)
    rising = rates("cosine", warmup_steps=STEPS)
    np.testing.assert_allclose(rising, PEAK * np.arange(1, STEPS + 1) / STEPS, rtol=1e-6)
    assert np.isfinite(rates("wsd", decay_fraction=0.0)).all()


def test_anneal():
    plain = make_config("ttt_linear")
    assert anneal(plain, 3) == Anneal()  # type: ignore[arg-type]
    fading = TernaryConfig(path="fake_quant", warmup_steps=8)
    config = make_config("ttt_mlp", ternary=fading, steps=40)
    ttt = TTTConfig(mini_batch=8, mlp_lr=0.4, mlp_lr_start=0.1, mlp_lr_warmup=0.5)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, ttt=ttt))
    values = [anneal(config, step) for step in (0, 2, 8, 10, 20, 39)]  # type: ignore[arg-type]
    assert [float(v.quantization) for v in values] == pytest.approx([0, 0.25, 1, 1, 1, 1])
    inner = [0.25, 0.325, 0.55, 0.625, 1, 1]
    assert [float(v.inner_rate) for v in values] == pytest.approx(inner)
