"""Writing GGUF files (version 3), tensor by tensor.

The published library's writer has no I2_S, and no arrays without items.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf.constants import GGUFValueType

from bitttt_jax.interop.gguf import DEFAULT_ALIGNMENT, MAGIC, tensor_bytes

VERSION = 3

Value = bool | int | float | str | list[str] | np.ndarray
"""Of a metadata entry: whole numbers are written as 32 bits without sign, floats as float32."""

_ITEM_TYPES = {
    np.dtype(np.uint8): GGUFValueType.UINT8,
    np.dtype(np.int32): GGUFValueType.INT32,
    np.dtype(np.uint32): GGUFValueType.UINT32,
    np.dtype(np.float32): GGUFValueType.FLOAT32,
}


@dataclasses.dataclass(frozen=True)
class NewTensor:
    """A tensor to write."""

    name: str
    shape: tuple[int, ...]
    """Outermost dimension first."""
    type: int
    """`GGMLQuantizationType`, or `gguf.I2_S`."""
    data: Callable[[], Iterable[np.ndarray]]
    """Makes its bytes, in pieces, when they are to be written."""


def write(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[NewTensor],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes a file; one that is there is replaced.

    Args:
      path: where.
      metadata: entries by key.
      tensors: in the order in which they come to lie.
      progress: called with the tensors that are written and all of them.

    Raises:
      OSError: the folder isn't writable, or the disk is full.
      ValueError: a tensor's rows don't fit its type, or its data its shape.
    """
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_string(key) + _value(value))
        offset = 0
        for tensor in tensors:
            dimensions = struct.pack(
                f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape[::-1]
            )
            place = struct.pack("<IQ", tensor.type, offset)
            file.write(_string(tensor.name) + dimensions + place)
            offset += _aligned(tensor_bytes(tensor.shape, tensor.type))
        _pad(file)
        for index, tensor in enumerate(tensors):
            _write_data(file, tensor)
            progress(index + 1, len(tensors))


def _write_data(file: BinaryIO, tensor: NewTensor) -> None:
    start = file.tell()
    for piece in tensor.data():
        file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
    written, expected = file.tell() - start, tensor_bytes(tensor.shape, tensor.type)
    if written != expected:
        raise ValueError(f"{tensor.name} has {written} bytes of data, not {expected}")
    _pad(file)


def _aligned(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(_aligned(file.tell()) - file.tell()))


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", GGUFValueType.BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", GGUFValueType.UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", GGUFValueType.FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", GGUFValueType.STRING) + _string(value)
    if isinstance(value, list):
        item, items = GGUFValueType.STRING, b"".join(map(_string, value))
    else:
        item, items = _ITEM_TYPES[value.dtype], value.tobytes()
    return struct.pack("<IIQ", GGUFValueType.ARRAY, item, len(value)) + items
