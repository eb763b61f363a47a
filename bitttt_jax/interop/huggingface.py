"""Hugging Face folders: Llama, Qwen2, Mistral, BitNet, the TTT authors' models, and our own.

Safetensors only: a pickle can run code when it is loaded. No code of a model's repository is run
either, so what a model computes is what transformers' own class of its type computes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bitttt_jax.config import ModelConfig
from bitttt_jax.errors import DataError
from bitttt_jax.interop import chat_templates, dense, fields, tokenizers, ttt_lm, ttt_lm_config
from bitttt_jax.interop import huggingface_names as names
from bitttt_jax.interop.arrays import Arrays, make_ternary, pack_codes, vector
from bitttt_jax.interop.foreign import ForeignModel, WeightType
from bitttt_jax.interop.huggingface_config import FAMILIES, Packing, read_architecture
from bitttt_jax.interop.vocabulary import read_vocabulary
from bitttt_jax.interop.weights import INDEX_FILE, SINGLE_FILE, Weights
from bitttt_jax.models import parameters
from bitttt_jax.ternary.packing import PackedTernary

CONFIG_FILE = "config.json"
_OTHERS: dict[str, Callable[[Path, WeightType], ForeignModel]] = {
    ttt_lm_config.MODEL_TYPE: ttt_lm.load,
    dense.MODEL_TYPE: dense.load,
}
# What old versions of transformers saved beside the weights.
_IGNORED = ("*.rotary_emb.inv_freq",)


def is_model(folder: Path) -> bool:
    """Whether a folder has the configuration of a Hugging Face model, or at least such weights."""
    try:
        values = fields.read_json(folder / CONFIG_FILE)
    except DataError:  # which `load` explains
        return any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE))
    return "model_type" in values or "architectures" in values


def load(folder: Path, weights: WeightType = "bfloat16") -> ForeignModel:
    """Loads the model of a Hugging Face folder, its tensors one after the other.

    Args:
      folder: with config.json, safetensors and the tokenizer's files.
      weights: how weights that aren't ternary are kept.

    Raises:
      DataError: a file is missing or damaged, or what the model computes isn't known here.
    """
    values = fields.read_json(folder / CONFIG_FILE)
    kind = values.text("model_type", among=(*FAMILIES, *_OTHERS))
    if kind in _OTHERS:
        return _OTHERS[kind](folder, weights)
    read = read_architecture(values)
    arrays = Arrays(weights)
    config = arrays.computed(read.config)
    tensors = Weights(folder)
    tokenizer = tokenizers.from_folder(folder)
    params = _Reader(tensors, arrays, config, read.packing).params()
    tensors.check_all_read(_IGNORED)
    ternary = {"none": "", "online": ", ternary since loading"}.get(read.packing, ", ternary")
    return ForeignModel(
        config,
        params,
        tokenizer,
        f"Hugging Face {kind}{ternary}, other weights {weights}",
        read.context,
        chat_templates.from_folder(folder, tokenizer),
    )


class _Reader:
    """Reads the parameters of a model that is like Llama."""

    def __init__(self, tensors: Weights, arrays: Arrays, config: ModelConfig, packing: Packing):
        self._tensors, self._arrays = tensors, arrays
        self._config, self._packing = config, packing
        self._widths = names.widths(config)

    def params(self) -> dict[str, Any]:
        """All of them, group by group."""
        config = self._config
        params: dict[str, Any] = {
            **read_vocabulary(self._tensors, self._arrays, config),
            "final_norm": self._norm(names.FINAL_NORM, config.dim),
        }
        for index in range(config.num_layers):
            params[parameters.group_name(index)] = {"block_0": self._block(names.layer(index))}
        return params

    def _block(self, prefix: str) -> dict[str, Any]:
        block: dict[str, Any] = {
            ours: self._norm(f"{prefix}{theirs}.weight", self._config.dim)
            for ours, theirs in names.NORMS.items()
        }
        for part, projections in names.PROJECTIONS.items():
            block[part] = {
                ours: self._projection(part, ours, prefix + theirs)
                for ours, theirs in projections.items()
            }
            if self._config.norm_placement == "subln":
                width = self._widths["output" if part == "mixer" else "down"][1]
                name = f"{prefix}{names.SUB_NORMS[part]}.weight"
                block[part]["sub_norm"] = self._norm(name, width)
        return block

    def _projection(self, part: str, ours: str, theirs: str) -> dict[str, Any]:
        config, (N, K) = self._config, self._widths[ours]
        is_ternary = config.ternary.mixer if part == "mixer" else config.ternary.mlp
        params: dict[str, Any] = {}
        if is_ternary:
            params["kernel"] = self._ternary(theirs, N, K)
            if config.ternary.inner_norm:
                params["norm"] = self._norm(f"{theirs}.{names.INNER_NORM}.weight", K)
        else:
            rows = self._tensors.floats(f"{theirs}.weight", N, K)
            params["kernel"] = self._arrays.kernel(rows)
        if config.qkv_bias and ours in names.BIASED:
            params["bias"] = vector(self._tensors.floats(f"{theirs}.bias", N))
        return params

    def _ternary(self, name: str, N: int, K: int) -> PackedTernary:
        tensors, weight = self._tensors, f"{name}.weight"
        if self._packing == "online":
            return make_ternary(tensors.floats(weight, N, K))
        (scale,) = tensors.vector(f"{name}.weight_scale", 1).tolist()
        scale = 1 / scale if self._packing == "divide" and scale else scale
        if not 0 < scale < float("inf"):
            raise DataError(f"{tensors.folder}: {name}.weight_scale can't scale weights")
        try:
            if tensors.holds_bytes(weight):
                packed = tensors.read(weight, N // 4, K)
                return self._arrays.packed_rows(packed, N, scale)
            # As transformers saves the model after it has unpacked it.
            return pack_codes(tensors.floats(weight, N, K), scale)
        except ValueError as error:
            raise DataError(f"{tensors.folder}: {weight} can't be read", str(error)) from None

    def _norm(self, name: str, width: int) -> dict[str, jax.Array]:
        return {"scale": vector(self._tensors.floats(name, width))}
