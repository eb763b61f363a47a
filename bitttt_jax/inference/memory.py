"""Memories: what a model keeps of the tokens that it has read, as files."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bitttt_jax.config import ModelConfig
from bitttt_jax.data import safetensors
from bitttt_jax.errors import DataError
from bitttt_jax.inference import steps
from bitttt_jax.inference.prefixes import SavedState
from bitttt_jax.inference.row_state import num_slots
from bitttt_jax.layers.attention import CacheType
from bitttt_jax.models import parameters
from bitttt_jax.models.transformer import ModelState

if TYPE_CHECKING:
    from bitttt_jax.inference.model import Model

_FORMAT = "bitttt-memory-1"
_TOKENS = "tokens"
_NOTE = "note:"
_SAMPLES = 4096  # of an array's values, for a model's fingerprint


class OtherModelError(DataError):
    """A memory that another model keeps."""


def save(
    path: Path,
    model: Model,
    config: ModelConfig,
    saved: SavedState,
    notes: Mapping[str, str] = {},
) -> None:
    """Writes a memory: there whole or not at all.

    Args:
      path: a safetensors file; one that is there is replaced.
      model: the model.
      config: the model's, with the window that it was run with.
      saved: tokens, and the state of the row that has read them.
      notes: further texts by name, which `load_with_notes` returns.

    Raises:
      DataError: it can't be written.
    """
    names, leaves = _named(saved.state)
    tensors = {name: np.asarray(leaf) for name, leaf in zip(names, leaves, strict=True)}
    tensors[_TOKENS] = saved.token_T.astype(np.int32)
    metadata = {
        **{f"{_NOTE}{name}": text for name, text in notes.items()},
        "format": _FORMAT,
        "model": fingerprint(model.params),
        "description": model.description,
        "slots": str(num_slots(saved.state)),
        "window": str(config.window),
    }
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            partial = Path(folder) / path.name
            safetensors.write(partial, tensors, metadata)
            os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path} can't be written", str(error), "another folder") from error


def load(path: Path, model: Model, config: ModelConfig, cache: CacheType | None) -> SavedState:
    """Reads a memory.

    Args:
      path: the file.
      model: the model, which must be the one that it was saved with.
      config: the model's, with the window that it is run with.
      cache: what its attention caches hold; None for the type of the activations.

    Raises:
      OtherModelError: the memory of another model.
      DataError: no such file, a damaged one, or one of other caches.
    """
    return load_with_notes(path, model, config, cache)[0]


def load_with_notes(
    path: Path, model: Model, config: ModelConfig, cache: CacheType | None
) -> tuple[SavedState, dict[str, str]]:
    """Reads a memory as `load` does, and what was noted with it."""
    tensors, metadata = safetensors.read(path)
    if metadata.get("format") != _FORMAT:
        raise DataError(
            f"{path} isn't a memory that this program reads",
            f"its format is {metadata.get('format', 'not given')!r}, not {_FORMAT!r}",
        )
    if metadata.get("model") != fingerprint(model.params):
        raise OtherModelError(
            f"{path} is the memory of another model",
            f"it was saved with weights that aren't these ({metadata.get('description', '')})",
            "the model that it was saved with, in the same form (packed or not)",
        )
    token_T = tensors.pop(_TOKENS, np.zeros(0, np.int32))
    if token_T.ndim != 1 or token_T.dtype != np.int32:
        raise DataError(f"{path} is damaged", "its tokens aren't a row of integers")
    slots, window = (_number(path, metadata, name) for name in ("slots", "window"))
    start = lambda params: steps.start(config, params, 1, max(slots, 1), cache)
    expected = jax.eval_shape(start, model.params)
    state = _state(path, expected, tensors)
    if int(state.position_B[0]) != len(token_T):
        raise DataError(f"{path} is damaged", "its position isn't the number of its tokens")
    if 0 < slots < len(token_T) and not 0 < config.window <= window:
        raise DataError(
            f"{path} keeps the latest tokens only, and this model sees more",
            f"it was saved with a window of {window}",
            f"--context={window} --overflow=slide",
        )
    notes = {k.removeprefix(_NOTE): v for k, v in metadata.items() if k.startswith(_NOTE)}
    return SavedState(token_T, jax.device_put(state)), notes


def _number(path: Path, metadata: dict[str, str], name: str) -> int:
    text = metadata.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise DataError(f"{path} is damaged", f"{name} is {text!r}")
    return int(text)


def fingerprint(params: Any) -> str:
    """Hexadecimal digest of a model's weights, the same on all devices: of values of each array.

    The codes of ternary weights are left out: devices lay them differently, and their scales change
    with every weight.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(parameters.flatten(params).items()):
        digest.update(f"{name} ".encode())
        if leaf.dtype != np.uint8:
            values = np.asarray(leaf).reshape(-1)
            digest.update(f"{leaf.dtype} {leaf.shape} ".encode())
            digest.update(values[:: -(-values.size // _SAMPLES) or 1].tobytes())
    return digest.hexdigest()


def _named(state: ModelState) -> tuple[list[str], list[Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return [name(path) for path, _ in leaves], [leaf for _, leaf in leaves]


def _state(path: Path, expected: ModelState, tensors: dict[str, np.ndarray]) -> ModelState:
    """The state out of a file's tensors, which must be exactly the expected ones."""
    names, leaves = _named(expected)
    faults = [f"{name} isn't part of the state" for name in tensors if name not in names]
    for name, leaf in zip(names, leaves, strict=True):
        there = tensors.get(name)
        if there is None:
            faults.append(f"{name} is missing")
        elif (there.shape, there.dtype) != (leaf.shape, leaf.dtype):
            own = f"{leaf.dtype}{list(leaf.shape)}"
            faults.append(f"{name} is {there.dtype}{list(there.shape)}, not {own}")
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise DataError(
            f"{path} doesn't fit this model's state",
            "; ".join(faults[:3]) + more,
            "the type of cache that it was saved with",
        )
    return jax.tree.unflatten(jax.tree.structure(expected), [tensors[name] for name in names])
