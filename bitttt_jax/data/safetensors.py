"""safetensors files, read in one piece.

The format is a length, a JSON header and the bytes of all tensors, without gaps
(https://github.com/huggingface/safetensors). The published library orders tensors by type and
makes an array of each; here they stay where the file's bytes were read to, and large ones start at
multiples of 64 bytes, so that JAX's CPU backend takes them as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import ml_dtypes
import numpy as np

from bitttt_jax.data.memory import large_buffer
from bitttt_jax.errors import DataError

ALIGNMENT = 64
_MOST_HEADER_BYTES = 100_000_000  # as in the published library
_READ_BYTES = 2**20  # at once: few enough that a digest finds them in the cache
_NUMPY_TYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _NUMPY_TYPES.items()}


class Digest(Protocol):
    """A hash of `hashlib`."""

    def update(self, data: Any, /) -> None:
        """Takes in more bytes."""


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file.

    Args:
      path: where; a file that is there is replaced.
      tensors: arrays by name.
      metadata: texts by name.

    Raises:
      OSError: the folder isn't writable, or the disk is full.
    """
    # Those whose size keeps the ones behind them aligned come first.
    order = sorted(tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT != 0, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": tensors[name].shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            # As bytes: buffers of bfloat16 aren't known to files.
            file.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)


def read(path: Path, digest: Digest | None = None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a file, once.

    Args:
      path: the file.
      digest: takes in all of its bytes on the way.

    Returns:
      Arrays by name, which are views of one buffer (`memory.large_buffer`), and the metadata.

    Raises:
      DataError: no such file, or not a whole safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if not 2 <= length <= min(size - 8, _MOST_HEADER_BYTES):
                raise ValueError("the header's length is impossible")
            text = file.read(length)
            header = json.loads(text)
            data = large_buffer(size - 8 - length)
            if digest:
                digest.update(prefix + text)
            _fill(data, file, digest)
        metadata = header.pop("__metadata__", {})
        tensors = {name: _tensor(data, entry) for name, entry in header.items()}
        used = sum(tensor.nbytes for tensor in tensors.values())
        if used != len(data):
            raise ValueError(f"its tensors have {used} bytes, and it holds {len(data)}")
    except OSError as error:
        raise DataError(f"{path} can't be read", str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} isn't a whole safetensors file", str(error), "making or copying it again"
        ) from error
    return tensors, metadata


def _fill(data: np.ndarray, file: BinaryIO, digest: Digest | None) -> None:
    for start in range(0, len(data), _READ_BYTES):
        part = data[start : start + _READ_BYTES].data
        if file.readinto(part) != len(part):  # type: ignore[attr-defined]
            raise ValueError("it became shorter while it was read")
        if digest:
            digest.update(part)


def _tensor(data: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    start, end = entry["data_offsets"]
    if not 0 <= start <= end <= len(data):
        raise ValueError(f"a tensor lies at bytes {start} to {end} of {len(data)}")
    return data[start:end].view(_NUMPY_TYPES[entry["dtype"]]).reshape(entry["shape"])
