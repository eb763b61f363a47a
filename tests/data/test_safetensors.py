from __future__ import annotations

import itertools
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from bitttt_jax.data import safetensors
from bitttt_jax.errors import DataError

TENSORS = {
    "scale": np.float32(3).reshape(()),
    "codes": np.arange(128, dtype=np.uint8).reshape(2, 64),
    "table": np.arange(64).reshape(4, 16).astype(ml_dtypes.bfloat16),
    "odd": np.arange(7, dtype=np.int8),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    safetensors.write(tmp_path / "x.safetensors", TENSORS, {"made by": "test"})
    return tmp_path / "x.safetensors"


def test_what_is_written_is_read(file: Path):
    tensors, metadata = safetensors.read(file)
    assert metadata == {"made by": "test"} and set(tensors) == set(TENSORS)
    for name, expected in TENSORS.items():
        assert tensors[name].dtype == expected.dtype
        np.testing.assert_array_equal(tensors[name], expected)


def test_the_bytes_are_as_the_format_says(file: Path):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    start, end = header["codes"]["data_offsets"]
    assert header["codes"] == {"dtype": "U8", "shape": [2, 64], "data_offsets": [start, end]}
    assert data[8 + length :][start:end] == bytes(range(128))
    offsets = sorted(entry["data_offsets"] for name, entry in header.items() if name[0] != "_")
    assert offsets[0][0] == 0 and offsets[-1][1] == len(data) - 8 - length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(offsets))  # no gaps


def test_large_tensors_lie_aligned(file: Path):
    tensors, _ = safetensors.read(file)
    for name in ("codes", "table"):
        assert tensors[name].ctypes.data % safetensors.ALIGNMENT == 0


@pytest.mark.parametrize("keep", [0, 5, 8, 60, -1])
def test_a_cut_file_is_refused(file: Path, keep: int):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match="isn't a whole safetensors file"):
        safetensors.read(file)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"U8"', b'"Q8"'),
        (b"[2, 64]", b"[3, 64]"),
        (b'"data_offsets": [0, 128]', b'"data_offsets": [0, 999]'),
        (b'{"__meta', b'["__meta'),
        (b'"dtype": "U8"', b'"dtipe": "U8"'),
    ],
)
def test_a_damaged_header_is_refused(file: Path, old: bytes, new: bytes):
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new))
    with pytest.raises(DataError, match="isn't a whole safetensors file"):
        safetensors.read(file)


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(DataError, match="can't be read"):
        safetensors.read(tmp_path / "nothing")


def test_tensors_are_read_one_by_one(file: Path):
    opened = safetensors.File(file)
    assert opened.metadata == {"made by": "test"} and set(opened.entries) == set(TENSORS)
    for name, expected in TENSORS.items():
        found = opened.read(name)
        assert found.dtype == expected.dtype == opened.entries[name].dtype
        np.testing.assert_array_equal(found, expected)


def test_a_file_that_became_shorter_is_an_error(file: Path):
    opened = safetensors.File(file)
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(DataError, match="became shorter"):
        opened.read("odd" if opened.entries["odd"].stop > 200 else "codes")
    file.unlink()
    with pytest.raises(DataError, match="can't be read"):
        opened.read("codes")


def test_the_published_library_agrees(file: Path):
    import safetensors.numpy

    theirs = safetensors.numpy.load_file(file)
    for name, expected in TENSORS.items():
        np.testing.assert_array_equal(theirs[name], expected)


@pytest.mark.parametrize(
    ("places", "size", "message"),
    [
        ([(0, 8), (4, 12)], 12, "'b' overlaps another"),
        ([(0, 4), (8, 12)], 12, "'b' leaves a gap"),
        ([(4, 8), (8, 12)], 12, "'a' leaves a gap"),
        ([(0, 4), (4, 8)], 12, "its tensors have 8 bytes, and it holds 12"),
        ([(0, 4), (4, 16)], 12, "its tensors have 16 bytes, and it holds 12"),
        ([(0, 4), (0, 4)], 4, "'b' overlaps another"),
    ],
)
def test_tensors_share_out_the_file(tmp_path: Path, places, size: int, message: str):
    header = {
        name: {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
        for name, (start, stop) in zip("ab", places, strict=True)
    }
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    for read in (safetensors.File, safetensors.read):
        with pytest.raises(DataError, match=message):
            read(path)
