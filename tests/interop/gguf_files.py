"""Small GGUF files, written by the published library where it knows the type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType as Type

from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.interop import gguf_tokenizer
from bitttt_jax.interop.gguf import I2_S
from bitttt_jax.interop.gguf_writer import NewTensor, write

HEADS, KV_HEADS = 2, 1
SUB_NORMED = ("bitnet", "bitnet-25", "bitnet-b1.58")


def weights(
    arch: str,
    *,
    dim: int = 8,
    hidden: int = 16,
    vocab: int = 264,
    blocks: int = 2,
    tied: bool = True,
    biases: bool = False,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Float32 tensors by GGUF's names, query and key with halves a head apart, as published."""
    rng = np.random.default_rng(seed)
    narrow = dim // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, dim)}
    shapes["output_norm.weight"] = (dim,)
    if not tied:
        shapes["output.weight"] = (vocab, dim)
    for i in range(blocks):
        matrices = {
            "attn_q": (dim, dim),
            "attn_k": (narrow, dim),
            "attn_v": (narrow, dim),
            "attn_output": (dim, dim),
            "ffn_gate": (hidden, dim),
            "ffn_up": (hidden, dim),
            "ffn_down": (dim, hidden),
            "attn_norm": (dim,),
            "ffn_norm": (dim,),
        }
        if arch in SUB_NORMED:
            matrices |= {"attn_sub_norm": (dim,), "ffn_sub_norm": (hidden,)}
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in matrices.items()}
        if biases:
            sizes = {"attn_q": dim, "attn_k": narrow, "attn_v": narrow}
            shapes |= {f"blk.{i}.{name}.bias": (size,) for name, size in sizes.items()}
    draw = lambda shape: rng.normal(size=shape).astype(np.float32)
    return {
        name: 1 + 0.1 * draw(shape) if "norm" in name else draw(shape)
        for name, shape in shapes.items()
    }


def ternary(values: dict[str, np.ndarray], scale: float = 0.5) -> dict[str, np.ndarray]:
    """The same with projections of -1, 0 and 1 times a scale that float16 has."""
    is_projection = lambda name: name.startswith("blk.") and values[name].ndim == 2
    return {
        name: scale * np.clip(np.rint(value), -1, 1) if is_projection(name) else value
        for name, value in values.items()
    }


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows as the converters of architecture `llama` lay them."""
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def metadata(arch: str, values: dict[str, np.ndarray], **changes: Any) -> dict[str, Any]:
    """Metadata of a model; a change to None leaves an entry out."""
    hidden, dim = values["blk.0.ffn_up.weight"].shape
    blocks = 1 + max(int(name.split(".")[1]) for name in values if name.startswith("blk."))
    entries = {
        "context_length": 64,
        "embedding_length": dim,
        "block_count": blocks,
        "feed_forward_length": hidden,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 500.0,
    }
    own = {f"{arch}.{name}": value for name, value in entries.items()}
    tokenizer = Tokenizer.train(["the theme then"] * 2, 264)
    words = gguf_tokenizer.metadata(tokenizer, len(values["token_embd.weight"]))
    return {
        key: value
        for key, value in ({"general.architecture": arch} | own | words | changes).items()
        if value is not None
    }


def write_model(
    path: Path,
    arch: str,
    values: dict[str, np.ndarray],
    *,
    matrix_type: Type = Type.F32,
    table_type: Type = Type.F32,
    **changes: Any,
) -> Path:
    """Writes a model with the published library; its projections and tables get the types."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata(arch, values, **changes).items():
        if key == "general.architecture":
            continue
        if isinstance(value, (list, np.ndarray)):
            if len(value):
                writer.add_array(key, value if isinstance(value, list) else value.tolist())
        else:
            kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
            writer.add_key_value(key, value, gguf.GGUFValueType[kinds[type(value)]])
    for name, value in values.items():
        type_ = matrix_type if name.startswith("blk.") else table_type
        if value.ndim == 1:
            type_ = Type.F32
        if arch == "llama" and ("attn_q" in name or "attn_k" in name):
            value = permuted(value, HEADS if "attn_q" in name else KV_HEADS)
        writer.add_tensor(name, gguf.quants.quantize(value, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def i2_s_bytes(values: np.ndarray, layout: str = "x86") -> np.ndarray:
    """A ternary matrix as bytes of type I2_S, code by code."""
    scale = np.abs(values).max()
    codes = (np.sign(values) + 1).astype(np.uint8).reshape(-1)
    block = 128 if layout == "x86" else 64
    packed = np.zeros(codes.size // 4, np.uint8)
    for i, code in enumerate(codes):
        start, place = divmod(i, block)
        field, byte = divmod(place, block // 4)
        packed[start * block // 4 + byte] |= code << (6 - 2 * field)
    tail = np.zeros(28, np.uint8)
    return np.concatenate([packed, np.float32([scale]).view(np.uint8), tail])


def write_i2_s_model(
    path: Path, arch: str, values: dict[str, np.ndarray], layout: str = "x86", **changes: Any
) -> Path:
    """Writes a model whose projections are I2_S, its embedding float16."""

    def tensor(name: str, value: np.ndarray) -> NewTensor:
        if value.ndim == 1:
            return NewTensor(name, value.shape, Type.F32, lambda: [value])
        if not name.startswith("blk."):
            return NewTensor(name, value.shape, Type.F16, lambda: [value.astype(np.float16)])
        return NewTensor(name, value.shape, I2_S, lambda: [i2_s_bytes(value, layout)])

    tensors = [tensor(name, value) for name, value in values.items()]
    write(path, metadata(arch, values, **changes), tensors)
    return path
