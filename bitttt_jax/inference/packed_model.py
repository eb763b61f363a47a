"""Folders of packed models: weights, configuration, tokenizer, and a manifest with their hashes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import pydantic

from bitttt_jax.config import ModelConfig, TrainConfig
from bitttt_jax.config_loading import load_config, to_json
from bitttt_jax.data import safetensors
from bitttt_jax.data.manifest import TOKENIZER_FILE
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError
from bitttt_jax.models import packed, parameters, transformer
from bitttt_jax.models.packed import TableType
from bitttt_jax.models.transformer import Params
from bitttt_jax.ternary.packing import Layout, PackedTernary, convert_layout

FORMAT_VERSION = 1
MANIFEST_FILE = "packed.json"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
_HASHED_FILES = (WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE)


@dataclasses.dataclass(frozen=True)
class PackedManifest:
    """What a folder of a packed model holds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    layout: Layout
    """Of the ternary weights."""
    table: TableType
    """Of the embedding and the output head."""
    step: int | None
    """Training step that the weights are of, where they were trained here."""
    sha256: dict[str, str]
    """Hexadecimal digests of the other files but the model card."""
    context: int | None = None
    """Most tokens of a sequence that the model was made for, where that is known."""
    chat_template: str | None = None
    """Jinja template of conversations, where the model has one."""
    format_version: int = FORMAT_VERSION
    """Rises when older programs can't read the folder."""


def save(
    folder: Path,
    config: TrainConfig,
    params: Params,
    tokenizer: Tokenizer,
    *,
    step: int | None,
    layout: Layout,
    table: TableType,
    context: int | None,
    chat_template: str | None,
    card: str,
) -> None:
    """Writes a folder, which is there whole or not at all.

    Args:
      folder: where; must not exist.
      config: of the training run.
      params: packed parameters (`models.packed.pack_params`).
      tokenizer: the model's.
      step: training step of the parameters.
      layout: of the parameters' ternary weights.
      table: of their embedding and output head.
      context: most tokens of a sequence that the model was made for.
      chat_template: Jinja template of conversations.
      card: text of the model card.

    Raises:
      DataError: it can't be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            partial = Path(temporary) / folder.name
            partial.mkdir()
            tensors = {path: np.asarray(leaf) for path, leaf in parameters.flatten(params).items()}
            safetensors.write(partial / WEIGHTS_FILE, tensors, {"format": "bitttt-packed"})
            (partial / CONFIG_FILE).write_text(to_json(config))
            tokenizer.save(partial / TOKENIZER_FILE)
            sha256 = {name: digest(partial / name) for name in _HASHED_FILES}
            manifest = PackedManifest(layout, table, step, sha256, context, chat_template)
            (partial / MANIFEST_FILE).write_text(_adapter().dump_json(manifest, indent=2).decode())
            (partial / CARD_FILE).write_text(card)
            partial.rename(folder)
    except OSError as error:
        raise DataError(f"{folder} can't be written", str(error), "another folder") from error


def is_packed_model(folder: Path) -> bool:
    """Whether a folder is one of a packed model."""
    return (folder / MANIFEST_FILE).is_file()


def load(folder: Path) -> tuple[TrainConfig, Params, Tokenizer, PackedManifest]:
    """Loads a folder; on CPUs the weights are in memory once.

    Raises:
      DataError: a file is missing, changed or damaged, a newer program wrote it, or the weights
        aren't those of the configuration.
    """
    manifest = load_manifest(folder / MANIFEST_FILE)
    for name in (CONFIG_FILE, TOKENIZER_FILE):
        _check_digest(folder / name, manifest, digest(folder / name))
    config = load_config(str(folder / CONFIG_FILE))
    # The weights are hashed while they are read, in one pass.
    weights = hashlib.sha256()
    tensors, _ = safetensors.read(folder / WEIGHTS_FILE, weights)
    _check_digest(folder / WEIGHTS_FILE, manifest, weights.hexdigest())
    expected = abstract_params(config.model, manifest.layout, manifest.table)
    params = readable(_params(expected, tensors, folder / WEIGHTS_FILE))
    return config, params, Tokenizer.load(folder / TOKENIZER_FILE), manifest


def abstract_params(config: ModelConfig, layout: Layout, table: TableType) -> Params:
    """Shapes and types of a model's packed parameters."""

    def packed_params() -> Params:
        params = transformer.init_params(config, jax.random.key(0))
        return packed.pack_params(config, params, layout, table)

    return jax.eval_shape(packed_params)


def _params(expected: Params, tensors: dict[str, np.ndarray], path: Path) -> Params:
    """The parameters out of a file's tensors, which must be exactly the expected ones."""
    leaves = parameters.flatten(expected)
    faults = [f"{name} is missing" for name in leaves if name not in tensors]
    faults += [f"{name} isn't part of the model" for name in tensors if name not in leaves]
    for name, leaf in leaves.items():
        if name in tensors and (tensors[name].shape, tensors[name].dtype) != (
            leaf.shape,
            leaf.dtype,
        ):
            there = tensors[name]
            faults.append(
                f"{name} is {there.dtype}{list(there.shape)}, not {leaf.dtype}{list(leaf.shape)}"
            )
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise DataError(f"{path} doesn't fit its config.json", "; ".join(faults[:3]) + more)
    for name, leaf in _packed_leaves(expected).items():
        _check_codes(tensors[f"{name}/codes"], leaf, path, name)
    return jax.tree.map(lambda name: as_array(tensors[name]), parameters.leaf_paths(expected))


def as_array(values: np.ndarray) -> jax.Array:
    """A JAX array of some values; on CPUs it is the same memory, where that is aligned."""
    return jax.device_put(values)


def readable(params: Params) -> Params:
    """Parameters with ternary weights in the layout that the kernel of this backend reads."""
    is_packed = lambda leaf: isinstance(leaf, PackedTernary)
    wanted: Layout = "rows4" if jax.default_backend() == "tpu" else "i2_s"
    convert = jax.jit(lambda leaf: convert_layout(leaf, wanted))
    return jax.tree.map(
        lambda leaf: convert(leaf) if is_packed(leaf) and leaf.layout != wanted else leaf,
        params,
        is_leaf=is_packed,
    )


def _packed_leaves(params: Params) -> dict[str, PackedTernary]:
    is_packed = lambda leaf: isinstance(leaf, PackedTernary)
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_packed)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): leaf for path, leaf in leaves if is_packed(leaf)}


def _check_codes(codes: np.ndarray, leaf: PackedTernary, path: Path, name: str) -> None:
    """Refuses codes that stand for no weight."""
    if leaf.layout == "base3":
        wrong = codes.max(initial=0) > 242
    else:
        # The code that means nothing: 3 where codes are 0 to 2, -2 where they are two's complement.
        low = codes if leaf.layout == "i2_s" else ~codes
        wrong = np.any(low & (codes >> 1) & 0x55)
    if wrong:
        raise DataError(f"{path} holds a code in {name} that is no ternary weight")


def load_manifest(path: Path) -> PackedManifest:
    """Reads a folder's manifest.

    Raises:
      DataError: it is damaged, or a newer program wrote it.
    """
    try:
        text = path.read_bytes()
        version = json.loads(text)["format_version"]
        if version == FORMAT_VERSION:
            return _adapter().validate_json(text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged", str(error), "converting the model again") from None
    raise DataError(
        f"{path} has format version {version!r}, this program reads {FORMAT_VERSION}",
        fix="a newer bitttt_jax, or converting the model again",
    )


def _check_digest(path: Path, manifest: PackedManifest, found: str) -> None:
    if found != manifest.sha256.get(path.name):
        raise DataError(
            f"{path} isn't the file that was saved",
            "its SHA-256 isn't the one in packed.json",
            "copying or converting the model again",
        )


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} can't be read", error.strerror or "") from None


@functools.cache
def _adapter() -> pydantic.TypeAdapter[PackedManifest]:
    return pydantic.TypeAdapter(PackedManifest)
