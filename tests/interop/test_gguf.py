"""The reader against files of the published library, and against damaged ones."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type

from bitttt_jax.errors import DataError
from bitttt_jax.interop.gguf import I2_S, GGUFFile, is_gguf, parse_header
from bitttt_jax.interop.gguf_writer import NewTensor, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def header(tensors: bytes = b"", entries: bytes = b"", counts: tuple[int, int] = (0, 0)) -> bytes:
    """A file's beginning, its two counts given apart from what follows them."""
    return b"GGUF" + struct.pack("<IQQ", 3, *counts) + entries + tensors


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes, offset: int, *, type_: int = Type.F32, shape: tuple[int, ...] = (8,)):
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", type_, offset)


def aligned(data: bytes, extra: int) -> bytes:
    return data + bytes(-len(data) % 32 + extra)


def test_what_the_library_wrote_is_read(path: Path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60_000)
    writer.add_int16("i16", -30_000)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**63)
    writer.add_int64("i64", -(2**62))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("bool", True)
    writer.add_string("text", "naïve 🎉")
    writer.add_array("texts", ["a", "", "é"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("floats", [0.5, 0.25])
    writer.add_array("truths", [True, False])
    values = {
        "a": np.arange(24, dtype=np.float32).reshape(4, 6),
        "b": np.arange(5, dtype=np.float16),
        "c": np.arange(3, dtype=np.float32).reshape(1, 1, 3),
    }
    for name, value in values.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = GGUFFile(path)
    found = dict(file.metadata)
    assert found.pop("truths").tolist() == [True, False]
    assert found.pop("numbers").tolist() == [1, -2, 3]
    assert found.pop("floats").tolist() == [0.5, 0.25]
    assert found == {
        "general.architecture": "llama",
        "u8": 200,
        "i8": -100,
        "u16": 60_000,
        "i16": -30_000,
        "i32": -(2**31),
        "u64": 2**63,
        "i64": -(2**62),
        "f32": 0.5,
        "f64": 0.1,
        "bool": True,
        "text": "naïve 🎉",
        "texts": ["a", "", "é"],
    }
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == {
        name: value.shape for name, value in values.items()
    }
    for name, value in values.items():
        raw = file.raw(file.tensors[name])
        assert raw.tobytes() == value.tobytes()
        file.release(file.tensors[name].start, file.tensors[name].nbytes)
        assert raw.tobytes() == value.tobytes(), "released bytes can be read again"


def test_what_is_written_the_library_reads(path: Path):
    entries = {
        "general.architecture": "llama",
        "whole": 7,
        "real": 0.5,
        "truth": True,
        "text": "é",
        "texts": ["a", "bc"],
        "types": np.array([1, -3], np.int32),
    }
    value = np.arange(512, dtype=np.float32).reshape(2, 256)
    halves = [value[:1], value[1:]]
    write(
        path,
        entries,
        [
            NewTensor("odd", (3,), Type.F32, lambda: [np.ones(3, np.float32)]),
            NewTensor("whole", value.shape, Type.F32, lambda: halves),
        ],
    )
    reader = gguf.GGUFReader(path)
    found = {name: field.contents() for name, field in reader.fields.items()}
    expected = entries | {"types": [1, -3]}
    assert {name: found[name] for name in entries} == expected
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    np.testing.assert_array_equal(by_name["whole"].data, value)
    np.testing.assert_array_equal(by_name["odd"].data, np.ones(3))


def test_an_array_without_items_is_kept(path: Path):
    write(path, {"texts": []}, [])
    assert GGUFFile(path).metadata == {"texts": []}


def test_data_of_another_size_are_refused_by_the_writer(path: Path):
    short = NewTensor("a", (4,), Type.F32, lambda: [np.ones(3, np.float32)])
    with pytest.raises(ValueError, match="a has 12 bytes of data, not 16"):
        write(path, {}, [short])


def test_version_2_is_read(path: Path):
    write(path, {"key": "value"}, [])
    data = bytearray(path.read_bytes())
    data[4] = 2
    assert parse_header(bytes(data), path).metadata == {"key": "value"}


def test_the_alignment_is_the_files(path: Path):
    entries = text(b"general.alignment") + struct.pack("<II", 4, 64)
    data = header(tensor(b"a", 0) + tensor(b"b", 64), entries, (2, 1))
    data += bytes(-len(data) % 64)
    found = parse_header(data + bytes(128), path).tensors
    assert [one.start - len(data) for one in found.values()] == [0, 64]


def test_i2_s_has_a_tail(path: Path):
    data = aligned(header(tensor(b"a", 0, type_=I2_S, shape=(128, 2)), counts=(1, 0)), 96)
    found = parse_header(data, path).tensors["a"]
    assert (found.shape, found.nbytes, found.type_name) == ((2, 128), 64 + 32, "I2_S")


KEY = text(b"key")
STRING, ARRAY, U32 = (struct.pack("<I", number) for number in (8, 9, 4))
DAMAGES: dict[str, tuple[bytes, str]] = {
    "another format": (b"PK\3\4" + bytes(40), "magic number is b'PK"),
    "nothing but magic": (b"GGUF", "the version needs 4 bytes"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(16), "version is that of a big-endian"),
    "version 1": (b"GGUF" + struct.pack("<I", 1) + bytes(16), "version is 1"),
    "2^60 tensors": (header(counts=(2**60, 0)), "the number of tensors is 1152921504606846976"),
    "2^60 entries": (header(counts=(0, 2**60)), "number of metadata entries is 11529"),
    "entries that aren't there": (header(counts=(0, 1)), "the key of metadata entry 0 needs 8"),
    "a key of 2^62 bytes": (
        header(entries=struct.pack("<Q", 2**62), counts=(0, 1)),
        "the key of metadata entry 0: its length is 4611686018427387904",
    ),
    "a text of 2^62 bytes": (
        header(entries=KEY + STRING + struct.pack("<Q", 2**62), counts=(0, 1)),
        "metadata entry key: its length is 4611686018427387904",
    ),
    "a text beyond the end": (
        header(entries=KEY + STRING + struct.pack("<Q", 100), counts=(0, 1)),
        "metadata entry key needs 100 bytes",
    ),
    "text that isn't UTF-8": (
        header(entries=KEY + STRING + text(b"\xff"), counts=(0, 1)),
        "metadata entry key isn't UTF-8",
    ),
    "2^62 numbers": (
        header(entries=KEY + ARRAY + U32 + struct.pack("<Q", 2**62), counts=(0, 1)),
        "metadata entry key needs 18446744073709551616 bytes",
    ),
    "2^62 texts": (
        header(entries=KEY + ARRAY + STRING + struct.pack("<Q", 2**62), counts=(0, 1)),
        "metadata entry key: its number of items is 4611686018427387904",
    ),
    "texts beyond the end": (
        header(entries=KEY + ARRAY + STRING + struct.pack("<Q", 3) + text(b"a"), counts=(0, 1)),
        "metadata entry key ends before item 1 of 3",
    ),
    "a text of 2^62 bytes in an array": (
        header(entries=KEY + ARRAY + STRING + struct.pack("<QQ", 1, 2**62), counts=(0, 1)),
        "metadata entry key has an item 0 of 4611686018427387904 bytes",
    ),
    "arrays in arrays": (
        header(entries=KEY + ARRAY + (ARRAY + struct.pack("<Q", 1)) * 1000, counts=(0, 1)),
        "metadata entry key is an array of arrays",
    ),
    "an unknown value type": (
        header(entries=KEY + struct.pack("<I", 13), counts=(0, 1)),
        "metadata entry key has the unknown value type 13",
    ),
    "an entry twice": (
        header(entries=(KEY + U32 + bytes(4)) * 2, counts=(0, 2)),
        "metadata entry key is there twice",
    ),
    "an impossible alignment": (
        header(entries=text(b"general.alignment") + U32 + struct.pack("<I", 48), counts=(0, 1)),
        "general.alignment is 48",
    ),
    "a tensor twice": (
        aligned(header(tensor(b"a", 0) + tensor(b"a", 32), counts=(2, 0)), 64),
        "tensor a is there twice",
    ),
    "overlapping tensors": (
        aligned(header(tensor(b"a", 0, shape=(9,)) + tensor(b"b", 32), counts=(2, 0)), 96),
        "tensor b overlaps tensor a",
    ),
    "a misaligned tensor": (
        aligned(header(tensor(b"a", 8), counts=(1, 0)), 64),
        "tensor a starts at 8, not at a multiple of 32",
    ),
    "an offset beyond the end": (
        aligned(header(tensor(b"a", 2**50), counts=(1, 0)), 32),
        "and the file ends at",
    ),
    "a truncated tensor": (
        aligned(header(tensor(b"a", 0), counts=(1, 0)), 31),
        "tensor a lies at bytes 64 to 96, and the file ends at 95",
    ),
    "a shape beyond all memory": (
        aligned(header(tensor(b"a", 0, shape=(2**62,) * 4), counts=(1, 0)), 32),
        "tensor a lies at bytes",
    ),
    "no values": (
        aligned(header(tensor(b"a", 0, shape=(0,)), counts=(1, 0)), 32),
        "tensor a has no values",
    ),
    "a thousand dimensions": (
        aligned(header(tensor(b"a", 0, shape=(1,) * 1000), counts=(1, 0)), 32),
        "tensor a has 1000 dimensions",
    ),
    "an unknown tensor type": (
        aligned(header(tensor(b"a", 0, type_=99), counts=(1, 0)), 32),
        "tensor a can't be read: its type 99 is unknown",
    ),
    "a part of a block": (
        aligned(header(tensor(b"a", 0, type_=Type.Q4_K, shape=(128,)), counts=(1, 0)), 999),
        "tensor a can't be read: rows of 128 aren't whole blocks of 256",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(path: Path, damage: str):
    data, message = DAMAGES[damage]
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        GGUFFile(path)
    assert str(path) in caught.value.what
    assert message in caught.value.what


def test_every_truncation_is_refused(path: Path):
    values = np.ones(8, np.float32)
    entries = {"text": "value", "texts": ["a", "b"], "numbers": np.arange(3, dtype=np.int32)}
    write(path, entries, [NewTensor(n, (8,), Type.F32, lambda: [values]) for n in "ab"])
    whole = path.read_bytes()
    for size in range(len(whole)):
        with pytest.raises(DataError):
            parse_header(whole[:size], path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.touch(), "is empty"),
    ],
)
def test_what_is_no_file_is_refused(path: Path, make: Callable[[Path], None], message: str):
    make(path)
    assert not is_gguf(path)
    with pytest.raises(DataError, match=message):
        GGUFFile(path)
