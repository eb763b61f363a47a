from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from bitttt_jax.config import MeshConfig, ModelConfig, TernaryConfig, TTTConfig
from bitttt_jax.distributed.mesh import make_mesh
from bitttt_jax.distributed.rules import RULES, find_spec, shardings
from bitttt_jax.errors import ConfigError
from bitttt_jax.models.transformer import init_params

SMALL: dict[str, Any] = {"vocab_size": 64, "dim": 32, "num_heads": 4, "mlp_dim": 64}
MODELS = {
    "every mixer": ModelConfig(
        **SMALL,
        num_layers=3,
        mixers=("attention", "ttt_linear", "ttt_mlp"),
        norm_placement="subln",
        tie_embeddings=False,
    ),
    "transformer backbone": ModelConfig(
        **SMALL,
        num_layers=2,
        mixers=("ttt_linear", "ttt_mlp"),
        ttt=TTTConfig(backbone="transformer"),
    ),
    "biases": ModelConfig(**SMALL, num_layers=1, qkv_bias=True),
    "inner norms": ModelConfig(
        **SMALL,
        num_layers=2,
        mixers=("attention", "ttt_linear"),
        mlp="relu2_glu",
        ternary=TernaryConfig(inner_norm=True),
    ),
}


def abstract_params(config: ModelConfig) -> Any:
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def paths(tree: Any) -> list[str]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in flat]


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_named_by_exactly_one_rule(name: str):
    for path in paths(abstract_params(MODELS[name])):
        named = [pattern for pattern, _ in RULES if re.fullmatch(pattern, path)]
        assert len(named) == 1, (path, named)


def test_every_rule_names_a_parameter():
    known = {path for config in MODELS.values() for path in paths(abstract_params(config))}
    unused = [p for p, _ in RULES if not any(re.fullmatch(p, path) for path in known)]
    assert unused == []


@pytest.mark.parametrize(
    ("path", "spec"),
    [
        ("embed/embedding", P("tensor", "fsdp")),
        ("head/kernel", P("fsdp", "tensor")),
        ("blocks/block_0/mixer/query/kernel", P(None, "fsdp", "tensor")),
        ("blocks/block_11/mixer/gate/kernel", P(None, "fsdp", "tensor")),
        ("blocks/block_0/mlp/up/kernel", P(None, "fsdp", "tensor")),
        ("blocks/block_0/mixer/output/kernel", P(None, "tensor", "fsdp")),
        ("blocks/block_0/mlp/down/kernel", P(None, "tensor", "fsdp")),
        ("blocks/block_0/mixer/fast/w1", P(None, "tensor")),
        ("blocks/block_0/mixer_norm/scale", P()),
        ("opt_state/1/0/mu/blocks/block_0/mlp/down/kernel", P(None, "tensor", "fsdp")),
        ("params/final_norm/scale", P()),
    ],
)
def test_known_paths(path: str, spec: P):
    assert find_spec(path) == spec


@pytest.mark.parametrize(
    "path",
    [
        "blocks/block_0/mixer/forgotten/kernel",
        "blocks/block_0/mlp/up/kernel/extra",
        "xblocks/block_0/mlp/up/kernel",
        "blocks/block_x/mlp/up/kernel",
        "head",
    ],
)
def test_unknown_path_is_an_error(path: str):
    with pytest.raises(ValueError, match="no sharding rule names"):
        find_spec(path)


def test_moments_lie_like_their_parameters_and_scalars_everywhere():
    params = abstract_params(MODELS["every mixer"])
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1)))
    state = {
        "step": jax.ShapeDtypeStruct((), jnp.int32),
        "params": params,
        "opt_state": jax.eval_shape(optimizer.init, params),
    }
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    result = shardings(state, mesh)
    assert result["step"].spec == P()
    adam = result["opt_state"][1][0]
    assert adam.count.spec == P()
    assert adam.mu == adam.nu == result["params"]
    assert result["params"]["embed"]["embedding"].spec == P("tensor", "fsdp")


def test_parameters_spread_over_the_mesh():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    config = MODELS["every mixer"]
    params = jax.tree.map(
        lambda leaf: np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape),
        abstract_params(config),
    )
    spread = jax.device_put(params, shardings(params, mesh))
    kernel = spread["blocks"]["block_0"]["mlp"]["down"]["kernel"]  # [G, F, D] = [1, 64, 32]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(1, 16, 16)}
    fast = spread["blocks"]["block_1"]["mixer"]["fast"]["w1"]  # [G, H, K, K]
    assert {shard.data.shape for shard in fast.addressable_shards} == {(1, 1, 8, 8)}
    jax.tree.map(np.testing.assert_array_equal, spread, params)


def test_axis_that_does_not_divide_is_named():
    params = {"embed": {"embedding": jax.ShapeDtypeStruct((64, 36), jnp.float32)}}
    with pytest.raises(ConfigError) as caught:
        shardings(params, make_mesh(MeshConfig(fsdp=8)))
    message = str(caught.value)
    assert "mesh.fsdp=8" in message
    assert "embed/embedding" in message
    assert "(64, 36)" in message
