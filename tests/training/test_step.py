from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bitttt_jax.config import TernaryConfig, TrainConfig
from bitttt_jax.layers.inputs import Anneal, Sequence
from bitttt_jax.models import transformer
from bitttt_jax.models.parameters import flatten
from bitttt_jax.training.optimizer import has_weight_decay
from bitttt_jax.training.step import TrainState, init_state, loss_sums, train_step
from tests.training.samples import BATCH, LENGTH, make_batch, make_config, masked

# Compilation is what takes time here, so most tests share this one.
PLAIN = make_config(steps=100, optim={"warmup_steps": 4, "schedule": "wsd"})


@functools.cache
def compiled(config: TrainConfig) -> Any:
    return jax.jit(functools.partial(train_step, config))


@functools.cache
def initial(config: TrainConfig) -> TrainState:
    return jax.jit(functools.partial(init_state, config))()


def run(config: TrainConfig, *batches: Any, state: TrainState | None = None) -> Any:
    """Final state, and the metrics of each step."""
    state = state or initial(config)
    metrics = []
    for batch in batches:
        state, one = compiled(config)(state, batch)
        metrics.append(jax.device_get(one))
    return state, metrics


def assert_same(a: Any, b: Any, **tolerance: float) -> None:
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for path, value in a.items():
        np.testing.assert_allclose(value, b[path], err_msg=path, **{"rtol": 0} | tolerance)


def test_the_loss_is_the_mean_over_tokens():
    batch, state = make_batch(0), initial(PLAIN)

    @jax.jit
    def logits(params):
        sequence = Sequence(batch["positions_BT"], batch["segment_ids_BT"])
        hidden = transformer.read(PLAIN.model, params, batch["tokens_BT"], sequence)
        return transformer.logits(PLAIN.model, params, hidden)

    logits_BTV = np.asarray(logits(state.params), np.float64)
    log_p = logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))
    picked_BT = np.take_along_axis(log_p, batch["targets_BT"][..., None], -1)[..., 0]
    mask_BT = batch["segment_ids_BT"] != 0
    after, (metrics,) = run(PLAIN, batch)
    assert metrics.loss == pytest.approx(-picked_BT[mask_BT].mean(), rel=1e-5)
    assert metrics.tokens == mask_BT.sum() < BATCH * LENGTH
    assert (int(after.step), int(after.skipped), int(after.skipped_in_row)) == (1, 0, 0)


def test_the_step_is_a_pure_function():
    state = initial(PLAIN)
    before = jax.device_get(state)
    first, second = (run(PLAIN, make_batch(0), make_batch(1)) for _ in range(2))
    for a, b in ((first, second), (jax.device_get(state), before)):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_learning_rate_follows_the_step():
    _, metrics = run(PLAIN, *(make_batch(seed) for seed in range(5)))
    rates = np.array([1, 2, 3, 4, 4]) / 4 * PLAIN.optim.lr
    assert [float(m.lr) for m in metrics] == pytest.approx(rates)


def test_training_on_one_batch_learns_it():
    batch = make_batch(0)
    _, metrics = run(PLAIN, *[batch] * 40)
    assert metrics[0].loss > 5.5 and metrics[-1].loss < 0.7 * metrics[0].loss


def accumulated(*mixers: str) -> TrainConfig:
    guards = {"accumulation": 4, "z_loss": 0.3, "clip_norm": 0.01, "weight_decay": 0.0}
    return make_config(*mixers, optim=guards)


@pytest.mark.parametrize("mixer", ["attention", pytest.param("ttt_linear", marks=pytest.mark.slow)])
def test_parts_of_a_batch_z_loss_and_clipping(mixer: str):
    """The parts have different numbers of tokens, but every token counts the same."""
    config, batch = accumulated(mixer), make_batch(0)
    tokens_B = (batch["segment_ids_BT"] != 0).sum(1)
    assert len({tokens_B[part::4].sum() for part in range(4)}) == 4
    state = initial(config)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def objective(params):
        cross_entropy, squared_normalizer, mask = loss_sums(config, params, batch)
        loss, penalty = (x.sum() / mask.sum() for x in (cross_entropy, squared_normalizer))
        return loss + 0.3 * penalty, loss

    (_, loss), grads = objective(state.params)
    norm = float(optax.tree.norm(grads))
    after, (metrics,) = run(config, batch)
    assert metrics.tokens == tokens_B.sum()
    assert metrics.loss == pytest.approx(float(loss), rel=1e-6)
    assert metrics.grad_norm == pytest.approx(norm, rel=1e-5)
    assert norm > 0.01
    first_moment = after.optimizer[0].mu
    clipped = jax.tree.map(lambda g: 0.1 * g * (0.01 / norm), grads)
    # Sums in another order can round an activation to the next of its 8-bit values.
    assert_same(first_moment, clipped, rtol=1e-3, atol=1e-7)


def test_padding_has_no_effect():
    batch, noise = make_batch(0), make_batch(1)
    is_padding = batch["segment_ids_BT"] == 0
    other = {n: np.where(is_padding, noise[n], batch[n]) for n in ("tokens_BT", "targets_BT")}
    (a, _), (b, _) = run(PLAIN, batch), run(PLAIN, batch | other)
    assert_same(a.params, b.params, rtol=1e-6, atol=1e-9)


def test_a_batch_of_padding_only_decays():
    empty = {name: np.zeros_like(values) for name, values in make_batch(0).items()}
    state, (metrics,) = run(PLAIN, empty)
    assert (metrics.loss, metrics.tokens, metrics.grad_norm, metrics.skipped) == (0, 0, 0, 0)
    factor = 1 - float(metrics.lr) * PLAIN.optim.weight_decay
    expected = {
        path: w * (factor if has_weight_decay(path) else 1)
        for path, w in flatten(initial(PLAIN).params).items()
    }
    assert_same(state.params, expected, rtol=1e-6)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_updates_that_are_not_finite_change_nothing_but_the_counts(where: str):
    config = make_config(optim={"name": "muon"})
    good, _ = run(config, make_batch(0))
    table = good.params["embed"]["embedding"]
    if where == "loss":
        part = {"embed": {"embedding": table.at[0, 0].set(jnp.nan)}}
    else:  # large enough for the squares of the gradients to overflow
        part = {"final_norm": {"scale": jnp.full(PLAIN.model.dim, 1e25)}}
    broken = good._replace(params=good.params | part)
    after, metrics = run(config, make_batch(1), make_batch(2), state=broken)
    assert np.isfinite(metrics[0].loss) == (where == "gradient")
    assert not np.isfinite(metrics[0].grad_norm)
    jax.tree.map(
        np.testing.assert_array_equal,
        (after.params, after.optimizer),
        (broken.params, broken.optimizer),
    )
    assert [(int(m.skipped), int(m.skipped_in_row)) for m in metrics] == [(1, 1), (2, 2)]
    assert (int(after.step), int(after.skipped), int(after.skipped_in_row)) == (3, 2, 2)
    repaired, (metric,) = run(config, make_batch(1), state=after._replace(params=good.params))
    assert (int(metric.skipped), int(metric.skipped_in_row)) == (2, 0)
    assert float(jnp.abs(repaired.params["embed"]["embedding"] - table).max()) > 0


def test_quantisation_fades_in():
    fading = TernaryConfig(path="fake_quant", warmup_steps=8)
    config, batch = make_config(ternary=fading, init_std=0.3), make_batch(0)
    state = initial(config)

    @jax.jit
    def expected(strength):
        anneal = Anneal(quantization=strength)
        cross_entropy_BT, _, mask_BT = loss_sums(config, state.params, batch, anneal)
        return cross_entropy_BT.sum() / mask_BT.sum()

    losses = []
    for step, strength in [(0, 0.0), (2, 0.25), (8, 1.0), (9, 1.0)]:
        _, (metrics,) = run(config, batch, state=state._replace(step=jnp.int32(step)))
        assert metrics.loss == pytest.approx(float(expected(strength)), rel=1e-6)
        losses.append(round(float(metrics.loss), 4))
    assert len(set(losses)) == 3 and losses[2] == losses[3]


# --- predictions that don't count -------------------------------------------------------------


def test_the_loss_is_the_mean_over_predictions_that_count():
    plain, batch, state = make_batch(0), masked(make_batch(0), 1), initial(PLAIN)
    losses_BT, _, all_BT = jax.jit(functools.partial(loss_sums, PLAIN))(state.params, plain)
    counts_BT = (batch["targets_BT"] >= 0) & (np.asarray(all_BT) > 0)
    _, (metrics,) = run(PLAIN, batch)
    expected = np.asarray(losses_BT, np.float64)[counts_BT].mean()
    assert metrics.loss == pytest.approx(expected, rel=1e-5)
    assert metrics.tokens == counts_BT.sum() < all_BT.sum()
    assert metrics.read == all_BT.sum() == (batch["segment_ids_BT"] != 0).sum()


def test_targets_that_do_not_count_have_no_effect():
    batch = masked(make_batch(0), 1)
    hidden = batch["targets_BT"] < 0

    def gradient(targets_BT):
        def loss(params):
            losses_BT, squares_BT, _ = loss_sums(PLAIN, params, batch | {"targets_BT": targets_BT})
            return (jnp.where(hidden, 0, losses_BT + squares_BT)).sum()

        return jax.jit(jax.grad(loss))(initial(PLAIN).params)

    with_others = gradient(jnp.where(hidden, 7, batch["targets_BT"]))
    assert_same(gradient(batch["targets_BT"]), with_others, rtol=1e-5, atol=1e-6)


def test_parts_of_a_batch_with_different_counts_give_the_same_update():
    batch = masked(make_batch(0), 1)
    whole, (one,) = run(PLAIN, batch)
    parts = dataclasses.replace(PLAIN, optim=dataclasses.replace(PLAIN.optim, accumulation=4))
    accumulated, (four,) = run(parts, batch)
    assert (four.tokens, four.read) == (one.tokens, one.read)
    assert four.loss == pytest.approx(one.loss, rel=1e-5)
    assert four.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
    # Adam's first update is the sign of the gradient, where that isn't about nothing.
    moments, others = whole.optimizer, accumulated.optimizer
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7), moments, others
    )


def test_a_batch_of_which_nothing_counts_is_no_reason_to_stop():
    batch = make_batch(0)
    nothing = batch | {"targets_BT": np.full_like(batch["targets_BT"], -1)}
    state, (metrics,) = run(PLAIN, nothing)
    assert (metrics.loss, metrics.tokens, metrics.grad_norm) == (0, 0, 0)
    assert int(state.skipped) == 0
