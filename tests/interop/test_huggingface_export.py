from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bitttt_jax.config import ModelConfig, RopeScalingConfig, TernaryConfig
from bitttt_jax.data import safetensors
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import ConfigError, DataError
from bitttt_jax.interop import export_tensors, huggingface
from bitttt_jax.interop import huggingface_export as module
from bitttt_jax.interop.foreign import ForeignModel
from bitttt_jax.models import packed
from tests.models import samples as models

TERNARY = TernaryConfig()
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_kv_heads": 1, "tie_embeddings": False, "head_dim": 6},
    "llama3": {"rope_scaling": RopeScalingConfig("llama3", 8.0, 1.0, 4.0, 32), "mlp": "relu2_glu"},
    "qwen2": {"qkv_bias": True, "window": 5},
    "mistral": {"window": 5},
    "bitnet": {"norm_placement": "subln", "mlp": "relu2_glu"},
    "ternary": {"ternary": TERNARY, "num_kv_heads": 1},
    "ternary bitnet": {"ternary": TERNARY, "norm_placement": "subln", "mlp": "relu2_glu"},
    "ternary qwen2": {"ternary": TERNARY, "qkv_bias": True},
    "ternary mlp": {"ternary": TernaryConfig(mixer=False)},
    "ternary with norms inside": {
        "ternary": TernaryConfig(inner_norm=True, outer_norm=True, inner_norm_eps=1e-3)
    },
    "ttt": {"num_layers": 2, "mixers": ("ttt_linear", "ttt_mlp"), "tie_embeddings": False},
    "ternary ttt": {
        "ternary": TERNARY,
        "num_layers": 2,
        "mixers": ("ttt_linear", "attention"),
        "norm_placement": "subln",
        "ttt": {"backbone": "transformer", "gate": "on"},
    },
    "ttt with float inputs": {
        "ternary": TernaryConfig(activations=False, path="fake_quant", inner_norm=True),
        "mixers": ("ttt_linear",),
    },
}


def sample(context: int | None = 64, **settings: Any) -> ForeignModel:
    config = dataclasses.replace(
        models.config(**({"dim": 16, "num_layers": 1} | settings)),
        compute_dtype="float32",
        vocab_size=257,
    )
    params = jax.tree.map(np.float32, models.params(config))
    tokenizer = Tokenizer.bytes()
    return ForeignModel(config, params, tokenizer, "a test", context, "{{ messages }}")


def pack(model: ForeignModel) -> ForeignModel:
    return dataclasses.replace(model, params=packed.pack_params(model.config, model.params))


def codes(model: ForeignModel) -> dict[str, np.ndarray]:
    weights = export_tensors.weights(model.params)
    is_ternary = module.parameters.is_ternary
    return {
        path: export_tensors.ternary(leaf)[0]
        for path, leaf in weights.items()
        if is_ternary(model.config, path)
    }


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read(tmp_path: Path, name: str):
    model = sample(**MODELS[name])
    report = module.export(tmp_path / "out", model, "hf", dtype="float32")
    # But for codes on the border between two, in float32.
    assert report.difference < (1e-5 if "ternary" not in MODELS[name] else 1e-2)
    assert set(report.files) == {path.name for path in (tmp_path / "out").iterdir()}
    again = huggingface.load(tmp_path / "out", "float32")
    assert again.context == 64 and again.chat_template == "{{ messages }}"
    expected = codes(model)
    for path, found in codes(again).items():
        np.testing.assert_array_equal(found, expected[path])
    unchanged = {"init_std", "ttt", "ternary"} if "ttt" not in name else set()
    values = {field.name for field in dataclasses.fields(ModelConfig)} - unchanged
    for value in values - {"num_kv_heads", "head_dim"}:
        assert getattr(again.config, value) == getattr(model.config, value), value


@pytest.mark.parametrize(
    ("name", "is_packed", "form"),
    [
        ("ternary", False, "hf-packed"),
        ("ternary", True, "hf"),
        ("ternary bitnet", False, "hf"),
        ("ternary bitnet", True, "hf-packed"),
        ("ternary with norms inside", False, "hf-packed"),
    ],
)
def test_ternary_codes_survive_in_bfloat16(
    tmp_path: Path, name: str, is_packed: bool, form: module.Form
):
    model = sample(**MODELS[name])
    expected = codes(model)
    module.export(tmp_path / "out", pack(model) if is_packed else model, form)
    again = huggingface.load(tmp_path / "out")
    found = codes(again)
    assert found.keys() == expected.keys() and len(found) == 7
    scales = export_tensors.weights(model.params)
    for path in found:
        np.testing.assert_array_equal(found[path], expected[path])
        scale = export_tensors.scale_of(export_tensors.weights(again.params)[path])
        tolerance = 1e-6 if form == "hf-packed" else 1e-3
        assert scale == pytest.approx(export_tensors.scale_of(scales[path]), rel=tolerance)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_masters_of_many_weights_have_the_codes_and_the_scale(dtype: Any, is_packed: bool):
    latent = np.random.default_rng(0).normal(size=(200, 301)).astype(np.float32)
    weight = packed.quantize_and_pack(latent) if is_packed else latent
    expected, scale = export_tensors.ternary(latent)
    rows = export_tensors.masters(weight, dtype)
    assert rows.shape == (301, 200) and rows.dtype.name == dtype
    found, found_scale = export_tensors.ternary(rows.T)
    np.testing.assert_array_equal(found, expected)
    assert found_scale == pytest.approx(scale, rel=2e-5)
    if not is_packed:  # only those on the border are moved
        assert np.mean(rows != latent.T.astype(rows.dtype)) < 0.01


def test_weights_that_are_all_zero():
    nothing = packed.quantize_and_pack(np.zeros((128, 4), np.float32))
    assert not export_tensors.masters(nothing, "bfloat16").any()


def test_quantised_tables_are_written_dense(tmp_path: Path):
    model = sample(tie_embeddings=False, dim=64, ternary=TERNARY)
    params = packed.pack_params(model.config, model.params, table="int8")
    report = module.export(tmp_path / "out", dataclasses.replace(model, params=params), "hf")
    assert report.difference < module._MOST_DIFFERENCE


def test_shards_and_their_index(tmp_path: Path):
    model = sample(**MODELS["llama"])
    seen: list[tuple[str, int, int]] = []
    report = module.export(
        tmp_path / "out", model, shard_bytes=7000, progress=lambda *step: seen.append(step)
    )
    shards = [name for name in report.files if name.endswith(".safetensors")]
    assert shards == [f"model-0000{i}-of-0000{len(shards)}.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    for tensor, file in index["weight_map"].items():
        assert tensor in safetensors.File(tmp_path / "out" / file).entries
    assert seen[0] == ("write", 0, 12) and ("write", 12, 12) in seen and seen[-1][0] == "compare"


def test_the_files_beside_the_weights(tmp_path: Path):
    module.export(tmp_path / "out", sample(), card="Written by a test.")
    read = lambda name: json.loads((tmp_path / "out" / name).read_text())
    assert read("tokenizer_config.json")["eos_token"] == "<|endoftext|>"
    assert read("tokenizer_config.json")["chat_template"] == "{{ messages }}"
    assert read("generation_config.json")["eos_token_id"] == [256]
    assert read("config.json")["max_position_embeddings"] == 64
    assert "Written by a test." in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "form", "message"),
    [
        ({}, "hf-packed", "no ternary weights"),
        (MODELS["ternary ttt"], "hf-packed", "layer 0 is ttt_linear"),
        ({"ternary": TERNARY, "mlp_dim": 18}, "hf-packed", "mlp.gate_proj has 18 outputs"),
        (
            {"ternary": TernaryConfig(activations=False, path="fake_quant")},
            "hf",
            r"model\.layers\.0\.self_attn\.q_proj",
        ),
        ({"ternary": TernaryConfig(inner_norm=True)}, "hf", "input_layernorm"),
        ({"norm_placement": "subln", "qkv_bias": True}, "hf", "q_proj"),
        ({"norm_placement": "subln", "window": 4}, "hf", "self_attn"),
        ({"norm_placement": "subln", "head_dim": 6}, "hf", "attn_sub_norm"),
        ({"dim": 17, "head_dim": 6}, "hf", "self_attn"),
    ],
    ids=str,
)
def test_what_no_class_computes_is_refused(
    tmp_path: Path, settings: dict[str, Any], form: module.Form, message: str
):
    with pytest.raises(ConfigError, match=message):
        module.export(tmp_path / "out", sample(**settings), form)
    assert not list(tmp_path.iterdir())


def test_a_model_that_comes_back_different_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wrong = lambda weight, dtype: -export_tensors.dense_rows(weight, dtype)
    monkeypatch.setattr(module.export_tensors, "masters", wrong)
    with pytest.raises(DataError, match=r"weights of group_0.* have other codes"):
        module.export(tmp_path / "out", sample(ternary=TERNARY))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can't be written"):
        module.export(tmp_path / "file" / "out", sample())
    with pytest.raises(DataError, match="is there already"):
        module.export(tmp_path, sample())
