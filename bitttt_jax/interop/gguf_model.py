"""Models in GGUF files: which tensor is which parameter, and how it is kept."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from bitttt_jax.config import ModelConfig, TernaryConfig
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError
from bitttt_jax.interop import chat_templates, gguf_config, gguf_tensors, tokenizers
from bitttt_jax.interop.foreign import ForeignModel, WeightType
from bitttt_jax.interop.gguf import GGUFFile, TensorInfo, is_gguf
from bitttt_jax.interop.gguf_tensors import TERNARY_TYPES, I2SLayout
from bitttt_jax.interop.gguf_weights import Form, Matrix, read_matrices
from bitttt_jax.models.parameters import group_name

Place = tuple[str, ...]
"""Names that lead to a parameter."""

MIXER = {"query": "attn_q", "key": "attn_k", "value": "attn_v", "output": "attn_output"}
"""Projections of the mixer by our names, as GGUF calls them."""
MLP = {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
"""Those of the MLP."""
# Projections of one input are computed together, and so kept in one form.
_TOGETHER = (("query", "key", "value"), ("output",), ("gate", "up"), ("down",))


def is_model(path: Path) -> bool:
    """Whether a path is a GGUF file."""
    return is_gguf(path)


def load(
    path: Path, weights: WeightType = "bfloat16", *, i2_s_layout: I2SLayout = "x86"
) -> ForeignModel:
    """Loads a model.

    Ternary tensors stay packed, also those whose floats are all -1, 0 or 1 times one scale. TQ1_0
    and TQ2_0 tensors whose blocks have different scales are dequantised.

    Args:
      path: the file.
      weights: how matrices that aren't ternary are kept.
      i2_s_layout: order of the codes in I2_S tensors.

    Raises:
      DataError: the file is damaged, or its model can't be run here.
    """
    file = GGUFFile(path)
    config = gguf_config.model_config(file)
    context = gguf_config.context_length(file)
    tokenizer, chat_template = _texts(file)  # first: making them takes memory for a moment
    if tokenizer.vocab_size > config.vocab_size:
        what = f"{path}: the vocabulary has {tokenizer.vocab_size} tokens"
        raise DataError(what, f"token_embd.weight has {config.vocab_size} rows")
    vectors, matrices = _plan(file, config, weights)
    flat = vectors | read_matrices(file, matrices, i2_s_layout)
    return ForeignModel(
        dataclasses.replace(config, ternary=_ternary(matrices)),
        _tree(flat),
        tokenizer,
        _description(file, matrices.values()),
        context,
        chat_template,
    )


def projection_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of a block's projections."""
    D, F, K = config.dim, config.mlp_dim, config.width_per_head
    wide, narrow = config.num_heads * K, config.kv_heads * K
    mixer = {"query": (wide, D), "key": (narrow, D), "value": (narrow, D), "output": (D, wide)}
    return mixer | {"gate": (F, D), "up": (F, D), "down": (D, F)}


def halves_order(heads: int, width: int) -> np.ndarray:
    """Rows of a query or key whose RoPE pairs are neighbours, in the order of pairs half a head
    apart: `[heads * width]`.

    >>> halves_order(1, 6).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    return np.arange(heads * width).reshape(heads, width // 2, 2).swapaxes(1, 2).reshape(-1)


class _Tensors:
    """A file's tensors, each of which is taken once."""

    def __init__(self, file: GGUFFile):
        self._file = file
        self._left = dict(file.tensors)
        self._left.pop(gguf_config.ROPE_FACTORS, None)

    def fail(self, name: str, why: str) -> NoReturn:
        raise DataError(f"{self._file.path}: tensor {name} {why}")

    def take(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        if name not in self._left:
            self.fail(name, "is missing")
        tensor = self._left.pop(name)
        if tensor.shape != shape:
            self.fail(name, f"is {list(tensor.shape)}, not {list(shape)}")
        return tensor

    def vector(self, name: str, size: int) -> np.ndarray:
        """Float32 values."""
        tensor = self.take(name, (size,))
        try:
            values = gguf_tensors.float_rows(self._file.raw(tensor)[None], tensor.type)[0]
        except ValueError as error:
            self.fail(name, f"can't be used: {error}")
        return values.astype(np.float32)

    def scale(self, name: str) -> float:
        """What a matrix is multiplied by beside its own scales: 1 where nothing is said."""
        return float(self.vector(name, 1)[0]) if name in self._left else 1.0

    def ternary_scale(self, tensor: TensorInfo) -> float | None:
        try:
            raw = self._file.raw(tensor)
            return gguf_tensors.ternary_scale(raw, tensor.shape, tensor.type)
        except ValueError as error:
            self.fail(tensor.name, f"can't be used: {error}")

    def check_all_taken(self) -> None:
        if self._left:
            self.fail(min(self._left), "isn't part of this architecture as it is run here")


def _plan(
    file: GGUFFile, config: ModelConfig, weights: WeightType
) -> tuple[dict[Place, jax.Array], dict[Place, Matrix]]:
    """Vectors, and what becomes of matrices, by the parameter that they are."""
    tensors = _Tensors(file)
    vectors: dict[Place, np.ndarray] = {}
    table = (config.vocab_size, config.dim)
    embedding = tensors.take("token_embd.weight", table)
    matrices: dict[Place, Matrix] = {
        ("embed", "embedding"): Matrix(embedding, weights, transposed=False)
    }
    vectors["final_norm", "scale"] = tensors.vector("output_norm.weight", config.dim)
    if not config.tie_embeddings:
        head = tensors.take("output.weight", table)
        scale = tensors.scale("output.scale")
        matrices["head", "kernel"] = Matrix(head, weights, transposed=True, scale=scale)
    permuted = gguf_config.architecture(file).permuted
    for index in range(config.num_layers):
        vectors |= _block_vectors(tensors, config, index, permuted)
        matrices |= _block_matrices(tensors, config, index, permuted, weights)
    tensors.check_all_taken()
    return {place: jax.device_put(vector) for place, vector in vectors.items()}, matrices


def _block_vectors(
    tensors: _Tensors, config: ModelConfig, index: int, permuted: bool
) -> dict[Place, np.ndarray]:
    at, block = (group_name(index), "block_0"), f"blk.{index}"
    norms: dict[Place, tuple[str, int]] = {
        ("mixer_norm",): ("attn_norm", config.dim),
        ("mlp_norm",): ("ffn_norm", config.dim),
    }
    if config.norm_placement == "subln":
        norms["mixer", "sub_norm"] = "attn_sub_norm", config.num_heads * config.width_per_head
        norms["mlp", "sub_norm"] = "ffn_sub_norm", config.mlp_dim
    vectors = {
        (*at, *place, "scale"): tensors.vector(f"{block}.{name}.weight", size)
        for place, (name, size) in norms.items()
    }
    if config.qkv_bias:
        for name in ("query", "key", "value"):
            size = projection_shapes(config)[name][0]
            bias = tensors.vector(f"{block}.{MIXER[name]}.bias", size)
            order = _order(config, name, permuted)
            vectors[*at, "mixer", name, "bias"] = bias if order is None else bias[order]
    return vectors


def _block_matrices(
    tensors: _Tensors,
    config: ModelConfig,
    index: int,
    permuted: bool,
    weights: WeightType,
) -> dict[Place, Matrix]:
    shapes = projection_shapes(config)
    matrices: dict[Place, Matrix] = {}
    for names in _TOGETHER:
        part, theirs = ("mixer", MIXER) if names[0] in MIXER else ("mlp", MLP)
        stems = [f"blk.{index}.{theirs[name]}" for name in names]
        own = [
            tensors.take(f"{stem}.weight", shapes[name])
            for stem, name in zip(stems, names, strict=True)
        ]
        codes_scales = [tensors.ternary_scale(tensor) for tensor in own]
        form: Form = weights if None in codes_scales else "ternary"
        for name, stem, tensor, codes_scale in zip(names, stems, own, codes_scales, strict=True):
            scale = tensors.scale(f"{stem}.scale")
            if form == "ternary" and codes_scale is not None:
                scale *= codes_scale
            if not abs(scale) <= np.finfo(np.float32).max:
                tensors.fail(tensor.name, f"has the scale {scale}")
            order = _order(config, name, permuted)
            matrices[group_name(index), "block_0", part, name, "kernel"] = Matrix(
                tensor, form, transposed=True, order_N=order, scale=scale
            )
    return matrices


def _order(config: ModelConfig, name: str, permuted: bool) -> np.ndarray | None:
    """The rows of a projection in our order, where the file's is another."""
    heads = {"query": config.num_heads, "key": config.kv_heads}.get(name)
    return halves_order(heads, config.width_per_head) if permuted and heads else None


def _ternary(matrices: dict[Place, Matrix]) -> TernaryConfig:
    """The parts whose kernels are all ternary: others compute with floats beside ternary ones."""
    whole = {
        part: all(m.form == "ternary" for place, m in matrices.items() if part in place)
        for part in ("mixer", "mlp")
    }
    return TernaryConfig(mixer=whole["mixer"], mlp=whole["mlp"])


def _tree(flat: dict[Place, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for (*path, last), leaf in flat.items():
        node = tree
        for name in path:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


def _description(file: GGUFFile, matrices: Iterable[Matrix]) -> str:
    types = collections.Counter(matrix.tensor.type_name for matrix in matrices)
    names = " and ".join(name for name, _ in types.most_common())
    text = f"GGUF, {file.metadata['general.architecture']}, {names}"
    loose = [m for m in matrices if m.tensor.type in TERNARY_TYPES and m.form != "ternary"]
    if loose:
        text += f"; {len(loose)} ternary tensors with many scales, in {loose[0].form}"
    return text


def _texts(file: GGUFFile) -> tuple[Tokenizer, str | None]:
    """The tokenizer, and the chat template where there is one."""
    try:
        tokenizer = tokenizers.from_gguf(file.metadata)
        return tokenizer, chat_templates.from_gguf(file.metadata, tokenizer)
    except DataError as error:
        raise DataError(f"{file.path}: {error.what}", error.why, error.fix) from None
