"""Our own models as dense safetensors, for those that no other program's format can hold (TTT).

A folder like any of Hugging Face's. config.json has `model_type: bitttt`, `format_version: 1`, the
fields of `config.ModelConfig` as `model`, and `max_position_embeddings` where a context is known.
The tensors are our parameters by path, with dots: `embed.embedding [V, D]`, `head.kernel [D, V]`,
`final_norm.scale [D]`, and for each repetition i of the mixers and each mixer j in it
`group_i.block_j.…`: `mixer.{query,key,value,query_key,gate,output}.kernel [inputs, outputs]`,
`mixer.fast.{w1,b1,w2,b2}` (initial fast weights, `[heads, …]`), and so on as the layers name them.
Kernels of ternary layers are floats that are made ternary at the scale of their mean magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pydantic

from bitttt_jax.config import ModelConfig
from bitttt_jax.errors import ConfigError, DataError
from bitttt_jax.interop import chat_templates, fields, tokenizers
from bitttt_jax.interop.arrays import Arrays, make_ternary, vector
from bitttt_jax.interop.fields import Fields
from bitttt_jax.interop.foreign import ForeignModel, WeightType
from bitttt_jax.interop.weights import Weights
from bitttt_jax.models import parameters, transformer

MODEL_TYPE = "bitttt"
FORMAT_VERSION = 1
_ADAPTER = pydantic.TypeAdapter(ModelConfig)


def to_fields(config: ModelConfig) -> dict[str, Any]:
    """A model's part of config.json."""
    return {
        "model_type": MODEL_TYPE,
        "format_version": FORMAT_VERSION,
        "model": _ADAPTER.dump_python(config, mode="json"),
    }


def tensor_name(path: str) -> str:
    """Name of the tensor of a parameter."""
    return path.replace("/", ".")


def load(folder: Path, weights: WeightType = "bfloat16") -> ForeignModel:
    """Loads such a folder.

    Args:
      folder: with config.json, safetensors and a tokenizer.
      weights: how weights that are neither ternary nor computed in float32 are kept.

    Raises:
      DataError: a file is missing or damaged, or of a newer version.
    """
    values = fields.read_json(folder / "config.json")
    arrays, tensors = Arrays(weights), Weights(folder)
    config = arrays.computed(_read_config(values))
    _check_sizes(values, config, tensors)
    tokenizer = tokenizers.from_folder(folder)
    shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    shapes = jax.eval_shape(parameters.unstack, shapes)
    leaves = {
        path: _leaf(config, path, tensors.floats(tensor_name(path), *shape.shape), arrays)
        for path, shape in parameters.flatten(shapes).items()
    }
    tensors.check_all_read()
    context = values.integer("max_position_embeddings", 0, low=0)
    return ForeignModel(
        config,
        nested(leaves),
        tokenizer,
        f"safetensors of bitttt_jax, weights {weights}",
        context or None,
        chat_templates.from_folder(folder, tokenizer),
    )


def _read_config(values: Fields) -> ModelConfig:
    version = values.integer("format_version")
    if version != FORMAT_VERSION:
        raise values.fault("format_version", f"this program reads {FORMAT_VERSION}")
    model = values.object("model")
    if model is None:
        raise values.fault("model", "it describes the model")
    try:
        return _ADAPTER.validate_python(model.values)
    except (pydantic.ValidationError, ConfigError) as error:
        raise DataError(f"{values.path} describes no model", str(error)) from None


def _check_sizes(values: Fields, config: ModelConfig, tensors: Weights) -> None:
    """Sees that the weights can be the model's, before anything of such a size is described."""
    ttt, most = config.ttt, tensors.largest_dimension
    sizes = {name: getattr(config, name) for name in ("vocab_size", "dim", "num_heads", "mlp_dim")}
    sizes |= {name: getattr(config, name) for name in ("num_kv_heads", "head_dim")}
    if config.uses_ttt:
        sizes |= {f"ttt.{n}": getattr(ttt, n) for n in ("mini_batch", "conv_width", "mlp_ratio")}
    too_large = [name for name, size in sizes.items() if not 0 <= size <= most]
    if config.num_layers > len(tensors):
        too_large.append("num_layers")
    if too_large:
        raise DataError(
            f"{values.path}: model.{too_large[0]} is beyond what is in its weights",
            f"they are {len(tensors)} tensors of up to {most} rows or columns",
        )


def _leaf(config: ModelConfig, path: str, values: np.ndarray, arrays: Arrays) -> Any:
    if parameters.is_ternary(config, path):
        # Without quantised activations the product isn't the packed one.
        return make_ternary(values.T) if config.ternary.activations else vector(values)
    if path == "embed/embedding":
        return arrays.table(values)
    if parameters.is_projection(path) or parameters.is_table(path):
        return arrays.kernel(values.T)
    return vector(values)


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of parameters that are given by path.

    >>> nested({"embed/embedding": 1, "final_norm/scale": 2})
    {'embed': {'embedding': 1}, 'final_norm': {'scale': 2}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = leaf
    return tree
