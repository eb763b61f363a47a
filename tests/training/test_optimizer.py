from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bitttt_jax.config import OptimConfig
from bitttt_jax.models import transformer
from bitttt_jax.models.parameters import flatten, is_projection
from bitttt_jax.training.optimizer import apply, clip, has_weight_decay, make_direction
from tests.training.samples import make_config

LR, DECAY = 3e-3, 0.1
DECAYING = {
    "embed/embedding",
    "head/kernel",
    *(
        f"blocks/block_{block}/{kernel}/kernel"
        for block, kernels in enumerate(
            [
                ("mixer/query_key", "mixer/value", "mixer/gate", "mixer/output"),
                ("mixer/query", "mixer/key", "mixer/value", "mixer/output"),
            ]
        )
        for kernel in (*kernels, "mlp/gate", "mlp/up", "mlp/down")
    ),
}


@pytest.fixture(scope="module")
def params():
    config = make_config("ttt_linear", "attention", num_layers=4, tie_embeddings=False)
    return jax.jit(lambda: transformer.init_params(config.model, jax.random.key(0)))()


def random_like(tree, seed: int):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), tree)


def steps_of(config: OptimConfig, params, gradients: list):
    """Parameters after some updates."""
    direction = make_direction(config)

    @jax.jit
    def step(params, state, grads):
        directions, state = direction.update(grads, state, params)
        return apply(params, directions, LR, DECAY), state

    state = direction.init(params)
    for grads in gradients:
        params, state = step(params, state, grads)
    return params


def test_what_decays(params):
    assert {path for path in flatten(params) if has_weight_decay(path)} == DECAYING


def test_adamw_is_that_of_optax(params):
    gradients = [random_like(params, seed) for seed in range(3)]
    found = steps_of(OptimConfig(beta1=0.8, beta2=0.97, eps=1e-6), params, gradients)
    mask = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/") in DECAYING, params
    )
    adamw = optax.adamw(LR, 0.8, 0.97, 1e-6, weight_decay=DECAY, mask=mask)
    state, expected = adamw.init(params), params
    for grads in gradients:
        updates, state = adamw.update(grads, state, expected)
        expected = optax.apply_updates(expected, updates)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=2e-8), found, expected
    )


def test_muon_orthogonalises_every_layer_of_hidden_matrices(params):
    direction = make_direction(OptimConfig(name="muon"))
    grads = random_like(params, 0)
    found = flatten(jax.jit(direction.update)(grads, direction.init(params), params)[0])
    hidden = {path: grad for path, grad in flatten(grads).items() if is_projection(path)}
    assert hidden.keys() == DECAYING - {"embed/embedding", "head/kernel"}
    spec = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    reference = optax.contrib.scale_by_muon(weight_dimension_numbers=dict.fromkeys(hidden, spec))
    expected, _ = jax.jit(lambda grads: reference.update(grads, reference.init(grads)))(hidden)
    for path, grads_LMN in hidden.items():
        assert grads_LMN.shape[0] == 2
        scale = 0.2 * max(grads_LMN.shape[1:]) ** 0.5
        unit_LMN = np.asarray(found[path]) / -scale
        np.testing.assert_allclose(unit_LMN, expected[path], rtol=2e-3, atol=1e-4)
        for unit, grad in zip(unit_LMN, np.asarray(grads_LMN), strict=True):
            # In the basis of the gradient's singular vectors: the identity, roughly.
            u, size, vt = np.linalg.svd(grad.astype(np.float64), full_matrices=False)
            inner = u.T @ unit @ vt.T
            large = np.diag(inner)[size > 0.05 * size[0]]
            assert len(large) > 28 and large.min() > 0.6 and large.max() < 1.3
            np.testing.assert_allclose(inner - np.diag(np.diag(inner)), 0, atol=1e-4)


def test_muon_takes_adam_for_the_rest(params):
    gradients = [random_like(params, seed) for seed in range(2)]
    muon = flatten(steps_of(OptimConfig(name="muon"), params, gradients))
    adamw = flatten(steps_of(OptimConfig(), params, gradients))
    for path, value in muon.items():
        if is_projection(path):
            assert np.abs(value - adamw[path]).max() > 1e-3, path
        else:
            np.testing.assert_array_equal(value, adamw[path], err_msg=path)


def test_clip():
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    norm = optax.tree.norm(grads)
    assert float(norm) == 5.0
    clipped = clip(grads, norm, 2.0)
    np.testing.assert_allclose(clipped["a"], [1.2, 0.0], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"], [[1.6]], rtol=1e-6)
    for limit in (0.0, 5.0, 7.0):
        jax.tree.map(np.testing.assert_array_equal, clip(grads, norm, limit), grads)
    zeros = jax.tree.map(jnp.zeros_like, grads)
    jax.tree.map(np.testing.assert_array_equal, clip(zeros, optax.tree.norm(zeros), 1.0), zeros)
