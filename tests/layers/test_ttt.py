from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.config import ModelConfig, TernaryConfig, TTTConfig
from bitttt_jax.layers.inputs import Anneal, Sequence
from bitttt_jax.layers.ttt import TTT, initial_ttt_state
from tests.ttt import samples

BATCH, LENGTH, DIM = 2, 9, 6
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, DIM))
SEQUENCE = Sequence(np.tile(np.arange(LENGTH), (BATCH, 1)))


def config(backbone: Any = "mamba", ternary: bool = False, **settings: Any) -> ModelConfig:
    """Not a multiple of the mini-batch long; heads are not dim / num_heads wide."""
    return ModelConfig(
        **{
            "dim": DIM,
            "num_heads": 2,
            "head_dim": 4,
            "compute_dtype": "float32",
            "ternary": TernaryConfig(mixer=ternary, mlp=ternary),
            "ttt": TTTConfig(mini_batch=4, mlp_ratio=2, backbone=backbone, remat_group=2),
            **settings,
        }
    )


def random_params(layer: TTT) -> Any:
    """Parameters of which none is at its special initial value, float64."""
    shapes = jax.eval_shape(layer.init, jax.random.key(0), X, SEQUENCE, Anneal())["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape), shapes)
    params["fast_norm"]["scale"] += 1
    params["post_norm"]["scale"] += 1
    params["token_scale"] *= 0.1
    return params


@pytest.mark.parametrize(("is_mlp", "backbone"), [(False, "mamba"), (True, "transformer")], ids=str)
def test_gradients_of_all_parameters_are_those_of_finite_differences(is_mlp, backbone):
    layer = TTT(config(backbone), is_mlp)
    probe = np.random.default_rng(2).normal(size=X.shape)

    def loss(params, x):
        return jnp.sum(probe * layer.apply({"params": params}, x, SEQUENCE, Anneal())[0])

    gradients, _ = samples.gradients_checked(loss, (random_params(layer), X))
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.any(gradient != 0), jax.tree_util.keystr(path)


def test_fast_weights_stay_in_float32_when_activations_are_bfloat16():
    settings = config(ternary=True, compute_dtype="bfloat16")
    layer = TTT(settings, is_mlp=True)
    params = samples.cast(random_params(layer), "float32")

    @jax.jit
    def run(params, x):
        state = initial_ttt_state(settings, params["fast"], BATCH)
        return layer.apply({"params": params}, x, SEQUENCE, Anneal(), state)

    output, after = jax.tree.map(np.asarray, run(params, X.astype(jnp.bfloat16)))
    assert output.dtype == jnp.bfloat16
    assert after.query_tail.dtype == after.key_tail.dtype == jnp.bfloat16
    for leaf in jax.tree.leaves(after.stream):
        assert leaf.dtype == jnp.float32
        assert np.any(leaf != leaf.astype(jnp.bfloat16).astype(np.float32))


@pytest.mark.parametrize("is_mlp", [False, True])
def test_the_warm_up_of_the_inner_rate_is_that_of_the_mlp(is_mlp):
    layer = TTT(config(), is_mlp)
    params = samples.cast(random_params(layer), "float32")

    @jax.jit
    def run(gate_bias, inner_rate):
        gate = {"kernel": jnp.zeros((DIM, 2)), "bias": jnp.full(2, gate_bias)}
        variables = {"params": params | {"learning_rate": gate}}
        x = X.astype(np.float32)
        return layer.apply(variables, x, SEQUENCE, Anneal(inner_rate=inner_rate))[0]

    full, annealed = run(0.0, 1.0), run(0.0, 0.5)
    half = run(-np.log(3), 1.0)  # sigmoid(-log 3) = 1/4, half of sigmoid(0)
    assert np.abs(full - half).max() > 1e-3
    np.testing.assert_allclose(annealed, half if is_mlp else full, rtol=1e-5, atol=1e-5)


def test_the_learning_report_is_made_when_it_is_asked_for():
    layer = TTT(config(), is_mlp=False)
    variables = {"params": samples.cast(random_params(layer), "float32")}
    x, sequence = X[:, :8].astype(np.float32), Sequence(SEQUENCE.position_BT[:, :8])
    apply = lambda **settings: layer.apply(variables, x, sequence, Anneal(), **settings)
    (asked, _), health = jax.eval_shape(lambda: apply(mutable=["health"]))
    assert asked == jax.eval_shape(apply)[0]
    report = health["health"]["ttt"]
    assert {"inner_loss_initial", "inner_loss_updated", "fast_drift", "inner_rate"} <= set(report)
    assert {leaf.shape for leaf in report.values()} == {()}
