"""Packed models against the latent ones they are made from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.config import TernaryConfig
from bitttt_jax.errors import ConfigError
from bitttt_jax.models import packed, parameters, transformer
from bitttt_jax.ops.tables import QuantizedTable
from bitttt_jax.ternary.packing import PackedTernary
from tests.models import samples

MODELS = {
    "attention": {"mixers": ("attention",), "mlp": "relu2_glu", "norm_placement": "subln"},
    "ttt_linear": {"mixers": ("ttt_linear",)},
    "ttt_mlp": {"mixers": ("ttt_mlp",), "tie_embeddings": False},
    "half": {"mixers": ("ttt_linear", "attention")},
    "inner_norm": {"ternary": TernaryConfig(inner_norm=True)},
    "mlp_only": {"ternary": TernaryConfig(mixer=False)},
}


def model(name: str, dtype: str = "float32"):
    settings = {"ternary": TernaryConfig(), "dim": 64, "mlp_dim": 96, **MODELS[name]}
    config = samples.config(compute_dtype=dtype, **settings)
    return config, jax.tree.map(jnp.asarray, samples.params(config, "float32"))


def decode(config, params, token_BT):
    """Logits after a prefill of 5 tokens and each of the steps that follow."""
    B, T = token_BT.shape
    state = transformer.init_state(config, params, B, T)
    prefill = jax.jit(transformer.prefill, static_argnums=0)
    hidden, state = prefill(config, params, state, token_BT[:, :5], jnp.full(B, 5))
    logits = jax.jit(transformer.logits, static_argnums=0)
    outputs = [logits(config, params, hidden[:, -1:])]
    step = jax.jit(transformer.step, static_argnums=0)
    for t in range(5, T):
        hidden, state = step(config, params, state, token_BT[:, t])
        outputs.append(logits(config, params, hidden[:, None]))
    return jnp.concatenate(outputs, axis=1)


@pytest.mark.parametrize("name", MODELS)
def test_a_packed_model_is_the_same_function(name: str):
    config, params = model(name)
    small = packed.pack_params(config, params)
    token_BT = samples.tokens(2, 12)
    read = jax.jit(transformer.read, static_argnums=0)
    expected, found = read(config, params, token_BT), read(config, small, token_BT)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        decode(config, small, token_BT), decode(config, params, token_BT), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("table", ["int8", "int4", "int4x2"])
@pytest.mark.parametrize("name", ["ttt_mlp", "half"])
def test_quantised_tables_change_little(name: str, table: packed.TableType):
    config, params = model(name)
    exact = packed.pack_params(config, params)
    small = packed.pack_params(config, params, table=table)
    token_BT = samples.tokens(2, 12)
    difference = np.asarray(decode(config, small, token_BT) - decode(config, exact, token_BT))
    spread = np.asarray(decode(config, exact, token_BT)).std()
    most, typical = {"int8": (0.3, 0.1), "int4": (1.2, 0.3), "int4x2": (0.3, 0.1)}[table]
    assert 0 < np.abs(difference).max() < most * spread
    assert difference.std() < typical * spread


def test_what_is_packed_and_what_stays():
    config, params = model("ttt_mlp", "bfloat16")
    small = packed.pack_params(config, params, "rows4", "int8")
    group = small[parameters.group_name(1)]["block_0"]
    assert isinstance(group["mlp"]["down"]["kernel"], PackedTernary)
    assert group["mlp"]["down"]["kernel"].shape == (96, 64)
    assert group["mlp"]["down"]["kernel"].layout == "rows4"
    assert group["mixer"]["fast"]["w1"].dtype == jnp.float32
    assert isinstance(small["embed"]["embedding"], QuantizedTable)
    assert small["head"]["kernel"].codes.shape == (samples.VOCABULARY, 64)
    exact = packed.pack_params(config, params)
    assert exact["embed"]["embedding"].dtype == jnp.bfloat16


def test_bytes_are_counted():
    config, params = model("attention")
    small = packed.pack_params(config, params, table="int8")
    counts = packed.byte_counts(small)
    assert sum(counts.values()) == sum(x.nbytes for x in jax.tree.leaves(small))
    assert counts["tables"] == samples.VOCABULARY * (64 + 4)
    # 128 inputs a block: 64 take one, the MLP's 96 too; and a scale each.
    outputs_of_a_layer = 4 * 64 + 2 * 96 + 64
    assert counts["ternary"] == 2 * (32 * outputs_of_a_layer + 4 * 7)


def test_unstacked_groups_are_the_same_model():
    config, params = model("half")
    token_BT = samples.tokens(2, 8)
    unstacked = parameters.unstack(params)
    assert set(unstacked) == {"embed", "final_norm", "group_0"}
    read = jax.jit(transformer.read, static_argnums=0)
    np.testing.assert_allclose(
        read(config, unstacked, token_BT), read(config, params, token_BT), rtol=0, atol=1e-5
    )


def test_models_that_cannot_be_packed_say_why():
    packed.check_packable(samples.config(TernaryConfig(mixer=False)))
    with pytest.raises(ConfigError, match="no ternary weights"):
        packed.check_packable(samples.config())
    floats = TernaryConfig(activations=False, path="fake_quant")
    with pytest.raises(ConfigError, match="activations=False"):
        packed.check_packable(samples.config(floats))
