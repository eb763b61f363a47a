"""Small models in the files of other programs, made from parameters of `tests.models.samples`.

The layouts are written down here a second time, from the formats' descriptions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from bitttt_jax.data.tokenizers import Tokenizer

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 12,
    "max_position_embeddings": 77,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}

PROJECTIONS = {
    "mixer/query": "self_attn.q_proj",
    "mixer/key": "self_attn.k_proj",
    "mixer/value": "self_attn.v_proj",
    "mixer/output": "self_attn.o_proj",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
}
NORMS = {
    "mixer_norm/scale": "input_layernorm",
    "mlp_norm/scale": "post_attention_layernorm",
    "mixer/sub_norm/scale": "self_attn.attn_sub_norm",
    "mlp/sub_norm/scale": "mlp.ffn_sub_norm",
}


def rounded(params: Any) -> Any:
    """The same parameters with values that bfloat16 has, in float64."""
    if isinstance(params, dict):
        return {name: rounded(child) for name, child in params.items()}
    return np.asarray(params).astype(ml_dtypes.bfloat16).astype(np.float64)


def leaf(tree: Any, path: str) -> np.ndarray | None:
    for name in path.split("/"):
        if name not in tree:
            return None
        tree = tree[name]
    return np.asarray(tree)


def llama_tensors(params: Any) -> dict[str, np.ndarray]:
    """Tensors of a model of attention, float32, from stacked parameters."""
    tensors = {
        "model.embed_tokens.weight": params["embed"]["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
    }
    if "head" in params:
        tensors["lm_head.weight"] = params["head"]["kernel"].T
    stacked = params["blocks"]["block_0"]
    for layer in range(len(stacked["mixer_norm"]["scale"])):
        prefix = f"model.layers.{layer}"
        for ours, theirs in NORMS.items():
            if (scale := leaf(stacked, ours)) is not None:
                tensors[f"{prefix}.{theirs}.weight"] = scale[layer]
        for ours, theirs in PROJECTIONS.items():
            for part, name in (
                ("kernel", "weight"),
                ("bias", "bias"),
                ("norm/scale", "rms_norm.weight"),
            ):
                if (value := leaf(stacked, f"{ours}/{part}")) is not None:
                    tensors[f"{prefix}.{theirs}.{name}"] = value[layer].T
    return {name: np.ascontiguousarray(t, np.float32) for name, t in tensors.items()}


def ternary(weight_NK: np.ndarray) -> tuple[np.ndarray, float]:
    """Codes -1, 0 and 1, and the mean magnitude."""
    mean = np.abs(weight_NK).mean()
    return (np.sign(weight_NK) * (np.abs(weight_NK) > mean / 2)).astype(np.int8), mean


def pack(codes_NK: np.ndarray) -> np.ndarray:
    """Hugging Face's rows: bits 2i and 2i + 1 of byte r are those of row r + i N / 4."""
    rows = len(codes_NK) // 4
    packed = np.zeros((rows, codes_NK.shape[1]), np.uint8)
    for n, row in enumerate(codes_NK):
        packed[n % rows] |= ((row + 1) << 2 * (n // rows)).astype(np.uint8)
    return packed


def write(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """A Hugging Face folder with one file of weights, written by the published library."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    Tokenizer.bytes().save(folder / "tokenizer.json")
    return folder


def ours(params: Any, name: str) -> Any:
    """The kernel that a tensor became."""
    *_, layer, part, projection, _ = name.split(".")
    paths = {theirs: ours for ours, theirs in PROJECTIONS.items()}
    part, ours = paths[f"{part}.{projection}"].split("/")
    return params[f"group_{layer}"]["block_0"][part][ours]["kernel"]


def split(folder: Path) -> None:
    """Divides a folder's weights among three files with an index."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        own = {name: tensors[name] for name in tensors if places[name] == file}
        safetensors.numpy.save_file(own, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
