"""GGUF files (versions 2 and 3), mapped into memory and checked before anything is believed.

The published library's reader trusts its input and knows no I2_S, so the header is read here: every
length is held against what is left of the file before it is used, nothing is read twice, and
nothing in a file is followed. What a number stands for (value types, tensor types and their block
sizes) comes from the library. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from bitttt_jax.errors import DataError

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
I2_S = 36
"""Ternary tensors of BitNet models, a type that only Microsoft's programs number so: 2-bit codes
of the whole tensor, then its scale as one float32, then padding to 32 bytes."""
I2_S_BLOCK = 128
I2_S_TAIL = 32

# Far above what models have, and low enough that a hostile header costs little.
_MOST_HEADER_BYTES = 2**27
_MOST_PAIRS = 2**16
_MOST_TENSORS = 2**17
_MOST_STRINGS = 2**22
_MOST_KEY_BYTES = 2**16
_MOST_DIMENSIONS = 4
_MOST_ALIGNMENT = 2**20

_LENGTH = struct.Struct("<Q")
_COUNT = struct.Struct("<I")
_SCALARS = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.BOOL: struct.Struct("<?"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
}

Metadata = Mapping[str, object]
"""Values by key: int, float, bool, str, `list[str]`, or a NumPy array of numbers."""


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in a file."""

    name: str
    shape: tuple[int, ...]
    """Outermost dimension first, as NumPy has it; the file has them the other way round."""
    type: int
    """Number of the type (`GGMLQuantizationType`, or `I2_S`)."""
    start: int
    """First byte in the file."""
    nbytes: int

    @property
    def type_name(self) -> str:
        """Such as `Q4_K`."""
        return type_name(self.type)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says about itself."""

    metadata: Metadata
    tensors: Mapping[str, TensorInfo]


class GGUFFile:
    """An open file.

    Args:
      path: the file.

    Raises:
      DataError: it can't be read, or isn't a whole GGUF file.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                if not file.read(1):
                    raise DataError(f"{path} is empty")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise DataError(f"{path} can't be read", error.strerror or str(error)) from None
        header = parse_header(self._map, path)
        self.metadata, self.tensors = header.metadata, header.tensors

    def raw(self, tensor: TensorInfo) -> np.ndarray:
        """A tensor's bytes `[nbytes]`, read from the disk when they are touched."""
        return np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.start)

    def release(self, start: int, nbytes: int) -> None:
        """Lets go of the memory that some bytes were read into; they can be read again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, page, start + nbytes - page)


def is_gguf(path: Path) -> bool:
    """Whether a path is a file with the magic bytes of GGUF."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def type_name(number: int) -> str:
    """Name of a tensor type, such as `Q4_K`."""
    return "I2_S" if number == I2_S else GGMLQuantizationType(number).name


def tensor_bytes(shape: tuple[int, ...], type_: int) -> int:
    """Bytes of a tensor.

    Raises:
      ValueError: an unknown type, or rows that its blocks don't divide.
    """
    try:
        block, size = (
            (I2_S_BLOCK, I2_S_BLOCK // 4)
            if type_ == I2_S
            else GGML_QUANT_SIZES[GGMLQuantizationType(type_)]
        )
    except (ValueError, KeyError):
        raise ValueError(f"its type {type_} is unknown") from None
    if shape[-1] % block:
        raise ValueError(f"rows of {shape[-1]} aren't whole blocks of {block}")
    return math.prod(shape) // block * size + (I2_S_TAIL if type_ == I2_S else 0)


def parse_header(data: mmap.mmap | bytes, path: Path) -> Header:
    """Reads and checks everything in front of the tensors' bytes.

    Args:
      data: the whole file.
      path: its name, for messages.

    Raises:
      DataError: the file isn't GGUF, isn't whole, or contradicts itself.
    """
    cursor = _Cursor(data, path)
    _check_version(cursor)
    tensor_count = cursor.unpack(_LENGTH, "the number of tensors")
    pair_count = cursor.unpack(_LENGTH, "the number of metadata entries")
    cursor.at_most(tensor_count, _MOST_TENSORS, "the number of tensors")
    cursor.at_most(pair_count, _MOST_PAIRS, "the number of metadata entries")
    metadata: dict[str, object] = {}
    for i in range(pair_count):
        key = cursor.string(f"the key of metadata entry {i}", _MOST_KEY_BYTES)
        if key in metadata:
            cursor.fail(f"metadata entry {key}", "is there twice")
        metadata[key] = _read_value(cursor, f"metadata entry {key}")
    alignment = _alignment(cursor, metadata)
    entries = [_read_entry(cursor, i) for i in range(tensor_count)]
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, type_, offset in entries:
        if name in tensors:
            cursor.fail(f"tensor {name}", "is there twice")
        if offset % alignment:
            cursor.fail(f"tensor {name}", f"starts at {offset}, not at a multiple of {alignment}")
        tensors[name] = _placed(cursor, name, shape, type_, start + offset)
    _check_overlaps(cursor, tensors)
    return Header(metadata, tensors)


class _Cursor:
    """A place in a file's header, from which values are read in order."""

    def __init__(self, data: mmap.mmap | bytes, path: Path):
        self.data, self.path = data, path
        self.at = 0
        self.size = len(data)
        self._end = min(self.size, _MOST_HEADER_BYTES)

    def fail(self, field: str, why: str) -> NoReturn:
        raise DataError(f"{self.path}: {field} {why}", fix="copying or downloading the file again")

    def at_most(self, value: int, most: int, field: str) -> None:
        if value > most:
            self.fail(field, f"is {value}, more than the {most} that are possible")

    def skip(self, size: int, field: str) -> int:
        """Goes over some bytes; returns where they start."""
        start = self.at
        if size > self._end - start:
            self.fail(
                field, f"needs {size} bytes at byte {start}, and {self._end - start} are left"
            )
        self.at += size
        return start

    def unpack(self, form: struct.Struct, field: str) -> int:
        value: int = form.unpack_from(self.data, self.skip(form.size, field))[0]
        return value

    def string(self, field: str, most: int = _MOST_HEADER_BYTES) -> str:
        length = self.unpack(_LENGTH, field)
        self.at_most(length, most, f"{field}: its length")
        start = self.skip(length, field)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError as error:
            self.fail(field, f"isn't UTF-8: {error.reason}")

    def strings(self, count: int, field: str) -> Iterator[str]:
        # As `string` for each, without its calls: vocabularies have hundreds of thousands.
        data, unpack, end, at = self.data, _LENGTH.unpack_from, self._end - 8, self.at
        for i in range(count):
            if at > end:
                self.fail(field, f"ends before item {i} of {count}")
            length = unpack(data, at)[0]
            if length > end - at:
                self.fail(field, f"has an item {i} of {length} bytes, beyond the end")
            at += 8 + length
            try:
                yield data[at - length : at].decode()
            except UnicodeDecodeError as error:
                self.fail(field, f"has an item {i} that isn't UTF-8: {error.reason}")
        self.at = at


def _check_version(cursor: _Cursor) -> None:
    start = cursor.skip(4, "the magic number")
    if cursor.data[start : start + 4] != MAGIC:
        cursor.fail("the magic number", f"is {cursor.data[:4]!r}, not {MAGIC!r}")
    version = cursor.unpack(_COUNT, "the version")
    if version in (2, 3):
        return
    if int.from_bytes(version.to_bytes(4, "big"), "little") in (2, 3):
        cursor.fail("the version", "is that of a big-endian file, which isn't read here")
    cursor.fail("the version", f"is {version}; 2 and 3 are read here")


def _read_value(cursor: _Cursor, field: str) -> object:
    kind = _value_type(cursor, field)
    if kind == GGUFValueType.STRING:
        return cursor.string(field)
    if kind != GGUFValueType.ARRAY:
        return cursor.unpack(_SCALARS[kind], field)
    item = _value_type(cursor, field)
    count = cursor.unpack(_LENGTH, field)
    if item == GGUFValueType.ARRAY:
        cursor.fail(field, "is an array of arrays, which no model needs")
    if item == GGUFValueType.STRING:
        cursor.at_most(count, _MOST_STRINGS, f"{field}: its number of items")
        return list(cursor.strings(count, field))
    form = _SCALARS[item]
    start = cursor.skip(count * form.size, field)
    copied = cursor.data[start : cursor.at]  # so that nothing holds the map
    if item == GGUFValueType.BOOL:
        return np.frombuffer(copied, np.uint8) != 0
    return np.frombuffer(copied, np.dtype(form.format))


def _value_type(cursor: _Cursor, field: str) -> GGUFValueType:
    number = cursor.unpack(_COUNT, field)
    try:
        return GGUFValueType(number)
    except ValueError:
        cursor.fail(field, f"has the unknown value type {number}")


def _alignment(cursor: _Cursor, metadata: Metadata) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or not 8 <= value <= _MOST_ALIGNMENT or value & (value - 1):
        cursor.fail("metadata entry general.alignment", f"is {value!r}, no power of 2 from 8 up")
    return value


def _read_entry(cursor: _Cursor, index: int) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of a tensor."""
    name = cursor.string(f"the name of tensor {index}", _MOST_KEY_BYTES)
    field = f"tensor {name}"
    count = cursor.unpack(_COUNT, field)
    if not 1 <= count <= _MOST_DIMENSIONS:
        cursor.fail(field, f"has {count} dimensions; 1 to {_MOST_DIMENSIONS} are possible")
    shape = tuple(cursor.unpack(_LENGTH, field) for _ in range(count))[::-1]
    if 0 in shape:
        cursor.fail(field, f"has no values: its shape is {list(shape)}")
    return name, shape, cursor.unpack(_COUNT, field), cursor.unpack(_LENGTH, field)


def _placed(cursor: _Cursor, name: str, shape: tuple[int, ...], type_: int, start: int):
    try:
        nbytes = tensor_bytes(shape, type_)
    except ValueError as error:
        cursor.fail(f"tensor {name}", f"can't be read: {error}")
    if start + nbytes > cursor.size:
        cursor.fail(
            f"tensor {name}",
            f"lies at bytes {start} to {start + nbytes}, and the file ends at {cursor.size}",
        )
    return TensorInfo(name, shape, type_, start, nbytes)


def _check_overlaps(cursor: _Cursor, tensors: Mapping[str, TensorInfo]) -> None:
    order = sorted(tensors.values(), key=lambda tensor: tensor.start)
    for before, after in itertools.pairwise(order):
        if before.start + before.nbytes > after.start:
            cursor.fail(f"tensor {after.name}", f"overlaps tensor {before.name}")
