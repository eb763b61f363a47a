from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bitttt_jax.config import ModelConfig, RopeScalingConfig, TernaryConfig
from bitttt_jax.errors import DataError
from bitttt_jax.interop import huggingface
from bitttt_jax.models import transformer
from bitttt_jax.ops import tables
from bitttt_jax.ternary.packing import PackedTernary, unpack
from tests.interop import samples
from tests.models import reference
from tests.models import samples as models

TOKENS = models.tokens(1, 13)[0]
FLOAT: dict[str, Any] = {"num_kv_heads": 1, "norm_eps": 1e-5}


def logits(model: Any) -> np.ndarray:
    return np.asarray(read_logits(model.config, model.params))


@functools.partial(jax.jit, static_argnums=0)
def read_logits(config: ModelConfig, params: Any) -> jax.Array:
    hidden = transformer.read(config, params, TOKENS[None])
    return transformer.logits(config, params, hidden)[0]


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({}, {}),
        ({"head_dim": 6}, {"head_dim": 6, "rope_scaling": None}),
        ({"tie_embeddings": False}, {"tie_word_embeddings": False}),
        ({"rope_theta": 5.0}, {"rope_theta": 5.0}),
        ({"rope_theta": 5.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}),
        (
            {"rope_theta": 5.0, "rope_scaling": RopeScalingConfig("linear", 3.0)},
            {"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 3.0}},
        ),
        ({"mlp": "relu2_glu"}, {"hidden_act": "relu2"}),
        (
            {"window": 4},
            {"model_type": "mistral", "architectures": None, "sliding_window": 4},
        ),
        ({"norm_placement": "subln", "mlp": "relu2_glu", "rope_theta": 5e5},
         {"model_type": "bitnet", "architectures": ["BitNetForCausalLM"]}),
    ],
    ids=lambda value: "-".join(value) or "llama",
)  # fmt: skip
def test_float_models_are_the_reference_function(
    tmp_path: Path, settings: dict[str, Any], fields: dict[str, Any]
):
    config = models.config(**(FLOAT | settings))
    params = models.params(config)
    folder = samples.write(tmp_path, samples.LLAMA | fields, samples.llama_tensors(params))
    assert huggingface.is_model(folder)
    model = huggingface.load(folder, "float32")
    expected = dataclasses.replace(config, compute_dtype="float32")
    assert dataclasses.replace(model.config, ttt=expected.ttt) == expected
    assert_close(logits(model), reference.logits(config, params, TOKENS))
    assert model.context == 77 and model.chat_template is None


def assert_close(own: np.ndarray, expected: np.ndarray) -> None:
    """To the rounding of float32, in which ours are computed."""
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


QWEN2 = samples.LLAMA | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
SLIDES = {"sliding_window": 4, "use_sliding_window": True}


@pytest.mark.parametrize(
    ("window", "fields"),
    [
        (0, {"sliding_window": 4}),
        (0, SLIDES | {"max_window_layers": 2}),
        (4, SLIDES | {"max_window_layers": 0}),
        (4, SLIDES | {"layer_types": ["sliding_attention", "sliding_attention"]}),
    ],
)
def test_qwen2_has_biases_and_windows_only_when_it_uses_them(
    tmp_path: Path, window: int, fields: dict[str, Any]
):
    config = models.config(**FLOAT, qkv_bias=True, window=window)
    params = models.params(config)
    folder = samples.write(tmp_path, QWEN2 | fields, samples.llama_tensors(params))
    model = huggingface.load(folder, "float32")
    assert_close(logits(model), reference.logits(config, params, TOKENS))


@pytest.mark.parametrize("name", ["max_window_layers", "layer_types"])
def test_windows_in_some_layers_only_are_refused(tmp_path: Path, name: str):
    value = {"max_window_layers": 1, "layer_types": ["full_attention", "sliding_attention"]}[name]
    tensors = samples.llama_tensors(models.params(models.config(**FLOAT, qkv_bias=True)))
    folder = samples.write(tmp_path, QWEN2 | SLIDES | {name: value}, tensors)
    with pytest.raises(DataError, match=f"{name} is .*\n.*the same window"):
        huggingface.load(folder)


MULTIPLY = {"linear_class": "autobitlinear", "quantization_mode": "offline"}
ONLINE = {"linear_class": "autobitlinear", "quantization_mode": "online"}
INNER = TernaryConfig(inner_norm=True, outer_norm=True, inner_norm_eps=1e-3)


@pytest.mark.parametrize("placement", ["llama", "subln"])
@pytest.mark.parametrize(
    ("form", "quantization"),
    [("packed", MULTIPLY), ("packed", {}), ("dense", MULTIPLY), ("online", ONLINE)],
    ids=["multiply", "divide", "dense", "online"],
)
def test_ternary_models_keep_their_codes(
    tmp_path: Path, form: str, quantization: dict[str, Any], placement: Any
):
    config = models.config(TernaryConfig(), **FLOAT, norm_placement=placement, mlp="relu2_glu")
    check_ternary(tmp_path, config, form, quantization)


@pytest.mark.parametrize(
    "ternary", [INNER, TernaryConfig(mixer=False), TernaryConfig(mlp=False)], ids=str
)
def test_ternary_models_with_norms_inside_or_float_parts(tmp_path: Path, ternary: TernaryConfig):
    config = models.config(ternary, **FLOAT, mlp="relu2_glu")
    kept = ["q_proj", "k_proj", "v_proj", "o_proj"] * (not ternary.mixer)
    kept += ["gate_proj", "up_proj", "down_proj"] * (not ternary.mlp)
    quantization: dict[str, Any] = {"use_rms_norm": ternary.inner_norm, "rms_norm_eps": 1e-3}
    quantization["modules_to_not_convert"] = ["lm_head", *kept]
    check_ternary(tmp_path, config, "packed", quantization)


def check_ternary(
    folder: Path, config: ModelConfig, form: str, quantization: dict[str, Any]
) -> None:
    params = models.params(config)
    tensors = samples.llama_tensors(params)
    codes = {}
    for name, weight in list(tensors.items()):
        part = config.ternary.mlp if ".mlp." in name else config.ternary.mixer
        if not name.endswith("_proj.weight") or not part:
            continue
        codes[name], mean = samples.ternary(weight)
        if form != "online":
            is_packed = form == "packed"
            tensors[name] = samples.pack(codes[name]) if is_packed else np.float32(codes[name])
            divides = quantization.get("linear_class") is None
            scale = 1 / mean if divides else mean
            tensors[name + "_scale"] = np.array([scale], np.float32)
    values = samples.LLAMA | {"hidden_act": "relu2", "rope_theta": config.rope_theta}
    if config.norm_placement == "subln":
        values |= {"model_type": "bitnet", "architectures": ["BitNetForCausalLM"]}
    values["quantization_config"] = {"quant_method": "bitnet", **quantization}
    model = huggingface.load(samples.write(folder, values, tensors), "float32")
    for name, expected in codes.items():
        kernel = samples.ours(model.params, name)
        assert isinstance(kernel, PackedTernary) and kernel.layout == "i2_s"
        np.testing.assert_array_equal(unpack(kernel), expected.T)
    assert_close(logits(model), reference.logits(config, params, TOKENS))


def test_weights_are_kept_as_asked_for(tmp_path: Path):
    config = models.config(**FLOAT, tie_embeddings=False)
    tensors = samples.llama_tensors(models.params(config))
    folder = samples.write(tmp_path, samples.LLAMA | {"tie_word_embeddings": False}, tensors)
    model = huggingface.load(folder, "bfloat16")
    name = "model.layers.1.mlp.up_proj.weight"
    expected = tensors[name].T.astype("bfloat16")
    np.testing.assert_array_equal(samples.ours(model.params, name), expected)
    assert model.config.compute_dtype == "bfloat16"
    model = huggingface.load(folder, "int8")
    for kernel in (model.params["embed"]["embedding"], model.params["head"]["kernel"]):
        assert isinstance(kernel, tables.QuantizedTable) and kernel.codes.shape == (11, 8)
    kernel = samples.ours(model.params, name)
    assert isinstance(kernel, tables.QuantizedTable) and kernel.codes.shape == (12, 8)
    assert np.isfinite(logits(model)).all()


def test_shards_are_one_model(tmp_path: Path):
    config = models.config(**FLOAT)
    params = models.params(config)
    folder = samples.write(tmp_path, samples.LLAMA, samples.llama_tensors(params))
    samples.split(folder)
    model = huggingface.load(folder, "float32")
    assert_close(logits(model), reference.logits(config, params, TOKENS))


BITNET = {"quant_method": "bitnet"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma'"),
        ({"model_type": None}, "model_type is missing"),
        ({"model_type": 3}, "model_type is 3"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"num_local_experts": 8}, "num_local_experts is 8"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "rope_scaling.type is 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "factor is nan"),
        ({"rope_scaling": [1]}, "rope_scaling is"),
        ({"rope_parameters": {"rope_theta": 1e400}}, "rope_parameters.rope_theta is inf"),
        ({"sliding_window": 4}, "sliding_window is 4"),
        ({"hidden_size": 10**30}, "hidden_size is 1000"),
        ({"hidden_size": 8.0}, "hidden_size is 8.0"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": -8}, "hidden_size is -8"),
        ({"num_hidden_layers": 2**31}, "lacks the tensor model.layers.2"),
        ({"num_attention_heads": 3}, "model.dim=8"),
        ({"hidden_size": 16}, "has the shape"),
        ({"vocab_size": 12}, "has the shape"),
        ({"num_hidden_layers": 1}, "has the tensor 'model.layers.1"),
        ({"num_hidden_layers": 3}, "lacks the tensor model.layers.2"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method is 'gptq'"),
        ({"quantization_config": BITNET}, "weight_scale"),
        ({"quantization_config": BITNET | {"modules_to_not_convert": []}}, "lm_head"),
        (
            {"quantization_config": BITNET | {"modules_to_not_convert": ["lm_head", "q_proj"]}},
            "all or none",
        ),
        (
            {"quantization_config": BITNET | {"modules_to_not_convert": ["lm_head", "(a+)+b"]}},
            "neither the head",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_computed_is_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], message: str
):
    params = models.params(models.config(**FLOAT))
    folder = samples.write(tmp_path, samples.LLAMA | fields, samples.llama_tensors(params))
    with pytest.raises(DataError, match=message):
        huggingface.load(folder)


def test_mistral_without_a_window(tmp_path: Path):
    """Null isn't the same as absent there."""
    values = samples.LLAMA | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    tensors = samples.llama_tensors(models.params(models.config(**FLOAT)))
    windows: list[Any] = [{}, {"sliding_window": None}, {"sliding_window": 3}]
    loaded = [huggingface.load(samples.write(tmp_path, values | w, tensors)) for w in windows]
    assert [model.config.window for model in loaded] == [4096, 0, 3]


def test_a_head_beside_tied_embeddings_must_be_the_same(tmp_path: Path):
    tensors = samples.llama_tensors(models.params(models.config(**FLOAT)))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    huggingface.load(samples.write(tmp_path, samples.LLAMA, tensors))
    tensors["lm_head.weight"][3, 3] += 1
    with pytest.raises(DataError, match="isn't its embedding"):
        huggingface.load(samples.write(tmp_path, samples.LLAMA, tensors))


def test_a_packed_byte_that_is_no_weight(tmp_path: Path):
    tensors = samples.llama_tensors(models.params(models.config(**FLOAT)))
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors[name + "_scale"] = np.ones(1, np.float32)
        tensors[name] = samples.pack(samples.ternary(tensors[name])[0])
    values = samples.LLAMA | {"quantization_config": BITNET}
    huggingface.load(samples.write(tmp_path, values, tensors))
    name = "model.layers.1.self_attn.o_proj.weight"
    tensors[name][1, 2] |= 0b1100
    with pytest.raises(DataError, match=f"{name}.*\n.*no ternary weight"):
        huggingface.load(samples.write(tmp_path, values, tensors))
    for scale in (0, -1, np.inf, np.nan):
        tensors[name + "_scale"][0] = scale
        with pytest.raises(DataError, match="can't scale"):
            huggingface.load(samples.write(tmp_path, values, tensors))


def test_pickles_are_refused(tmp_path: Path):
    samples.write(tmp_path, samples.LLAMA, {}).joinpath("model.safetensors").unlink()
    with pytest.raises(DataError, match="neither model"):
        huggingface.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=r"pytorch_model\.bin, a pickle"):
        huggingface.load(tmp_path)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, None),
        ("{{ x }}", "{{ x }}"),
        ([{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}], "d"),
    ],
)
def test_chat_templates(tmp_path: Path, template: Any, expected: str | None):
    tensors = samples.llama_tensors(models.params(models.config(**FLOAT)))
    folder = samples.write(tmp_path, samples.LLAMA, tensors)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert huggingface.load(folder).chat_template == expected
    (folder / "chat_template.jinja").write_text("{{ own }}")
    assert huggingface.load(folder).chat_template == "{{ own }}"


def test_other_folders_are_no_models(tmp_path: Path):
    assert not huggingface.is_model(tmp_path)
    for text in ("{", "[]", "{}", json.dumps({"name": "run", "model": {}})):
        (tmp_path / "config.json").write_text(text)
        assert not huggingface.is_model(tmp_path)


def test_a_damaged_config_is_explained(tmp_path: Path):
    samples.write(tmp_path, samples.LLAMA, {})
    for damage in ("{", '{"model_type": "llama", "model_type": "llama"}', "[]"):
        (tmp_path / "config.json").write_text(damage)
        assert huggingface.is_model(tmp_path)
        with pytest.raises(DataError, match=r"config\.json isn't a JSON object"):
            huggingface.load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json can't be read"):
        huggingface.load(tmp_path)
