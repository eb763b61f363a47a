"""Our attention models as GGUF files that llama.cpp and bitnet.cpp run.

Which of the architectures known there is the same function as a model follows from its norms and
its MLP: `llama` (norms before mixer and MLP), `bitnet` (before the output projections too), and
`bitnet-b1.58`, which has squared ReLU and is run by bitnet.cpp only. Whether weights are ternary is
a matter of the tensors' types. A file is read back and its logits compared before it gets its name.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from bitttt_jax.config import ModelConfig, RopeScalingConfig
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import ConfigError, DataError
from bitttt_jax.interop import gguf_export_tensors, gguf_model, gguf_tokenizer, gguf_writer
from bitttt_jax.interop.gguf import I2_S, I2_S_BLOCK
from bitttt_jax.interop.gguf_config import ARCHITECTURES
from bitttt_jax.interop.gguf_model import MIXER, projection_shapes
from bitttt_jax.interop.gguf_writer import Value
from bitttt_jax.models import packed, transformer
from bitttt_jax.ternary.packing import PackedTernary, pack, unpack

Kind = Literal["gguf-f16", "gguf-tq1_0", "gguf-tq2_0", "gguf-i2_s"]
"""What ternary matrices become; all others become float16, and vectors float32."""

_TYPES: dict[Kind, tuple[int, int]] = {
    "gguf-f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "gguf-tq1_0": (GGMLQuantizationType.TQ1_0, LlamaFileType.MOSTLY_TQ1_0),
    "gguf-tq2_0": (GGMLQuantizationType.TQ2_0, LlamaFileType.MOSTLY_TQ2_0),
    "gguf-i2_s": (I2_S, 40),
}
_LLAMA3 = RopeScalingConfig("llama3")
_TOKENS_COMPARED = 32
# Of the logits' spread. Scales and floats are rounded to float16, which moves an activation's int8
# code here and there; a matrix in the wrong place or order gives about 1.
_MOST_DIFFERENCE = 0.1


@dataclasses.dataclass(frozen=True)
class Export:
    """What was written."""

    architecture: str
    runs_in: str
    """Programs that run it."""
    nbytes: int
    difference: float
    """Of the logits of the file as it was read back, root mean square relative to their spread."""


def write(
    path: Path,
    config: ModelConfig,
    params: transformer.Params,
    tokenizer: Tokenizer,
    kind: Kind,
    *,
    name: str,
    context: int,
    chat_template: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Export:
    """Writes a model, reads it back, and compares their logits; the file is there whole or not.

    Args:
      path: where; a file that is there is replaced.
      config: the model's.
      params: latent parameters, or those for inference.
      tokenizer: the model's.
      kind: types of the tensors.
      name: of the model, for those who look into the file.
      context: most tokens of a sequence.
      chat_template: Jinja template of conversations.
      progress: called with the tensors that are written and all of them.

    Raises:
      ConfigError: no architecture of GGUF is this model, or a width doesn't fit the type.
      DataError: the tokenizer doesn't fit, the file can't be written, or isn't what was read.
    """
    if "blocks" in params:
        params = packed.pack_params(config, params)
    own = architecture(config, kind)
    wide_config, wide_params = _widen(config, params, _block(kind))
    tensors = gguf_export_tensors.tensors(
        wide_config, wide_params, _TYPES[kind][0], permuted=ARCHITECTURES[own].permuted
    )
    entries = _metadata(wide_config, own, kind, name, context)
    entries |= gguf_tokenizer.metadata(tokenizer, config.vocab_size)
    if chat_template is not None:
        entries["tokenizer.chat_template"] = chat_template
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            partial = Path(folder) / path.name
            gguf_writer.write(partial, entries, tensors, progress)
            difference = _compare(partial, config, params, tokenizer)
            nbytes = partial.stat().st_size
            partial.replace(path)
    except OSError as error:
        raise DataError(f"{path} can't be written", str(error), "another folder") from error
    runs_in = "bitnet.cpp" if kind == "gguf-i2_s" or own == "bitnet-b1.58" else "llama.cpp"
    return Export(own, runs_in, nbytes, difference)


def architecture(config: ModelConfig, kind: Kind) -> str:
    """Name of the architecture that a model is.

    Raises:
      ConfigError: there is none, or a width doesn't fit the type.
    """
    for index, mixer in enumerate(config.mixers):
        if mixer != "attention":
            raise _refusal(kind, f"block {index} is {mixer}, and GGUF has no layer that learns")
    how = config.ternary
    if how.mixer or how.mlp:
        packed.check_packable(config)
    elif kind != "gguf-f16":
        raise _refusal(kind, "nothing in this model is ternary", "--to=gguf-f16")
    if how.inner_norm:
        raise _refusal(kind, "its ternary layers have norms of their own (inner_norm)")
    if config.window:
        raise _refusal(kind, f"its attention has a window ({config.window})")
    _check_widths(config, kind)
    if config.norm_placement == "llama":
        if config.mlp != "swiglu":
            raise _refusal(kind, f"mlp={config.mlp} with norm_placement=llama is unknown there")
        if config.rope_scaling.kind == "llama3":
            factor = config.rope_scaling.factor
            if dataclasses.replace(_LLAMA3, factor=factor) != config.rope_scaling:
                raise _refusal(kind, "its RoPE is stretched with other settings than Llama 3's")
        return "llama"
    faults = {
        "an output head of its own": not config.tie_embeddings,
        "biases": config.qkv_bias,
        "heads that aren't dim / num_heads wide": config.width_per_head * config.num_heads
        != config.dim,
        "RoPE stretched as in Llama 3": config.rope_scaling.kind == "llama3",
    }
    for what, there in faults.items():
        if there:
            raise _refusal(kind, f"it has norms before output projections, and {what}")
    if config.mlp == "swiglu":
        return "bitnet"
    if kind in ("gguf-tq1_0", "gguf-tq2_0"):
        raise _refusal(kind, "squared ReLU is run by bitnet.cpp only", "--to=gguf-i2_s")
    return "bitnet-b1.58"


def _refusal(kind: Kind, why: str, fix: str = "--to=packed") -> ConfigError:
    return ConfigError(f"this model can't be written as {kind}", why, fix)


def _block(kind: Kind) -> int:
    """Values of a ternary matrix's row that make a block."""
    type_ = _TYPES[kind][0]
    return I2_S_BLOCK if type_ == I2_S else GGML_QUANT_SIZES[GGMLQuantizationType(type_)][0]


def _can_widen(config: ModelConfig) -> bool:
    """Whether hidden values of the MLP that are 0 change nothing: no norm counts them."""
    return config.norm_placement == "llama" and config.ternary.mlp


def _widen(
    config: ModelConfig, params: transformer.Params, block: int
) -> tuple[ModelConfig, transformer.Params]:
    """The same model with an MLP of whole blocks: what is added has weights of 0."""
    added = -config.mlp_dim % block
    if not added or not _can_widen(config):
        return config, params

    def widen(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "/mlp/" not in name or not isinstance(leaf, PackedTernary):
            return leaf
        pads = ((0, added), (0, 0)) if name.endswith("down/kernel") else ((0, 0), (0, added))
        return pack(jnp.pad(unpack(leaf), pads), leaf.scale, leaf.layout)

    wide = jax.tree_util.tree_map_with_path(widen, params, is_leaf=packed.is_whole)
    return dataclasses.replace(config, mlp_dim=config.mlp_dim + added), wide


def _check_widths(config: ModelConfig, kind: Kind) -> None:
    block = _block(kind)
    for name, (_, K) in projection_shapes(config).items():
        is_ternary = config.ternary.mixer if name in MIXER else config.ternary.mlp
        if is_ternary and K % block and not (name == "down" and _can_widen(config)):
            part = "mixer" if name in MIXER else "mlp"
            what = f"{part}/{name} has {K} inputs, and blocks have {block}"
            raise _refusal(kind, what, "--to=gguf-f16, or widths that are multiples of it")


def _metadata(
    config: ModelConfig, own: str, kind: Kind, name: str, context: int
) -> dict[str, Value]:
    entries: dict[str, Value] = {
        "vocab_size": config.vocab_size,
        "context_length": context,
        "embedding_length": config.dim,
        "block_count": config.num_layers,
        "feed_forward_length": config.mlp_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.width_per_head,
        "attention.value_length": config.width_per_head,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": config.width_per_head,
        "rope.freq_base": float(config.rope_theta),
    }
    if config.rope_scaling.kind == "linear":
        entries["rope.scaling.type"] = "linear"
        entries["rope.scaling.factor"] = float(config.rope_scaling.factor)
    return {
        "general.architecture": own,
        "general.type": "model",
        "general.name": name,
        "general.file_type": int(_TYPES[kind][1]),
        "general.quantization_version": 2,
        **{f"{own}.{key}": value for key, value in entries.items()},
    }


def _compare(
    path: Path, config: ModelConfig, params: transformer.Params, tokenizer: Tokenizer
) -> float:
    """Reads a file back; returns how far its logits are from those of the parameters."""
    again = gguf_model.load(path, "float32")
    text = "The quick brown fox, aged 12, jumps over\n\tthe lazy dog's 3,456 été."
    if not np.array_equal(again.tokenizer.encode(text), tokenizer.encode(text)):
        raise DataError("the tokenizer that was written isn't the same when it is read back")
    read_config = dataclasses.replace(again.config, compute_dtype=config.compute_dtype)
    token_T = np.random.default_rng(0).integers(0, tokenizer.vocab_size, _TOKENS_COMPARED)
    before, after = (
        np.asarray(_logits(c, p, jnp.asarray(token_T[None])))
        for c, p in ((config, params), (read_config, again.params))
    )
    difference = float(np.sqrt(np.mean((after - before) ** 2)) / np.std(before))
    if not difference <= _MOST_DIFFERENCE:
        raise DataError(
            "the model that was written isn't the same when it is read back",
            f"its logits differ by {difference:.2g} of their spread",
            "reporting this, with the model's config.json",
        )
    return difference


@jax.jit(static_argnums=0)
def _logits(config: ModelConfig, params: Any, token_BT: jax.Array) -> jax.Array:
    return transformer.logits(config, params, transformer.read(config, params, token_BT))
