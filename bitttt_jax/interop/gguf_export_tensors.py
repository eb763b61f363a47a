"""A model's parameters as the tensors of a GGUF file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from gguf import quants
from gguf.constants import GGMLQuantizationType

from bitttt_jax.config import ModelConfig
from bitttt_jax.errors import DataError
from bitttt_jax.interop.gguf import I2_S, I2_S_TAIL
from bitttt_jax.interop.gguf_config import ROPE_FACTORS
from bitttt_jax.interop.gguf_model import MIXER, MLP, halves_order, projection_shapes
from bitttt_jax.interop.gguf_tensors import unpack_codes
from bitttt_jax.interop.gguf_writer import NewTensor
from bitttt_jax.models import transformer
from bitttt_jax.models.parameters import group_name
from bitttt_jax.ops import rope, tables
from bitttt_jax.ternary.packing import PackedTernary, convert_layout

_VALUES_AT_ONCE = 2**22


def tensors(
    config: ModelConfig, params: transformer.Params, ternary_type: int, *, permuted: bool
) -> list[NewTensor]:
    """A model's tensors.

    Args:
      config: the model's.
      params: for inference (`packed.pack_params`).
      ternary_type: of ternary matrices; all others become float16, and vectors float32.
      permuted: whether rows of query and key come to lie so that RoPE's pairs are neighbours.

    Returns:
      Tensors whose data are made as they are written; that raises a `DataError` for values that
      float16 can't hold.
    """
    matrix = functools.partial(_matrix, ternary_type=ternary_type)
    shape = config.vocab_size, config.dim
    found = [matrix("token_embd.weight", params["embed"]["embedding"], shape, is_table=True)]
    if not config.tie_embeddings:
        found.append(matrix("output.weight", params["head"]["kernel"], shape))
    found.append(_vector("output_norm.weight", params["final_norm"]["scale"]))
    if config.rope_scaling.kind == "llama3":
        plain, stretched = (
            rope.frequencies(config.width_per_head, config.rope_theta, scaling)
            for scaling in (rope.NO_SCALING, config.rope_scaling)
        )
        found.append(_vector(ROPE_FACTORS, plain / stretched))
    orders: dict[str, np.ndarray] = {}
    if permuted:
        counts = {"query": config.num_heads, "key": config.kv_heads}
        orders = {
            name: np.argsort(halves_order(count, config.width_per_head))
            for name, count in counts.items()
        }
    for index in range(config.num_layers):
        group, place = divmod(index, len(config.mixers))
        block = params[group_name(group)][f"block_{place}"]
        found += _block_tensors(config, block, f"blk.{index}", orders, matrix)
    return found


def _block_tensors(
    config: ModelConfig,
    block: Any,
    prefix: str,
    orders: Mapping[str, np.ndarray],
    matrix: Callable[..., NewTensor],
) -> Iterator[NewTensor]:
    yield _vector(f"{prefix}.attn_norm.weight", block["mixer_norm"]["scale"])
    yield _vector(f"{prefix}.ffn_norm.weight", block["mlp_norm"]["scale"])
    for part, theirs, norm in (("mixer", MIXER, "attn"), ("mlp", MLP, "ffn")):
        if "sub_norm" in block[part]:
            yield _vector(f"{prefix}.{norm}_sub_norm.weight", block[part]["sub_norm"]["scale"])
        for name, stem in theirs.items():
            layer, order = block[part][name], orders.get(name)
            shape = projection_shapes(config)[name]
            yield matrix(f"{prefix}.{stem}.weight", layer["kernel"], shape, order_N=order)
            if "bias" in layer:
                bias = np.asarray(layer["bias"])
                yield _vector(f"{prefix}.{stem}.bias", bias if order is None else bias[order])


def _vector(name: str, values: Any) -> NewTensor:
    array = np.asarray(values, np.float32)
    return NewTensor(name, array.shape, GGMLQuantizationType.F32, lambda: [array])


def _matrix(
    name: str,
    leaf: Any,
    shape: tuple[int, int],
    *,
    ternary_type: int,
    is_table: bool = False,
    order_N: np.ndarray | None = None,
) -> NewTensor:
    """A matrix `[N, K]`, its rows in another order where one is given."""
    type_: int = GGMLQuantizationType.F16
    if isinstance(leaf, PackedTernary):
        type_ = ternary_type
        pieces = functools.partial(_ternary_pieces, name, leaf, type_, order_N)
    else:
        pieces = functools.partial(_float16_pieces, name, leaf, shape, is_table, order_N)
    return NewTensor(name, shape, type_, pieces)


def _rows(N: int, K: int, order_N: np.ndarray | None) -> Iterator[np.ndarray]:
    order_N = np.arange(N) if order_N is None else order_N
    size = max(1, _VALUES_AT_ONCE // K)
    return (order_N[start : start + size] for start in range(0, N, size))


def _ternary_pieces(
    name: str, leaf: PackedTernary, type_: int, order_N: np.ndarray | None
) -> Iterator[np.ndarray]:
    K, N = leaf.shape
    codes_NB = np.asarray(convert_layout(leaf, "i2_s").codes)
    scale = np.asarray(leaf.scale, np.float32)
    if type_ == I2_S:
        yield codes_NB if order_N is None else codes_NB[order_N]
        yield scale.reshape(1)
        yield np.zeros(I2_S_TAIL - scale.nbytes, np.uint8)
        return
    for index in _rows(N, K, order_N):
        values = (unpack_codes(codes_NB[index], K).astype(np.float32) - 1) * scale
        _check_range(name, values)
        yield quants.quantize(values, GGMLQuantizationType(type_))


def _float16_pieces(
    name: str, leaf: Any, shape: tuple[int, int], is_table: bool, order_N: np.ndarray | None
) -> Iterator[np.ndarray]:
    by_row = is_table or tables.is_quantized(leaf)
    table = leaf if by_row else leaf.T
    for index in _rows(*shape, order_N):
        values = np.asarray(tables.look_up(table, jnp.asarray(index)), np.float32)
        _check_range(name, values)
        yield values.astype(np.float16)


def _check_range(name: str, values: np.ndarray) -> None:
    largest = float(np.max(np.abs(values)))
    if not largest <= float(np.finfo(np.float16).max):
        raise DataError(f"{name} has the value {largest:g}, which float16 can't hold")
