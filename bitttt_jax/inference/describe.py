"""What a model's files hold, read from their headers: no weight is loaded."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors

from bitttt_jax.config import ModelConfig
from bitttt_jax.config_loading import flatten, load_config, with_vocabulary
from bitttt_jax.data.manifest import TOKENIZER_FILE
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError
from bitttt_jax.inference import load, packed_model
from bitttt_jax.interop.gguf import GGUFFile, is_gguf, type_name
from bitttt_jax.interop.gguf_tensors import TERNARY_TYPES
from bitttt_jax.models import packed, parameters
from bitttt_jax.ops import tables
from bitttt_jax.ternary.packing import PackedTernary

CONFIG_FILE = "config.json"
_INDEX_FILE = "model.safetensors.index.json"
_MOST_JSON_BYTES = 50_000_000
_SHOWN_ITEMS = 16


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file."""

    name: str
    type: str
    """As the format calls it: `F32`, `ternary i2_s`, `Q4_K` …"""
    shape: tuple[int, ...]
    """Of the values, also where several share a byte."""
    bytes: int
    """In the file, scales included."""
    ternary: bool
    """Whether its values are ternary when the model runs."""

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Description:
    """A model as its files describe it."""

    path: str
    format: str
    """`run directory`, `packed folder`, `Hugging Face folder` or `GGUF`."""
    architecture: str
    """In a few words."""
    config: dict[str, Any]
    """Configuration by key, as the format has it."""
    tensors: list[TensorInfo]
    tokenizer: dict[str, Any]
    """Summary; empty where there is none that can be read, with the reason as `error`."""
    metadata: dict[str, Any]
    """Everything else that the files say about themselves."""

    @property
    def parameters(self) -> int:
        """Values of all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def ternary_parameters(self) -> int:
        """Of which ternary."""
        return sum(tensor.size for tensor in self.tensors if tensor.ternary)

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.bytes for tensor in self.tensors)


def describe(path: str | Path) -> Description:
    """Describes a model of any format that is known.

    Raises:
      DataError: no model there, or its files are damaged.
    """
    path = Path(path)
    known: tuple[tuple[Callable[[Path], bool], Callable[[Path], Description]], ...] = (
        (packed_model.is_packed_model, describe_packed),
        (is_gguf, describe_gguf),
        (_is_huggingface, describe_huggingface),
    )
    for fits, reader in known:
        if fits(path):
            return reader(path)
    return describe_run(path)


def describe_run(path: Path) -> Description:
    """Describes a run directory, at its newest checkpoint."""
    run = load.open_run(path)
    config = load_config(str(run.config_path))
    tokenizer = tokenizer_summary(path)
    if "vocabulary" in tokenizer:
        config = with_vocabulary(config, tokenizer["vocabulary"])
    leaves = parameters.flatten(load.abstract_params(config.model))
    tensors = [
        TensorInfo(
            name,
            str(leaf.dtype),
            leaf.shape,
            leaf.size * leaf.dtype.itemsize,
            parameters.is_ternary(config.model, name),
        )
        for name, leaf in leaves.items()
    ]
    metadata = {"checkpoints": sorted(run.checkpoint_steps())}
    return Description(
        str(path),
        "run directory",
        architecture(config.model),
        flatten(config.model),
        tensors,
        tokenizer,
        metadata,
    )


def describe_packed(path: Path) -> Description:
    """Describes a folder that `bitttt convert --to=packed` made."""
    manifest = packed_model.load_manifest(path / packed_model.MANIFEST_FILE)
    config = load_config(str(path / CONFIG_FILE)).model
    expected = packed_model.abstract_params(config, manifest.layout, manifest.table)
    whole = _whole_leaves(expected)
    stored, metadata = safetensors_header(path / packed_model.WEIGHTS_FILE)
    tensors: dict[str, TensorInfo] = {}
    for tensor in stored:
        name = tensor.name.rpartition("/")[0]
        if name not in whole:
            tensors[tensor.name] = tensor
            continue
        kind, shape, ternary = whole[name]
        before = tensors[name].bytes if name in tensors else 0
        tensors[name] = TensorInfo(name, kind, shape, before + tensor.bytes, ternary)
    metadata |= {"layout": manifest.layout, "table": manifest.table, "step": manifest.step}
    return Description(
        str(path),
        "packed folder",
        architecture(config),
        flatten(config),
        list(tensors.values()),
        tokenizer_summary(path),
        metadata,
    )


def _whole_leaves(expected: Any) -> dict[str, tuple[str, tuple[int, ...], bool]]:
    """Type, shape and whether it is ternary of what is stored as several tensors, by name."""
    found: dict[str, tuple[str, tuple[int, ...], bool]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected, is_leaf=packed.is_whole):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if isinstance(leaf, PackedTernary):
            found[name] = (f"ternary {leaf.layout}", leaf.shape, True)
        elif isinstance(leaf, tables.GroupedTable):
            found[name] = ("int4 groups", (leaf.codes.shape[0], leaf.width), False)
        elif isinstance(leaf, tables.QuantizedTable):
            found[name] = ("int8 rows", leaf.codes.shape, False)
    return found


def describe_gguf(path: Path) -> Description:
    """Describes a GGUF file, whether or not the model can be run here."""
    file = GGUFFile(path)
    ternary = {type_name(number) for number in TERNARY_TYPES}
    tensors = [
        TensorInfo(info.name, info.type_name, info.shape, info.nbytes, info.type_name in ternary)
        for info in file.tensors.values()
    ]
    metadata = {key: _summary(value) for key, value in file.metadata.items()}
    kind = str(metadata.get("general.architecture", "unnamed"))
    groups: dict[str, dict[str, Any]] = {f"{kind}.": {}, "tokenizer.": {}, "": {}}
    for key, value in metadata.items():
        start = next(start for start in groups if key.startswith(start))
        groups[start][key] = value
    config, tokenizer, rest = groups.values()
    return Description(str(path), "GGUF", kind, config, tensors, tokenizer, rest)


def _summary(value: Any) -> Any:
    """A value of a file's metadata; of long lists only how long they are."""
    if isinstance(value, list | np.ndarray):
        items = [item if isinstance(item, str) else item.item() for item in value[:_SHOWN_ITEMS]]
        return items if len(value) <= _SHOWN_ITEMS else f"{len(value):,} values"
    return value


def _is_huggingface(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file() and "model_type" in _json(path / CONFIG_FILE)


def describe_huggingface(path: Path) -> Description:
    """Describes a Hugging Face folder, whether or not the model can be run here."""
    config = _json(path / CONFIG_FILE)
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    is_bitnet = method == "bitnet" or config["model_type"] == "bitnet"
    tensors: list[TensorInfo] = []
    metadata: dict[str, Any] = {}
    for file in _weight_files(path):
        found, notes = safetensors_header(file)
        metadata |= notes
        tensors += [_bitnet_tensor(tensor) for tensor in found] if is_bitnet else found
    kind = f"{config['model_type']}{f', quantised by {method}' if method else ''}"
    return Description(
        str(path), "Hugging Face folder", kind, config, tensors, tokenizer_summary(path), metadata
    )


def _bitnet_tensor(tensor: TensorInfo) -> TensorInfo:
    if not tensor.name.endswith("_proj.weight"):
        return tensor
    if tensor.type != "U8":  # kept in float, made ternary when the model runs
        return dataclasses.replace(tensor, ternary=True)
    rows, *rest = tensor.shape  # a byte has the values of four rows
    return dataclasses.replace(tensor, type="U8, 2 bits", shape=(4 * rows, *rest), ternary=True)


def _weight_files(path: Path) -> list[Path]:
    index = path / _INDEX_FILE
    if not index.is_file():
        return sorted(path.glob("*.safetensors"))
    names = _json(index).get("weight_map")
    if not isinstance(names, dict):
        raise DataError(f"{index} has no weight_map")
    files = sorted({str(name) for name in names.values()})
    for name in files:
        if Path(name).name != name:
            raise DataError(f"{index} names a file outside of its folder: {name!r}")
    return [path / name for name in files]


def safetensors_header(path: Path) -> tuple[list[TensorInfo], dict[str, Any]]:
    """Tensors of a safetensors file, as they are stored, and its metadata.

    Raises:
      DataError: no such file, or its header is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            slices = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118
            tensors = [
                TensorInfo(name, part.get_dtype(), tuple(part.get_shape()), 0, False)
                for name, part in slices
            ]
            metadata = dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path} can't be read", str(error), "making or copying it again") from None
    bits = lambda name: int("".join(filter(str.isdigit, name.partition("_")[0])) or 8)
    return [
        dataclasses.replace(tensor, bytes=tensor.size * bits(tensor.type) // 8)
        for tensor in tensors
    ], metadata


def architecture(config: ModelConfig) -> str:
    """Of one of our models, in a few words."""
    parts = {"mixers": config.ternary.mixer, "MLPs": config.ternary.mlp}
    ternary = " and ".join(name for name, on in parts.items() if on)
    return (
        f"{', '.join(config.mixers)}; {config.num_layers} layers, width {config.dim}, "
        f"{config.num_heads} heads, {config.mlp}; {f'ternary {ternary}' if ternary else 'float'}"
    )


def tokenizer_summary(folder: Path) -> dict[str, Any]:
    """Vocabulary and special tokens of a folder's tokenizer."""
    try:
        tokenizer = Tokenizer.load(folder / TOKENIZER_FILE)
    except DataError as error:
        return {"error": error.what}
    return {
        "vocabulary": tokenizer.vocab_size,
        "begins documents": tokenizer.bos_id,
        "ends documents": tokenizer.eos_id,
        "fingerprint": tokenizer.fingerprint[:16],
    }


def _flat(config: ModelConfig) -> dict[str, Any]:
    return flatten(config)


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise DataError(f"{path} has more than {_MOST_JSON_BYTES} bytes")
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} can't be read", str(error)) from None
    if not isinstance(content, dict):
        raise DataError(f"{path} isn't a JSON object")
    return content
