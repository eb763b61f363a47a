"""Models that transformers builds and saves, and ours that it loads, against its logits.

Both compute in float32, in other orders of summation: logits agree to 1e-4 of the largest. Ternary
models also round activations to 8 bits, and what lies on the border between two codes can fall on
either side of it; one such code is 1/127 of a token's largest input to one layer, so there they
agree to 3e-2 at every token, and to 1e-5 at those in front of the first such code.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bitttt_jax.config import ModelConfig, RopeScalingConfig, TernaryConfig
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.interop import huggingface
from bitttt_jax.interop.foreign import ForeignModel
from bitttt_jax.interop.huggingface_export import export
from bitttt_jax.models import transformer
from tests.models import samples

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # it would compile C++ for each of a few small products

pytestmark = [
    pytest.mark.models,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

TOKENS = np.random.default_rng(3).integers(0, 96, 40)
SIZE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 88,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}


def randomise(model: Any) -> Any:
    """Random parameters, none at its special initial value."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.2 * noise)
    return model.eval()


def save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    Tokenizer.bytes().save(folder / "tokenizer.json")


def their_logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(TOKENS[None])).logits[0].float().numpy()


def our_logits(folder: Path) -> np.ndarray:
    model = huggingface.load(folder, "float32")
    return run(model.config, model.params)


def run(config: ModelConfig, params: Any) -> np.ndarray:
    def read(params: Any) -> jax.Array:
        hidden = transformer.read(config, params, TOKENS[None])
        return transformer.logits(config, params, hidden)[0]

    return np.asarray(jax.jit(read)(params))


def check(ours: np.ndarray, theirs: np.ndarray, is_ternary: bool = False) -> None:
    difference = np.abs(ours - theirs).max(1) / np.abs(theirs).max()
    if is_ternary:
        assert difference[:4].max() < 1e-5
    assert difference.max() < (3e-2 if is_ternary else 1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
        {"rope_parameters": LINEAR, "head_dim": 24},
        {"hidden_act": "relu2", "rms_norm_eps": 1e-3},
    ],
    ids=["llama", "llama3", "linear", "relu2"],
)
def test_llama(tmp_path: Path, settings: dict[str, Any]):
    import transformers

    config = transformers.LlamaConfig(**(SIZE | settings))
    model = randomise(transformers.LlamaForCausalLM(config))
    save(model, tmp_path)
    check(our_logits(tmp_path), their_logits(model))


def test_the_old_spelling_of_rope_scaling(tmp_path: Path):
    import transformers

    config = transformers.LlamaConfig(**SIZE, rope_parameters=LLAMA3)
    model = randomise(transformers.LlamaForCausalLM(config))
    save(model, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["rope_scaling"] = values.pop("rope_parameters")
    values["rope_theta"] = values["rope_scaling"].pop("rope_theta")
    (tmp_path / "config.json").write_text(json.dumps(values))
    check(our_logits(tmp_path), their_logits(model))


@pytest.mark.parametrize("slides", [False, True])
def test_qwen2(tmp_path: Path, slides: bool):
    import transformers

    windows = {"use_sliding_window": slides, "sliding_window": 7, "max_window_layers": 0}
    model = randomise(transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZE, **windows)))
    save(model, tmp_path)
    check(our_logits(tmp_path), their_logits(model))


@pytest.mark.parametrize("window", [7, None])
def test_mistral(tmp_path: Path, window: int | None):
    import transformers

    config = transformers.MistralConfig(**SIZE, sliding_window=window)
    model = randomise(transformers.MistralForCausalLM(config))
    save(model, tmp_path)
    check(our_logits(tmp_path), their_logits(model))


def test_bitnet_in_float(tmp_path: Path):
    import transformers

    config = transformers.BitNetConfig(**SIZE, tie_word_embeddings=True)
    model = randomise(transformers.BitNetForCausalLM(config))
    save(model, tmp_path)
    check(our_logits(tmp_path), their_logits(model))


MULTIPLY = {"linear_class": "autobitlinear", "quantization_mode": "offline"}
ONLINE = {"linear_class": "autobitlinear", "quantization_mode": "online"}
INNER = {"use_rms_norm": True, "rms_norm_eps": 1e-2}


@pytest.mark.parametrize("family", ["BitNet", "Llama"])
@pytest.mark.parametrize(
    "quantization",
    [MULTIPLY, {"linear_class": "bitlinear"}, ONLINE],
    ids=["multiply", "divide", "online"],
)
def test_ternary_models(tmp_path: Path, family: str, quantization: dict[str, Any]):
    check_ternary(tmp_path, family, quantization)


@pytest.mark.parametrize(
    "quantization", [{"linear_class": "bitlinear"}, ONLINE], ids=["divide", "online"]
)
def test_norms_inside_ternary_layers(tmp_path: Path, quantization: dict[str, Any]):
    check_ternary(tmp_path, "Llama", quantization | INNER)


def check_ternary(folder: Path, family: str, quantization: dict[str, Any]) -> None:
    """A float model's weights, quantised as published models are, loaded by both."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
    from transformers.integrations import bitnet

    config = getattr(transformers, f"{family}Config")(**SIZE)
    own = getattr(transformers, f"{family}ForCausalLM")
    save(randomise(own(config)), folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        if quantization.get("use_rms_norm"):
            inner = torch.randn(tensors[name].shape[1], generator=generator)
            tensors[name.replace("weight", "rms_norm.weight")] = 1 + 0.3 * inner
        if quantization.get("quantization_mode") == "online":
            continue
        mean = tensors[name].abs().mean()
        codes = (tensors[name] / mean).round().clamp(-1, 1)
        tensors[name] = bitnet.pack_weights(codes)
        is_inverse = quantization["linear_class"] == "bitlinear"
        tensors[f"{name}_scale"] = (1 / mean if is_inverse else mean)[None]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "bitnet", **quantization}
    (folder / "config.json").write_text(json.dumps(values))
    model = own.from_pretrained(folder, dtype=torch.float32).eval()
    assert "BitLinear" in str(model)
    check(our_logits(folder), their_logits(model), is_ternary=True)


OURS: dict[str, dict[str, Any]] = {
    "llama": {"tie_embeddings": False, "head_dim": 24, "num_kv_heads": 2},
    "llama3": {"rope_scaling": RopeScalingConfig("llama3", 8.0, 1.0, 4.0, 32), "rope_theta": 500.0},
    "linear, relu2": {"rope_scaling": RopeScalingConfig("linear", 4.0), "mlp": "relu2_glu"},
    "qwen2": {"qkv_bias": True},
    "qwen2 with a window": {"qkv_bias": True, "window": 7},
    "mistral": {"window": 7},
    "bitnet": {"norm_placement": "subln", "mlp": "relu2_glu"},
    "bitnet, silu": {"norm_placement": "subln"},
    "ternary": {"ternary": TernaryConfig(), "num_kv_heads": 2},
    "ternary bitnet": {
        "ternary": TernaryConfig(),
        "norm_placement": "subln",
        "mlp": "relu2_glu",
    },
    "ternary qwen2": {"ternary": TernaryConfig(), "qkv_bias": True},
    "ternary mlp": {"ternary": TernaryConfig(mixer=False)},
    "ternary mixer": {"ternary": TernaryConfig(mlp=False)},
    "norms inside": {
        "ternary": TernaryConfig(inner_norm=True, outer_norm=True, inner_norm_eps=1e-2)
    },
}


FORMS = [(name, "hf") for name in OURS]
FORMS += [(name, "hf-packed") for name, settings in OURS.items() if "ternary" in settings]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_what_we_export_transformers_computes(tmp_path: Path, name: str, form: Any):
    import torch
    import transformers

    is_ternary = "ternary" in OURS[name]
    settings = {"vocab_size": 257, "dim": 64, "num_heads": 4, "num_layers": 2, "mlp_dim": 88}
    config = dataclasses.replace(samples.config(**(settings | OURS[name])), compute_dtype="float32")
    params = jax.tree.map(np.float32, samples.params(config))
    tokenizer = Tokenizer.bytes()
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    model = ForeignModel(config, params, tokenizer, "a test", 128, template)
    export(tmp_path / "out", model, form, dtype="float32", shard_bytes=100_000)
    # The class that config.json names, as a user would load it.
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    ).eval()
    assert ("BitLinear" in str(theirs)) == is_ternary
    check(run(config, params), their_logits(theirs), is_ternary)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "naïve\n text"
    assert loaded.encode(text, add_special_tokens=False) == tokenizer.encode(text).tolist()
    assert loaded.eos_token == "<|endoftext|>"
    conversation = [{"role": "user", "content": "hi"}]
    assert loaded.apply_chat_template(conversation, tokenize=False) == "user: hi\n"
