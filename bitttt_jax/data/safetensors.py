"""safetensors files, read in one piece or tensor by tensor.

The format is a length, a JSON header and the bytes of all tensors, without gaps
(https://github.com/huggingface/safetensors). The published library orders tensors by type and
makes an array of each; here they stay where the file's bytes were read to, and large ones start at
multiples of 64 bytes, so that JAX's CPU backend takes them as they are. Nothing is memory-mapped: a
file that becomes shorter is an error then, not the end of the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import ml_dtypes
import numpy as np

from bitttt_jax.data import strict_json
from bitttt_jax.data.memory import large_buffer
from bitttt_jax.errors import DataError

ALIGNMENT = 64
_MOST_HEADER_BYTES = 10_000_000  # a tensor takes about 100
_LARGE = 32 * 2**20
_MOST_DIMENSIONS = 16
_MOST_ENTRIES = 2**48  # of a dimension
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


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the header says of a tensor."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the end of the header."""
    stop: int
    """The byte after the last one."""

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.stop - self.start


class File:
    """A file whose tensors are read one by one.

    Attributes:
      path: the file.
      entries: what it holds, by name.
      metadata: texts by name.

    Args:
      path: the file; only its header is read.

    Raises:
      DataError: no such file, or not a whole safetensors file.
    """

    def __init__(self, path: Path):
        self.path = path
        with _explained(path), path.open("rb") as file:
            size = path.stat().st_size
            header = _read_header(file, size)
            self._offset = file.tell()
            self.entries, self.metadata = _parse(header[8:], size - self._offset)

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor into an array of its own.

        Raises:
          DataError: the file has changed.
        """
        entry = self.entries[name]
        # Each large page that is begun is there as a whole.
        is_large = entry.nbytes >= _LARGE
        data = large_buffer(entry.nbytes) if is_large else np.empty(entry.nbytes, np.uint8)
        with _explained(self.path), self.path.open("rb") as file:
            file.seek(self._offset + entry.start)
            _fill(data, file, None)
        return data.view(entry.dtype).reshape(entry.shape)


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
    with _explained(path), path.open("rb") as file:
        size = path.stat().st_size
        header = _read_header(file, size)
        entries, metadata = _parse(header[8:], size - len(header))
        if digest:
            digest.update(header)
        data = large_buffer(size - len(header))
        _fill(data, file, digest)
    tensors = {
        name: data[entry.start : entry.stop].view(entry.dtype).reshape(entry.shape)
        for name, entry in entries.items()
    }
    return tensors, metadata


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} can't be read", error.strerror or str(error)) from None
    except ValueError as error:
        raise DataError(
            f"{path} isn't a whole safetensors file", str(error), "making or copying it again"
        ) from None


def _read_header(file: BinaryIO, size: int) -> bytes:
    """The header and the length in front of it."""
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if not 2 <= length <= min(size - 8, _MOST_HEADER_BYTES):
        raise ValueError(f"its header can't have {length} bytes")
    text = file.read(length)
    if len(text) != length:
        raise ValueError("it became shorter while it was read")
    return prefix + text


def _parse(text: bytes, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """What a header says of `size` bytes, which the tensors must share out among them."""
    header = strict_json.parse_object(text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its __metadata__ isn't an object of texts")
    entries = {name: _entry(name, fields) for name, fields in header.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            how = "overlaps another" if entry.start < end else "leaves a gap in front of it"
            raise ValueError(f"the tensor {name!r:.99} {how}")
        end = entry.stop
    if end != size:
        raise ValueError(f"its tensors have {end} bytes, and it holds {size}")
    return entries, metadata


def _entry(name: str, fields: Any) -> Entry:
    what = f"the tensor {name!r:.99}"
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{what} isn't described by dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _NUMPY_TYPES:
        raise ValueError(f"{what} has the unknown type {dtype!r:.99}")
    if not _are_sizes(shape) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{what} has the impossible shape {shape!r:.99}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{what} has the impossible data_offsets {offsets!r:.99}")
    entry = Entry(np.dtype(_NUMPY_TYPES[dtype]), tuple(shape), *offsets)
    if math.prod(shape) * entry.dtype.itemsize != entry.nbytes:
        raise ValueError(
            f"{what} of shape {shape} and type {dtype} can't have {entry.nbytes} bytes"
        )
    return entry


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < _MOST_ENTRIES for value in values
    )


def _fill(data: np.ndarray, file: BinaryIO, digest: Digest | None) -> None:
    for start in range(0, len(data), _READ_BYTES):
        part = data[start : start + _READ_BYTES].data
        if file.readinto(part) != len(part):  # type: ignore[attr-defined]
            raise ValueError("it became shorter while it was read")
        if digest:
            digest.update(part)
