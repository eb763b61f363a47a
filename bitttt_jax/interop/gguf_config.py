"""What GGUF's metadata say about a network: its `ModelConfig`, and what can't be run here."""

from __future__ import annotations

import dataclasses

import numpy as np

from bitttt_jax.config import ModelConfig, RopeScalingConfig, TernaryConfig
from bitttt_jax.errors import ConfigError, DataError
from bitttt_jax.interop.gguf import GGUFFile
from bitttt_jax.interop.gguf_tensors import float_rows
from bitttt_jax.ops import rope

ROPE_FACTORS = "rope_freqs.weight"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How a kind of network differs from the others."""

    mlp: str = "swiglu"
    sub_norms: bool = False
    permuted: bool = False
    """Whether rows of query and key lie so that RoPE's pairs are neighbours."""


ARCHITECTURES = {
    "llama": Architecture(permuted=True),
    "qwen2": Architecture(),
    "bitnet": Architecture(sub_norms=True),
    "bitnet-25": Architecture(mlp="relu2_glu", sub_norms=True),
    "bitnet-b1.58": Architecture(mlp="relu2_glu", sub_norms=True),
}


def architecture(file: GGUFFile) -> Architecture:
    """How a file's network is built.

    Raises:
      DataError: it's none that is known here, or not a whole language model.
    """
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise DataError(f"{file.path}: general.architecture is {name!r}", f"known are {known}")
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        raise DataError(f"{file.path}: general.type is {kind!r}, not a whole model")
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise DataError(
            f"{file.path}: split.count says that it is one of several files",
            fix="joining them with llama.cpp's llama-gguf-split --merge",
        )
    return ARCHITECTURES[name]


def model_config(file: GGUFFile) -> ModelConfig:
    """The network of a file, with nothing ternary in it yet.

    Raises:
      DataError: metadata are missing or contradict each other, or ask for what isn't there here.
    """
    kind = architecture(file)
    read = _Reader(file)
    dim = read.whole("embedding_length")
    heads = read.whole("attention.head_count")
    width = read.whole("attention.key_length", dim // heads)
    read.refuse("attention.value_length", width, "values as wide as keys")
    read.refuse("rope.dimension_count", width, "RoPE on whole heads")
    read.refuse("expert_count", 0, "no experts")
    read.refuse("attention.causal", True, "causal attention")
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise DataError(f"{file.path}: tensor token_embd.weight is missing or no table")
    try:
        return ModelConfig(
            vocab_size=table.shape[0],
            dim=dim,
            num_layers=read.whole("block_count"),
            num_heads=heads,
            num_kv_heads=read.whole("attention.head_count_kv", heads),
            head_dim=width,
            mlp_dim=read.whole("feed_forward_length"),
            mlp="relu2_glu" if kind.mlp == "relu2_glu" else "swiglu",
            norm_placement="subln" if kind.sub_norms else "llama",
            norm_eps=read.real("attention.layer_norm_rms_epsilon"),
            rope_theta=read.real("rope.freq_base", 10_000.0),
            rope_scaling=_rope_scaling(file, read, width),
            qkv_bias="blk.0.attn_q.bias" in file.tensors,
            window=read.whole("attention.sliding_window", 0),
            tie_embeddings="output.weight" not in file.tensors,
            compute_dtype="bfloat16",
            ternary=TernaryConfig(mixer=False, mlp=False),
        )
    except ConfigError as error:
        raise DataError(f"{file.path}: its metadata contradict each other", str(error)) from None


def context_length(file: GGUFFile) -> int:
    """Most tokens of a sequence."""
    return _Reader(file).whole("context_length")


class _Reader:
    """Typed values of the metadata that are named after the architecture."""

    def __init__(self, file: GGUFFile):
        self.file = file
        self.prefix = file.metadata["general.architecture"]

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number, positive unless the default isn't."""
        value = self._get(name, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()  # one for each block
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
            raise self._fault(name, value, "it must be one whole number")
        if value == 0 and default != 0:
            raise self._fault(name, value, "it must be positive")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self._get(name, default)
        if not isinstance(value, float) or not 0 < value < np.inf:
            raise self._fault(name, value, "it must be a positive number")
        return float(str(np.float32(value)))  # 1e-05 was written, not 9.999999747378752e-06

    def refuse(self, name: str, only: object, what: str) -> None:
        """Refuses any value but one."""
        value = self._get(name, only)
        if value != only:
            raise self._fault(name, value, f"only {what} ({only}) can be run here")

    def text(self, name: str, default: str) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._fault(name, value, "it must be a text")
        return value

    def _get(self, name: str, default: object) -> object:
        value = self.file.metadata.get(f"{self.prefix}.{name}", default)
        if value is None:
            raise DataError(f"{self.file.path}: metadata entry {self.prefix}.{name} is missing")
        return value

    def _fault(self, name: str, value: object, why: str) -> DataError:
        shown = f"an array of {len(value)}" if isinstance(value, np.ndarray | list) else repr(value)
        return DataError(f"{self.file.path}: {self.prefix}.{name} is {shown}", why)


def _rope_scaling(file: GGUFFile, read: _Reader, width: int) -> RopeScalingConfig:
    # Without a type llama.cpp takes a factor as linear, and 0 as none.
    is_zero = file.metadata.get(f"{read.prefix}.rope.scaling.factor") == 0
    factor = 1.0 if is_zero else read.real("rope.scaling.factor", 1.0)
    kind = read.text("rope.scaling.type", "none" if factor == 1 else "linear")
    if kind not in ("none", "linear"):
        raise DataError(
            f"{file.path}: {read.prefix}.rope.scaling.type is {kind!r}",
            "RoPE is stretched here as `linear`, or by the factors of Llama 3",
        )
    if ROPE_FACTORS in file.tensors:
        if kind == "linear" and factor != 1:
            raise DataError(f"{file.path}: RoPE is stretched twice, by {ROPE_FACTORS} too")
        return _llama3_scaling(file, read.real("rope.freq_base", 10_000.0), width)
    if kind == "none" or factor == 1:
        return RopeScalingConfig()
    return RopeScalingConfig(kind="linear", factor=factor)


def _llama3_scaling(file: GGUFFile, theta: float, width: int) -> RopeScalingConfig:
    """The settings that a table of factors was made with: Llama 3.1's but for the largest."""
    tensor = file.tensors[ROPE_FACTORS]
    if tensor.shape != (width // 2,):
        raise DataError(f"{file.path}: tensor {ROPE_FACTORS} is {list(tensor.shape)}")
    try:
        factors = float_rows(file.raw(tensor)[None], tensor.type)[0]
    except ValueError as error:
        raise DataError(f"{file.path}: tensor {ROPE_FACTORS} can't be used: {error}") from None
    if (factors == 1).all():
        return RopeScalingConfig()
    largest = float(factors.max())
    if np.isfinite(factors).all() and largest > 0:
        scaling = RopeScalingConfig("llama3", largest)
        plain = rope.frequencies(width, theta, RopeScalingConfig())
        if np.allclose(plain / rope.frequencies(width, theta, scaling), factors, rtol=1e-4):
            return scaling
    raise DataError(
        f"{file.path}: the factors in {ROPE_FACTORS} aren't those of Llama 3",
        "known are a low frequency factor of 1, a high one of 4 and a first context of 8192",
    )
