"""Exports read back: the same logits, the same codes, and plain refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type

from bitttt_jax.config import ModelConfig, RopeScalingConfig, TernaryConfig
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import ConfigError, DataError
from bitttt_jax.interop import gguf_export, gguf_model
from bitttt_jax.models import packed, transformer
from bitttt_jax.ternary.packing import PackedTernary, unpack

CONFIG = ModelConfig(
    vocab_size=320,
    dim=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=256,
    compute_dtype="float32",
)
FLOAT = TernaryConfig(mixer=False, mlp=False)
SUBLN = {"norm_placement": "subln"}


def params(config: ModelConfig) -> Any:
    """Random, all norms and biases too; the embedding fits float16."""
    drawn = transformer.init_params(config, jax.random.key(0))
    rng = np.random.default_rng(0)

    def vary(path, leaf):
        name = jax.tree_util.keystr(path)
        if name.endswith(("['scale']", "['bias']")):
            return leaf + 0.2 * rng.standard_normal(leaf.shape, np.float32)
        return leaf.astype(jnp.float16).astype(jnp.float32) * 4

    return jax.tree_util.tree_map_with_path(vary, drawn)


def export(path: Path, config: ModelConfig, kind: gguf_export.Kind, values: Any = None):
    tokenizer = Tokenizer.train(["the theme then"] * 2, 264)
    values = params(config) if values is None else values
    return gguf_export.write(path, config, values, tokenizer, kind, name="x", context=64)


def codes(tree: Any) -> dict[str, np.ndarray]:
    is_packed = lambda leaf: isinstance(leaf, PackedTernary)
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_packed)
    return {
        jax.tree_util.keystr(path): np.asarray(unpack(leaf))
        for path, leaf in found
        if is_packed(leaf)
    }


@pytest.mark.parametrize("kind", ["gguf-f16", "gguf-tq1_0", "gguf-tq2_0", "gguf-i2_s"])
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {}),
        ("bitnet", SUBLN),
        ("bitnet-b1.58", SUBLN | {"mlp": "relu2_glu"}),
    ],
)
def test_ternary_models(tmp_path: Path, kind, architecture: str, changes: dict[str, Any]):
    config = dataclasses.replace(CONFIG, **changes)
    path = tmp_path / "a.gguf"
    if architecture == "bitnet-b1.58" and "tq" in kind:
        with pytest.raises(ConfigError, match=r"squared ReLU is run by bitnet\.cpp only"):
            export(path, config, kind)
        return
    values = params(config)
    done = export(path, config, kind, values)
    assert (done.architecture, done.nbytes) == (architecture, path.stat().st_size)
    assert (done.difference == 0) == (kind == "gguf-i2_s"), "scales are rounded to float16"
    assert done.difference < 0.06
    again = gguf_model.load(path)
    expected = codes(packed.pack_params(config, values))
    assert len(expected) == 14
    found = codes(again.params)
    assert found.keys() == expected.keys()
    for name, code in expected.items():
        np.testing.assert_array_equal(found[name], code, err_msg=name)
    assert again.config == dataclasses.replace(config, head_dim=64, compute_dtype="bfloat16")
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {"qkv_bias": True, "tie_embeddings": False, "head_dim": 32}),
        ("llama", {"rope_scaling": RopeScalingConfig("llama3", 8.0), "rope_theta": 5e5}),
        ("llama", {"rope_scaling": RopeScalingConfig("linear", 2.0)}),
        ("bitnet", SUBLN | {"rope_scaling": RopeScalingConfig("linear", 2.0)}),
    ],
)
def test_float_models(tmp_path: Path, architecture: str, changes: dict[str, Any]):
    config = dataclasses.replace(CONFIG, ternary=FLOAT, **changes)
    path = tmp_path / "a.gguf"
    done = export(path, config, "gguf-f16")
    assert done.architecture == architecture
    assert done.difference < 0.005
    types = {tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    assert types == {Type.F32, Type.F16}


def test_a_model_of_both_kinds(tmp_path: Path):
    """Widths of layers in floats need fit no block."""
    config = dataclasses.replace(CONFIG, ternary=TernaryConfig(mlp=False), mlp_dim=100)
    path = tmp_path / "a.gguf"
    assert export(path, config, "gguf-tq2_0").difference < 0.05
    types = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    assert types["blk.0.attn_q.weight"] == Type.TQ2_0
    assert types["blk.0.ffn_down.weight"] == Type.F16


def test_packed_and_int8_parameters_are_written_too(tmp_path: Path):
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    export(first, CONFIG, "gguf-tq2_0")
    model = gguf_model.load(first, "int8")
    config = dataclasses.replace(model.config, compute_dtype="float32")
    assert export(second, config, "gguf-tq2_0", model.params).difference < 0.05
    before, after = codes(model.params), codes(gguf_model.load(second).params)
    for name, code in before.items():
        np.testing.assert_array_equal(after[name], code)


REFUSED = [
    ({"mixers": ("attention", "ttt_linear")}, "gguf-f16", "block 1 is ttt_linear"),
    ({"ternary": FLOAT}, "gguf-tq2_0", "nothing in this model is ternary"),
    ({"ternary": TernaryConfig(inner_norm=True)}, "gguf-f16", "norms of their own"),
    ({"window": 8}, "gguf-f16", "has a window"),
    (SUBLN | {"mlp_dim": 384}, "gguf-tq1_0", "mlp/down has 384 inputs, and blocks have 256"),
    (SUBLN | {"mlp_dim": 320}, "gguf-i2_s", "mlp/down has 320 inputs, and blocks have 128"),
    ({"num_heads": 3, "head_dim": 32, "num_kv_heads": 1}, "gguf-tq2_0", "mixer/output has 96"),
    ({"mlp": "relu2_glu"}, "gguf-f16", "mlp=relu2_glu with norm_placement=llama"),
    (SUBLN | {"tie_embeddings": False}, "gguf-f16", "an output head of its own"),
    (SUBLN | {"qkv_bias": True}, "gguf-f16", "biases"),
    (SUBLN | {"head_dim": 128}, "gguf-f16", "heads that aren't dim / num_heads wide"),
    (SUBLN | {"rope_scaling": RopeScalingConfig("llama3", 8.0)}, "gguf-f16", "as in Llama 3"),
    (
        {"rope_scaling": RopeScalingConfig("llama3", 8.0, original_context=4096)},
        "gguf-f16",
        "other settings than Llama 3's",
    ),
]


@pytest.mark.parametrize(("changes", "kind", "message"), REFUSED)
def test_what_gguf_cannot_hold_is_refused(changes: dict[str, Any], kind, message: str):
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(ConfigError) as caught:
        gguf_export.architecture(config, kind)
    assert kind in caught.value.what
    assert message in caught.value.why


def test_values_beyond_float16_are_refused_and_leave_nothing(tmp_path: Path):
    config = dataclasses.replace(CONFIG, ternary=FLOAT)
    values = params(config)
    values["embed"]["embedding"] = values["embed"]["embedding"].at[3, 5].set(1e6)
    with pytest.raises(DataError, match=r"token_embd\.weight has the value 1e\+06"):
        export(tmp_path / "a.gguf", config, "gguf-f16", values)
    assert not list(tmp_path.iterdir())


def test_a_file_that_reads_back_otherwise_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(
        gguf_export.gguf_export_tensors, "halves_order", lambda h, k: np.arange(h * k)
    )
    with pytest.raises(DataError, match="isn't the same when it is read back"):
        export(tmp_path / "a.gguf", dataclasses.replace(CONFIG, ternary=FLOAT), "gguf-f16")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(DataError, match="can't be written"):
        export(tmp_path / "none" / "a.gguf", CONFIG, "gguf-i2_s")


@pytest.mark.parametrize(("kind", "width"), [("gguf-tq2_0", 768), ("gguf-i2_s", 768)])
def test_an_mlp_without_a_norm_is_widened_to_whole_blocks(tmp_path: Path, kind, width: int):
    """By weights of 0, which change nothing: the preset's 688 values become 768."""
    config = dataclasses.replace(CONFIG, mlp_dim=688)
    found = export(tmp_path / "a.gguf", config, kind)
    assert found.difference < (1e-6 if kind == "gguf-i2_s" else 0.05)
    again = gguf_model.load(tmp_path / "a.gguf")
    assert again.config.mlp_dim == width
    down = unpack(again.params["group_0"]["block_0"]["mlp"]["down"]["kernel"])
    assert np.any(down[:688]) and not np.any(down[688:])
