from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.config import ModelConfig, TernaryConfig
from bitttt_jax.layers.inputs import Sequence
from bitttt_jax.models import transformer
from tests.models import reference, samples

LENGTH = 11

# Both backbones of both inner models in float, and every other option at least once.
MODELS = {
    "ttt_linear": samples.config(mixers=("ttt_linear",)),
    "ttt_linear_transformer": samples.config(
        mixers=("ttt_linear",), ttt={"backbone": "transformer"}
    ),
    "ttt_mlp": samples.config(mixers=("ttt_mlp",), tie_embeddings=False, head_dim=6),
    "ttt_mlp_transformer": samples.config(mixers=("ttt_mlp",), ttt={"backbone": "transformer"}),
    "ttt_switches": samples.config(
        mixers=("ttt_linear",), ttt={"backbone": "transformer", "gate": "on", "pre_conv": "on"}
    ),
    "ttt_other_switches": samples.config(
        mixers=("ttt_mlp",), ttt={"gate": "off", "pre_conv": "off"}
    ),
    "attention": samples.config(num_heads=4, num_kv_heads=2, window=5, tie_embeddings=False),
    "ternary": samples.config(
        TernaryConfig(),
        mixers=("ttt_linear", "attention"),
        num_layers=4,
        norm_placement="subln",
        mlp="relu2_glu",
    ),
    "ternary_inner_norm": samples.config(
        TernaryConfig(inner_norm=True, activations=False, path="fake_quant"),
        mixers=("attention", "ttt_mlp"),
        ttt={"form": "primal"},
    ),
    "ternary_norms_inside_and_before": samples.config(
        TernaryConfig(inner_norm=True, outer_norm=True, inner_norm_eps=0.5)
    ),
}


@functools.partial(jax.jit, static_argnums=0)
def read_logits(config: ModelConfig, params: Any, token_BT: np.ndarray) -> jax.Array:
    return transformer.logits(config, params, transformer.read(config, params, token_BT))


@pytest.mark.parametrize("name", MODELS)
def test_the_numpy_model_agrees(name):
    config, token_BT = MODELS[name], samples.tokens(2, LENGTH)
    params = samples.params(config)
    with jax.enable_x64(True):
        own = read_logits(config, params, token_BT)
        assert own.dtype == jnp.float64
    expected = [reference.logits(config, params, token_T) for token_T in token_BT]
    np.testing.assert_allclose(own, expected, rtol=1e-9, atol=1e-9)


def test_the_numpy_model_agrees_in_float32():
    config = dataclasses.replace(MODELS["ttt_linear"], compute_dtype="float32")
    token_BT, params = samples.tokens(2, LENGTH), samples.params(config)
    own = read_logits(config, jax.tree.map(np.float32, params), token_BT)
    assert own.dtype == jnp.float32
    expected = [reference.logits(config, params, token_T) for token_T in token_BT]
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-4)


MIXED = samples.config(
    TernaryConfig(), mixers=("ttt_linear", "attention", "ttt_mlp"), num_layers=6, window=6
)
PACKED_LENGTH = 6 * 4  # mini-batches


@functools.partial(jax.jit, static_argnums=0)
def read_rows(config, params, token_BT, position_BT, segment_BT):
    return transformer.read(config, params, token_BT, Sequence(position_BT, segment_BT))


def test_packed_documents_and_padding_equal_documents_alone():
    """Of convolutions, attention and fast weights, of positions and of quantisation."""
    layouts = [[(1, 8), (2, 12), (3, 3), (0, 1)], [(0, 4), (1, 5), (0, 3), (2, 12)]]
    token_BT, params = samples.tokens(2, PACKED_LENGTH), samples.params(MIXED)
    join = lambda part: np.array([np.concatenate([part(*p) for p in row]) for row in layouts])
    segment_BT = join(lambda number, n: np.full(n, number))
    position_BT = join(lambda number, n: np.arange(n) * (number > 0))
    with jax.enable_x64(True):
        own = np.asarray(read_rows(MIXED, params, token_BT, position_BT, segment_BT))
        assert np.all(np.isfinite(own))
        for row, parts in enumerate(layouts):
            stop = 0
            for number, length in parts:
                start, stop = stop, stop + length
                if number:
                    alone = np.zeros((2, PACKED_LENGTH), int)
                    alone[:, :length] = token_BT[row, start:stop]
                    place = np.tile(np.arange(PACKED_LENGTH), (2, 1))
                    expected = read_rows(MIXED, params, alone, place, np.ones_like(place))
                    np.testing.assert_allclose(
                        own[row, start:stop], expected[0, :length], rtol=0, atol=1e-9
                    )


def test_neither_the_future_nor_other_rows_are_seen_bit_by_bit():
    params, token_BT = samples.params(MIXED), samples.tokens(2, PACKED_LENGTH)
    place, t = np.tile(np.arange(PACKED_LENGTH), (2, 1)), 13
    changed = token_BT.copy()
    changed[0, t] = (changed[0, t] + 1) % samples.VOCABULARY
    with jax.enable_x64(True):
        before, after = (
            np.asarray(read_rows(MIXED, params, tokens, place, np.ones_like(place)))
            for tokens in (token_BT, changed)
        )
    np.testing.assert_array_equal(after[0, :t], before[0, :t])
    np.testing.assert_array_equal(after[1], before[1])
    assert np.all(np.any(after[0, t:] != before[0, t:], axis=-1))


@pytest.mark.parametrize(
    "mixer",
    [
        "attention",
        pytest.param("ttt_linear", marks=pytest.mark.slow),
        pytest.param("ttt_mlp", marks=pytest.mark.slow),
    ],
)
def test_recomputation_changes_no_gradient(mixer):
    token_BT, gradients = samples.tokens(2, 8), []
    for remat in ("none", "dots", "full"):
        config = samples.config(TernaryConfig(), mixers=(mixer,), remat=remat)

        def loss(params, config=config):
            return jnp.sum(jnp.sin(transformer.read(config, params, token_BT)))

        with jax.enable_x64(True):
            gradients.append(jax.jit(jax.grad(loss))(samples.params(config)))
    for expected, *others in zip(*map(jax.tree.leaves, gradients), strict=True):
        assert np.any(np.asarray(expected) != 0)
        for own in others:
            np.testing.assert_allclose(own, expected, rtol=1e-10, atol=1e-10)


def test_unrolling_changes_nothing():
    token_BT = samples.tokens(2, 8)
    plain, unrolled = (samples.config(num_layers=4, scan_unroll=n) for n in (1, 2))
    params = samples.params(plain)
    with jax.enable_x64(True):
        logits = [read_logits(config, params, token_BT) for config in (plain, unrolled)]
    np.testing.assert_allclose(*logits, rtol=1e-12, atol=1e-12)


def test_initial_parameters():
    config = samples.config(
        dim=64,
        mixers=("ttt_mlp",),
        num_layers=1,
        mlp_dim=96,
        tie_embeddings=False,
        vocab_size=100,
        compute_dtype="float32",
    )
    params = jax.jit(functools.partial(transformer.init_params, config))(
        jax.random.key(0, impl="unsafe_rbg")  # compiles fast
    )
    params = jax.tree.map(np.asarray, params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert leaf.dtype == jnp.float32
        name = jax.tree_util.keystr(path)
        if "scale']" in name and "token_scale" not in name:
            np.testing.assert_array_equal(leaf, 1)
        elif "token_scale" in name or "bias']" in name or "['b1']" in name or "['b2']" in name:
            np.testing.assert_array_equal(leaf, 0)
        elif "conv']" in name:
            assert 0.4 < np.std(leaf) < 0.6, name
        else:
            assert 0.8 < np.std(leaf) / config.init_std < 1.2, name
